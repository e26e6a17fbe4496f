"""Every bar of the linear classifiers in one table: what is asked, what is measured, met or missed.

    pip install clarabel cvxpy
    OMP_NUM_THREADS=1 python bench/linear_bars.py --cifar cifar10-train.npz --page docs/results/linear.md

It measures again what examples/linear_robustness.py and bench/margins.py measure, with their own code:
the exact solvers on data whose answers are known, descent and the hinge on the thesis's data, the
first-order solver where exact ones take long, Fig. 5.2 on the clock, scikit-learn and cvxpy beside ours.
Without --cifar, or without cvxpy, the bars that need it are not measured, and say so. Seconds are of the
processor, of one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import margins
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests" / "linear")]

from linear_page import NORMS, Row, panels  # noqa: E402
from linear_robustness import Clock, Problem  # noqa: E402
from margin_cases import (  # type: ignore[import-not-found]  # noqa: E402
    ANCHORS,
    EXACT,
    digits_3_7,
    printed,
    synthetic,
)

from hrrl_ext._tables import markdown, with_tables  # noqa: E402
from hrrl_ext.linear import (  # noqa: E402
    MaxMarginClassifier,
    duality,
    primal_dual,
    radius,
)
from hrrl_ext.linear.solve import solve  # noqa: E402
from hrrl_ext.norms import vector_norm  # noqa: E402
from hrrl_ext.storage import write_text  # noqa: E402

DIGITS = {"l1": ".08764", "linf": "1.598", "l2": ".3639"}
RATIOS = [1, 2, 4, 8, 16, 32]
SEEDS = [0, 1, 2]
STEPS = 10_000
DESCENT = {
    "gradient descent": 1e-3, "coordinate descent": 3e-2, "sign descent": 1e-2,
    "convolutional network": 5e-2,
}  # fmt: skip
"""The share of eps* that may be missing after `STEPS`."""


class Bar(NamedTuple):
    bar: str
    asked: str
    measured: str
    met: bool | None = None
    """None: not measured"""


# --- exact solvers


def exact() -> Iterator[Bar]:
    """Anchors, gaps, two routes to each, and that nothing exceeds eps*."""
    gaps, off, apart, above = [0.0], [], [0.0], [0.0]
    count = 0
    for norm, table in ANCHORS.items():
        for n, texts in table.items():
            for seed, text in enumerate(texts):
                X, y = synthetic(n, seed)
                problem = duality.Problem(X, y, vector_norm(norm), intercept=False)
                found = solve(problem, EXACT[norm])
                other = solve(problem, "first-order", tol=1e-8)
                expected, half = printed(text)
                count += 1
                if abs(1 / found.primal - expected) > half * 1.001:
                    off.append(f"{norm} {n} {seed}: {1 / found.primal:.5g} for {text}")
                gaps.append(found.gap)
                apart.append(abs(other.primal / found.primal - 1))
                above += [found.primal / one.primal - 1 for one in (found, other)]
    for norm, text in DIGITS.items():
        model = MaxMarginClassifier(norm, solver=EXACT[norm]).fit(*digits_3_7())
        other = MaxMarginClassifier(norm, solver="first-order", tol=1e-8).fit(*digits_3_7())
        expected, half = printed(text)
        count += 1
        if abs(model.robust_radius_ - expected) > half:
            off.append(f"digits {norm}: {model.robust_radius_:.5g} for {text}")
        gaps.append(model.gap_)
        apart.append(abs(other.robust_radius_ / model.robust_radius_ - 1))
        above.append(other.robust_radius_ * float(model.dual_coef_.sum()) - 1)
    yield Bar(
        "exact solvers: anchors, all printed digits", f"{count} of {count}",
        f"{count - len(off)}" + "".join(f"; {one}" for one in off), not off,
    )  # fmt: skip
    yield below("exact solvers: duality gap", max(gaps), 1e-8)
    yield below("exact and first-order solver: radii apart", max(apart), 1e-7)
    yield below("any margin above eps*", max(above), 1e-9)


# --- descent, the hinge, Fig. 5.2


def thesis(ratios: list[int], steps: int) -> Iterator[Bar]:
    """Descent and penalties on the thesis's data."""
    clock = Clock()
    rows: list[Row] = []
    course: list[Row] = []
    hinge = [0.0], [1.0]
    for ratio in ratios:
        problem = Problem(SEEDS, 100, ratio, clock)
        for name, matches, w in problem.classifiers(steps, course):
            rows += problem.measured(name, matches, w, clock)
        for norm, attack in NORMS.items():
            shares = at_lam_exact(problem, norm, attack)
            hinge[0].append(float((1 - shares[:, :2]).max()))
            hinge[1].append(float((1 - shares[:, 2]).min()))
    for method, most in DESCENT.items():
        by_step = {
            step: max(
                float(r["gap"]) for r in course if (r["method"], r["steps"]) == (method, step)
            )
            for step in sorted({r["steps"] for r in course})
        }
        bar = below(f"{method}: missing after {steps:,} steps", by_step[steps], most)
        if method == "convolutional network":
            falls = list(by_step.values()) == sorted(by_step.values(), reverse=True)
            said = ", ".join(f"{gap:.1e} at {step:,}" for step, gap in by_step.items())
            bar = Bar(bar.bar, f"{bar.asked} and falling", said, bar.met and falls)
        yield bar
    yield below("hinge: missing for lam up to 0.999 lam_exact", max(hinge[0]), 1e-6)
    yield Bar(
        "hinge: missing at 1.1 lam_exact", "visibly", f"{min(hinge[1]):.1e}", min(hinge[1]) > 1e-3
    )
    cells = [line.strip("| ").split(" | ") for line in panels(rows).splitlines()[2:]]
    missed = [f"{line[1]}: {line[-1][4:]}" for line in cells if line[-1] != "yes"]  # "no: ..."
    yield Bar(
        "Fig. 5.2, 5.3: panels confirmed", f"{len(cells)} of {len(cells)}",
        f"{len(cells) - len(missed)}" + "".join(f"; not {one}" for one in missed), not missed,
    )  # fmt: skip
    figure = sum(s for part, s in clock.cpu.items() if part != "adversarial training")
    yield below("Fig. 5.2, 5.3: all norms, ratios, seeds, rates", figure, 120, "s of one core")


