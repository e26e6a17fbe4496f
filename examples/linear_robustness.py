"""Which optimiser and which regulariser is robust to which attack, exactly: the thesis's Fig. 5.2 to 5.4.

    python examples/linear_robustness.py --out docs/results/linear --page docs/results/linear.md

Linear classifiers of normal noise that a random hyperplane labels, in d = 100 dimensions without a bias,
by all optimisers, regularisers, learning rates and λ of Table B.1, three seeds and six ratios d/n. How
large a perturbation each withstands is computed from its margin, and measured by attack with bisection;
eps* is that of an exact solver. Fig. 5.4a and b sweep the radius of adversarial training, and λ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from linear_page import (
    NORMS,
    Row,
    agreement,
    draw,
    draw_sweep,
    panels,
    shares,
    speeds,
)
from torch import Tensor

from hrrl_ext._tables import with_tables
from hrrl_ext.linear import (
    MaxMarginClassifier,
    convolution_risk,
    descend,
    initial_filters,
    linear_risk,
    primal_dual,
    radius,
    radius_by_attack,
    shrink,
    train_adversarially,
)
from hrrl_ext.storage import write_csv, write_text

RATES = [
    *(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    *(1.0, 2.0, 3.0, 6.0, 9.0, 10.0, 20.0, 30.0, 50.0),
]
LONGEST = [1.0, 10.0, 100.0, 1000.0]  # of a step that a line search tries
LAMS = [
    *(1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 5e-3, 1e-2, 3e-2, 5e-2),
    *(1e-1, 3e-1, 5e-1, 1.0, 10.0),
]
TRAINED = 0.99  # radius of adversarial training, in the units of eps*
TRAINING_STEPS = 2500
SWEPT = [*(0.05 * k for k in range(1, 20)), 0.99, *(0.05 * k for k in range(20, 33))]
"""Radii of Fig. 5.4a, in the same."""
COURSE = [1000, 3000]  # steps after which descent is looked at, besides the last


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV and pictures")
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="d/n")
    parser.add_argument("--swept-ratio", type=int, default=8, help="d/n of Fig. 5.4")
    parser.add_argument("--d", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    rows: list[Row] = []
    course: list[Row] = []
    for ratio in args.ratios:
        problem = Problem(args.seeds, args.d, ratio, clock)
        for name, matches, w in problem.classifiers(args.steps, course):
            rows += problem.measured(name, matches, w, clock)
        print(f"d/n {ratio}: {clock}", flush=True)
    problem = Problem(args.seeds, args.d, args.swept_ratio, clock)
    with clock("Fig. 5.4a and b"):
        sweep = [*problem.swept_radius(args.steps), *problem.swept_lam()]
    for name, table in (("trials", rows), ("course", course), ("sweep", sweep)):
        write_csv(args.out / f"{name}.csv", list(table[0]), table, line_end="\n")
    draw(rows, args.out)
    draw_sweep(sweep, problem.lam_exact, args.out)
    tables = {
        "panels": panels(rows), "shares": shares(rows), "course": speeds(course),
        "agreement": agreement(rows), "times": clock.table(),
    }  # fmt: skip
    print("\n\n".join(tables.values()))
    if args.page is not None:
        write_text(args.page, with_tables(args.page, tables))


class Clock:
    """Seconds of the process by part, and on the wall."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.process_time(), time.perf_counter()
        yield
        self.cpu[part] = self.cpu.get(part, 0.0) + time.process_time() - began[0]
        self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - began[1]

    def __str__(self) -> str:
        return f"{sum(self.cpu.values()):.0f} s of the process, {sum(self.wall.values()):.0f} s"

    def table(self) -> str:
        lines = ["| part | s of the process | s on the wall |", "| --- | ---: | ---: |"]
        lines += [f"| {part} | {self.cpu[part]:.1f} | {self.wall[part]:.1f} |" for part in self.cpu]
        total = sum(self.cpu.values()), sum(self.wall.values())
        return "\n".join([*lines, f"| all | {total[0]:.1f} | {total[1]:.1f} |"])


