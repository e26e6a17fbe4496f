"""Maximally robust linear classifiers beside scikit-learn and cvxpy: processor time, and margin.

    pip install clarabel cvxpy
    OMP_NUM_THREADS=1 python bench/margins.py [--cifar cifar10-train.npz] [--whole] [--large] > margins.md

On each problem every classifier's margin min y (w·x + b)/‖w‖ in the norm that it minimises is compared
with the best that any solver proved (an upper bound from the multipliers): 1 is the maximally robust
classifier, a number below 0 one that does not separate the training examples, which here are separable.
Seconds are of the processor, of the fit alone, with its conversions; so other work on the machine
counts little, and with one thread they are what an idle core needs. --whole also gives HiGHS the linear
programs as they are, minutes for CIFAR-10. --large is 100,000 examples of 1,000 numbers, with the peak
memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from hrrl_ext._tables import markdown
from hrrl_ext.linear import MaxMarginClassifier, duality, programs
from hrrl_ext.norms import vector_norm

C = 1e6  # of the SVMs, to come near the separable problem
ITERATIONS = 200_000  # of libsvm


class Line(NamedTuple):
    problem: str
    norm: str
    name: str
    seconds: float
    margin: float
    upper: float = np.inf
    """a bound on every classifier's margin, where the solver gives one"""


Problem = tuple[str, np.ndarray, np.ndarray]


def problems(cifar: str | None) -> Iterator[Problem]:
    random = np.random.default_rng(0)
    X, w = random.standard_normal((50, 100)), random.standard_normal(100)
    yield "normal, 50 x 100", X, np.sign(X @ w)
    X, y = load_digits(return_X_y=True)
    rows = (y == 3) | (y == 7)
    yield "digits 3, 7, 362 x 64", X[rows] / 16, np.where(y[rows] == 3, -1.0, 1.0)
    X, y = load_breast_cancer(return_X_y=True)
    yield "breast cancer, 569 x 30", StandardScaler().fit_transform(X), 2.0 * y - 1
    if cifar is not None:
        with np.load(cifar) as stored:
            rows = np.flatnonzero(np.isin(stored["label"], (0, 8)))[:400]
            X, label = stored["image"][rows].reshape(400, -1) / 255, stored["label"][rows]
        yield "CIFAR-10 airplane, ship, 400 x 3072", X, np.where(label == 0, -1.0, 1.0)


def ours(solver: Any, norm: str, **settings: Any) -> Callable[[np.ndarray, np.ndarray], Any]:
    return lambda X, y: MaxMarginClassifier(norm, solver=solver, **settings).fit(X, y)


def by_cvxpy(norm: str) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]:
    import cvxpy

    order = {"l1": 1, "l2": 2, "linf": "inf"}[norm]

    def solve(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
        w, b = cvxpy.Variable(X.shape[1]), cvxpy.Variable()
        separated = [cvxpy.multiply(y, X @ w + b) >= 1]
        cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(w, order)), separated).solve(solver="CLARABEL")
        return w.value, float(b.value)

    return solve


def whole_program(norm: str) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]:
    """HiGHS on all examples and weights, however many there are."""

    def solve(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
        found = programs.solve_whole(duality.Problem(X, y, vector_norm(norm)))
        return found.w, found.b

    return solve


def fits(norm: str, large: bool, whole: bool) -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """By name; ``large``: those that take minutes at most there."""
    solvers = {"l1": ["lp"], "linf": ["lp"], "l2": ["nnls", "socp"], "fourier-l1": ["socp"]}[norm]
    found: dict[str, Any] = (
        {} if large and norm == "fourier-l1" else {s: ours(s, norm) for s in solvers}
    )
    found["first-order, 1e-3"] = ours("first-order", norm)
    if norm == "l2":
        linear = LinearSVC(C=C, loss="hinge", max_iter=100_000, random_state=0)
        found["LinearSVC"] = linear.fit
        found["SVC"] = lambda X, y: SVC(kernel="linear", C=C, max_iter=ITERATIONS).fit(X, y)
    if norm in ("l1", "linf") and whole:
        found["HiGHS, whole"] = whole_program(norm)
    if norm != "fourier-l1":
        found["cvxpy, Clarabel"] = by_cvxpy(norm)
    return found


def measured(problem: Problem, norm: str, name: str, fit: Callable[..., Any]) -> Line:
    text, X, y = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that SVMs did not converge: their margin says so
        begin = time.process_time()
        found = fit(X, y)
        seconds = time.process_time() - begin
    w, b = found if isinstance(found, tuple) else (found.coef_[0], float(found.intercept_[0]))
    size = float(vector_norm(norm).size(torch.from_numpy(np.array(w, dtype=np.float64))))
    upper = 1 / float(found.dual_coef_.sum()) if isinstance(found, MaxMarginClassifier) else np.inf
    return Line(text, norm, name, seconds, float((y * (X @ w + b)).min()) / size, upper)


def table(lines: list[Line]) -> str:
    best: dict[tuple[str, str], float] = {}
    for line in lines:
        key = line.problem, line.norm
        best[key] = min(best.get(key, np.inf), line.upper)
    rows = [["problem", "norm", "solver", "seconds", "margin", "of the best"]]
    for line in lines:
        bound = best[line.problem, line.norm]
        seconds, margin = f"{line.seconds:.2f}", f"{line.margin:.5g}"
        share = f"{line.margin / bound:.9f}"
        rows.append([line.problem, line.norm, line.name, seconds, margin, share])
    return markdown(rows)


class Large(NamedTuple):
    norm: str
    clock: float
    processor: float
    radius: float
    gap: float
    gibibytes: float
    """the peak memory of the process, X included"""


def large_runs() -> list[Large]:
    """Two Gaussian classes that a slab of one deviation parts: 100,000 x 1,000, float32."""
    random = np.random.default_rng(0)
    X = random.standard_normal((100_000, 1_000), dtype=np.float32)
    w = random.standard_normal(1_000, dtype=np.float32)
    w /= np.linalg.norm(w)
    y = np.sign(X @ w)
    X += y[:, None] * w
    runs = []
    for norm in ("l2", "linf", "l1"):
        begin, worked = time.perf_counter(), time.process_time()
        model = MaxMarginClassifier(norm, solver="first-order").fit(X, y)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        clock, worked = time.perf_counter() - begin, time.process_time() - worked
        runs.append(Large(norm, clock, worked, model.robust_radius_, model.gap_, peak))
        print(runs[-1], file=sys.stderr)
    return runs


def large_table() -> str:
    rows = [["norm", "seconds of the clock", "of the processor", "radius", "gap", "peak memory"]]
    for run in large_runs():
        times = [f"{run.clock:.0f}", f"{run.processor:.0f}"]
        found = [f"{run.radius:.4g}", f"{run.gap:.1e}", f"{run.gibibytes:.2f} GiB"]
        rows.append([run.norm, *times, *found])
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", help="an archive of CIFAR-10: image, label")
    parser.add_argument("--whole", action="store_true", help="HiGHS on whole programs as well")
    parser.add_argument("--large", action="store_true", help="100,000 examples as well")
    parser.add_argument("--norms", nargs="+", default=["l1", "l2", "linf", "fourier-l1"])
    args = parser.parse_args()
    lines = []
    for problem in problems(args.cifar):
        for norm in args.norms:
            for name, fit in fits(norm, problem[1].size > 1_000_000, args.whole).items():
                lines.append(measured(problem, norm, name, fit))
                print(lines[-1], file=sys.stderr)
    print(table(lines))
    if args.large:
        print(f"\n{large_table()}")


if __name__ == "__main__":
    main()