def at_lam_exact(problem: Problem, norm: str, attack: str) -> torch.Tensor:
    """[seeds, 3] shares of eps* of mean hinge + lam ‖w‖ at 1e-3, 0.999 and 1.1 of lam_exact."""
    lams = problem.lam_exact[norm].double()[:, None] * torch.tensor([1e-3, 0.999, 1.1]).double()
    return (
        radius(primal_dual(problem.rows, norm, lams).w, problem.rows, attack) / problem.best[attack]
    )


# --- the first-order solver, and peers


def first_order(cifar: str | None) -> Iterator[Bar]:
    asked = "first-order: CIFAR-10 airplane, ship, 400 x 3,072, linf"
    if cifar is None:
        yield Bar(asked, "5 s of one core", "no --cifar")
    else:
        *_, problem = margins.problems(cifar)
        line = margins.measured(problem, "linf", "first-order", margins.ours("first-order", "linf"))
        best = margins.measured(problem, "linf", "lp", margins.ours("lp", "linf"))
        yield below(asked, line.seconds, 5, "s of one core")
        yield below(f"{asked}: missing", 1 - line.margin / best.upper, 1e-3)
    # in a process of its own, whose memory is nobody else's
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        runs = pool.apply(margins.large_runs)
    name = "first-order: 100,000 x 1,000, l2, linf, l1"
    yield below(f"{name}: missing", max(run.gap for run in runs), 1e-3)
    yield below(f"{name}, each", max(run.clock for run in runs), 60, "s of the clock")
    yield below(f"{name}, peak memory", max(run.gibibytes for run in runs), 2, "GiB")


def peers(lines: list[margins.Line]) -> Iterator[Bar]:
    """Ours, exact, beside each peer on the same problem and norm."""
    ours = {(one.problem, one.norm): one for one in lines if one.name in set(EXACT.values())}
    for name in ("LinearSVC", "SVC", "cvxpy, Clarabel"):
        pairs = [(ours[one.problem, one.norm], one) for one in lines if one.name == name]
        asked = f"exact solvers beside {name}: margin at least as large, to 1e-7"
        if not pairs:
            yield Bar(asked, "all problems", "not installed")
            continue
        least = min(own.margin - (1 - 1e-7) * one.margin for own, one in pairs)
        faster = sum(own.seconds <= one.seconds for own, one in pairs)
        said = f"{len(pairs)} problems; as fast or faster on {faster}"
        yield Bar(asked, "all problems", said, least >= 0)
    svc = [one for one in lines if one.name == "SVC" and one.problem.startswith("breast")]
    own = [ours[one.problem, one.norm].margin for one in svc]
    yield Bar(
        "breast cancer: SVC's margin below 0, ours above", "both",
        f"{svc[0].margin:.3g}, {own[0]:.3g}", svc[0].margin < 0 < own[0],
    )  # fmt: skip


def peer_lines(cifar: str | None) -> list[margins.Line]:
    has_cvxpy = importlib.util.find_spec("cvxpy") is not None
    lines = []
    for problem in margins.problems(cifar):
        for norm in ("l2", "l1", "linf"):
            for name, fit in margins.fits(norm, problem[1].size > 1_000_000, False).items():
                # breast cancer takes the first-order solver all its steps: bench/margins.py has that
                if "first-order" not in name and (has_cvxpy or "cvxpy" not in name):
                    lines.append(margins.measured(problem, norm, name, fit))
    return lines


def below(bar: str, value: float, most: float, unit: str = "") -> Bar:
    shown = f"{value:.1e}" if most < 1 else f"{value:.1f}"
    return Bar(bar, f"at most {most:g} {unit}".strip(), f"{shown} {unit}".strip(), value <= most)


def table(bars: list[Bar]) -> str:
    verdict = {True: "met", False: "missed", None: "not measured"}
    rows = [["bar", "asked", "measured", ""]]
    return markdown(
        [*rows, *([one.bar, one.asked, one.measured, verdict[one.met]] for one in bars)]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", help="an archive of CIFAR-10: image, label")
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    args = parser.parse_args(argv)
    lines: list[margins.Line] = []

    def beside() -> Iterator[Bar]:
        lines.extend(peer_lines(args.cifar))
        yield from peers(lines)

    bars: list[Bar] = []
    parts: list[Callable[[], Iterator[Bar]]] = [
        exact, lambda: thesis(RATIOS, STEPS), lambda: first_order(args.cifar), beside,
    ]  # fmt: skip
    for part in parts:
        for bar in part():
            bars.append(bar)
            print(*bar, sep=" | ", flush=True)
    print(f"{table(bars)}\n\n{margins.table(lines)}")
    if args.page is not None:
        write_text(args.page, with_tables(args.page, {"bars": table(bars)}))


if __name__ == "__main__":
    main()