class Problem:
    """X ~ N(0, I), y = sign(X w*), w* ~ N(0, I), one per seed; and eps* in all norms."""

    def __init__(self, seeds: list[int], d: int, ratio: int, clock: Clock) -> None:
        self.seeds, self.d, self.ratio, self.n = seeds, d, ratio, d // ratio
        rows = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            X = rng.standard_normal((self.n, d))
            rows.append(np.sign(X @ rng.standard_normal(d))[:, None] * X)
        self.rows = torch.from_numpy(np.stack(rows))
        self.best: dict[str, Tensor] = {}
        self.lam_exact: dict[str, Tensor] = {}
        self.exact: dict[str, Tensor] = {}
        with clock("exact solvers"):
            for norm in NORMS:
                fitted = [exactly(own, norm) for own in rows]
                self.exact[norm] = torch.stack([torch.from_numpy(f.coef_) for f in fitted])
                self.best[NORMS[norm]] = torch.tensor(
                    [[f.robust_radius_] for f in fitted], dtype=torch.float64
                )
                self.lam_exact[norm] = torch.tensor([f.lam_exact_ for f in fitted])
        self.clock = clock

    def classifiers(self, steps: int, course: list[Row]) -> Iterator[tuple[str, str, Tensor]]:
        """Of each method its name, the attack that it should withstand, w [seeds, settings, d]."""
        for norm, attack in NORMS.items():
            yield f"exact, {norm}", attack, self.exact[norm]
        for name, norm, rule in (
            ("coordinate descent", "l1", "normalised"),
            ("gradient descent", "l2", "normalised"),
            ("gradient descent, line search", "l2", "armijo"),
            ("sign descent", "linf", "normalised"),
            ("convolutional network", "fourier-l1", "normalised"),
        ):
            with self.clock("optimisers" if norm != "fourier-l1" else "convolutional network"):
                w = self.descended(name, norm, rule, steps, course)
            yield name, NORMS[norm], w
        for norm, attack in NORMS.items():
            with self.clock("regularisers"):
                logistic, hinge = (
                    solve(self.rows, norm, LAMS).w for solve in (shrink, primal_dual)
                )
            yield f"{norm}, logistic", attack, logistic
            yield f"{norm}, hinge", attack, hinge
        for attack in NORMS.values():
            with self.clock("adversarial training"):
                trained = self.trained(attack, [TRAINED], steps)
            yield f"adversarial, {attack}", attack, trained

    def descended(self, name: str, norm: str, rule: Any, steps: int, course: list[Row]) -> Tensor:
        record = [step for step in COURSE if step < steps]
        if norm == "fourier-l1":
            start = torch.stack([initial_filters(self.d, 2, seed=s).flatten() for s in self.seeds])
            risk: Any = convolution_risk(self.rows)
        else:
            start, risk = self.rows.new_zeros(len(self.seeds), self.d), linear_risk(self.rows)
        went = descend(
            risk, start, "l2" if norm == "fourier-l1" else norm, steps=steps, rule=rule,
            lr=LONGEST if rule == "armijo" else RATES, record=record, margin_norm=norm,
        )  # fmt: skip
        shares = (went.margins / self.best[NORMS[norm]]).nan_to_num(nan=-torch.inf)
        for step, share in zip(went.recorded, shares.amax(-1), strict=True):
            for seed, one in zip(self.seeds, share.tolist(), strict=True):
                known = {"method": name, "d/n": self.ratio, "seed": seed, "steps": step}
                course.append({**known, "gap": f"{1 - one:.3e}"})
        return went.w

    def measured(self, name: str, matches: str, w: Tensor, clock: Clock) -> Iterator[Row]:
        """What it withstands of every attack with the setting that is best there, measured twice.

        ``share_own`` is that of the setting which is best for the attack that it should withstand.
        """
        own = radius(w, self.rows, matches).nan_to_num(nan=-torch.inf).argmax(-1, keepdim=True)
        for attack in NORMS.values():
            with clock("attacks"):
                radii = radius(w, self.rows, attack).nan_to_num(nan=-torch.inf)
                place = radii.argmax(-1, keepdim=True)
                chosen = w.gather(1, place.unsqueeze(-1).expand(-1, -1, self.d))
                attacked = radius_by_attack(chosen, self.rows, attack, tol=1e-5)
            for s, seed in enumerate(self.seeds):
                best = self.best[attack][s].item()
                at_own = radii[s, own[s]].item() / best
                yield {
                    "attack": attack, "d/n": self.ratio, "seed": seed, "method": name,
                    "matches": int(matches == attack), "setting": place[s].item(),
                    "eps": f"{radii[s, place[s]].item():.6g}",
                    "eps_by_attack": f"{attacked[s, 0].item():.6g}",
                    "eps_star": f"{best:.6g}", "share": f"{radii[s, place[s]].item() / best:.5f}",
                    "share_own": f"{at_own:.5f}",
                }  # fmt: skip

    def trained(self, attack: str, factors: list[float], steps: int) -> Tensor:
        eps = self.best[attack] * torch.tensor(factors, dtype=torch.float64)
        return train_adversarially(self.rows, attack, eps, steps=min(steps, TRAINING_STEPS)).w

    def swept_radius(self, steps: int) -> Iterator[Row]:
        """Fig. 5.4a: adversarial training with radii around eps*."""
        for attack, best in self.best.items():
            shares = radius(self.trained(attack, SWEPT, steps), self.rows, attack) / best
            for seed, own in zip(self.seeds, shares.tolist(), strict=True):
                for k, share in zip(SWEPT, own, strict=True):
                    known = {"figure": "a", "attack": attack, "seed": seed, "loss": "exponential"}
                    yield {**known, "value": f"{k:.2f}", "share": f"{share:.5f}"}

    def swept_lam(self) -> Iterator[Row]:
        """Fig. 5.4b: regularisation."""
        for norm, attack in NORMS.items():
            lams = np.geomspace(1e-7, 100, 55).tolist()
            for loss, w in (
                ("logistic", shrink(self.rows, norm, lams).w),
                ("hinge", primal_dual(self.rows, norm, lams).w),
            ):
                share = radius(w, self.rows, attack) / self.best[attack]
                for s, seed in enumerate(self.seeds):
                    for lam, one in zip(lams, share[s].tolist(), strict=True):
                        known = {"figure": "b", "attack": attack, "seed": seed, "loss": loss}
                        yield {**known, "value": f"{lam:.4g}", "share": f"{one:.5f}"}


def exactly(rows: np.ndarray, norm: str) -> MaxMarginClassifier:
    """Of signed rows: without a bias (x, y) and (-x, -y) are the same, and any signs will do."""
    y = np.where(np.arange(len(rows)) % 2, 1.0, -1.0)
    return MaxMarginClassifier(norm, fit_intercept=False, tol=1e-9).fit(y[:, None] * rows, y)


if __name__ == "__main__":
    main()
