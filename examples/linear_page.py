"""Tables and pictures of examples/linear_robustness.py, from its rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hrrl_ext.plots.figures import panels_of, save

NORMS = {"l1": "linf", "l2": "l2", "linf": "l1", "fourier-l1": "fourier-linf"}
"""The norm of w that is least, and the attack that the classifier is robust to."""
Row = dict[str, Any]


# --- tables


def share_of(rows: list[Row], attack: str, method: str, ratio: int, column: str = "share") -> float:
    """The mean over the seeds."""
    return statistics.fmean(_by_seed(rows, attack, method, ratio, column))


def _by_seed(rows: list[Row], attack: str, method: str, ratio: int, column: str) -> list[float]:
    of = (attack, method, ratio)
    return [float(r[column]) for r in rows if (r["attack"], r["method"], r["d/n"]) == of]


def methods_of(rows: list[Row], attack: str, matching: bool) -> list[str]:
    """Without the exact solvers and adversarial training, which know eps*."""
    return list(
        dict.fromkeys(
            r["method"]
            for r in rows
            if r["attack"] == attack
            and r["matches"] == matching
            and not r["method"].startswith(("exact", "adversarial"))
        )
    )


def panels(rows: list[Row]) -> str:
    """A line per panel and matching method: its least share, the best of the others, and the verdict."""
    ratios = sorted({r["d/n"] for r in rows})
    ends = " to ".join(str(q) for q in dict.fromkeys((ratios[0], ratios[-1])))
    head = [
        "attack", "matching method", "its least share", f"best other, d/n {ends}", "its share",
        "best other with settings of its own", "confirmed",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | ---: | --- | ---: | ---: | --- |"]
    for attack in NORMS.values():
        others = methods_of(rows, attack, False)
        kind, strict = (
            {q: max((share_of(rows, attack, m, q, column), m) for m in others) for q in ratios}
            for column in ("share", "share_own")
        )
        for method in methods_of(rows, attack, True):
            own = {q: share_of(rows, attack, method, q) for q in ratios}
            faults = [
                verdict(own, {q: share for q, (share, _) in of.items()}) for of in (kind, strict)
            ]
            said = "yes" if not faults[0] else f"no: {', '.join(faults[0])}"
            if faults[0] and not faults[1]:
                said += "; yes with settings of their own"
            names, most, of_own = (
                " to ".join(
                    str(of[q][i]) if i else f"{of[q][0]:.3f}" for q in (ratios[0], ratios[-1])
                )
                for of, i in ((kind, 1), (kind, 0), (strict, 0))
            )
            lines.append(
                f"| {attack} | {method} | {min(own.values()):.4f} | {names} | {most} | {of_own} | "
                f"{said} |"
            )
    return "\n".join(lines)


def verdict(own: dict[int, float], others: dict[int, float]) -> list[str]:
    """What is missing to: 0.95 at least, more than any other, by a gap that grows with d/n."""
    gap = {q: own[q] - others[q] for q in own}
    return [
        fault
        for fault, found in (
            ("below 0.95", min(own.values()) < 0.95),
            ("another is as good", min(gap.values()) <= 0),
            ("the gap does not grow", len(gap) > 1 and gap[max(gap)] <= gap[min(gap)]),
        )
        if found
    ]


def shares(rows: list[Row]) -> str:
    """A table per attack: every method by d/n, mean ± standard deviation over the seeds."""
    ratios = sorted({r["d/n"] for r in rows})
    parts = []
    for attack in NORMS.values():
        methods = list(dict.fromkeys(r["method"] for r in rows))
        lines = [
            f"| {attack} attack | " + " | ".join(f"d/n {q}" for q in ratios) + " |",
            "| --- |" + " ---: |" * len(ratios),
        ]
        for method in methods:
            of = [_by_seed(rows, attack, method, q, "share") for q in ratios]
            cells = [
                f"{statistics.fmean(own):.3f}"
                + (f" ± {statistics.stdev(own):.3f}" if len(own) > 1 else "")
                for own in of
            ]
            bold = any(r["matches"] for r in rows if (r["method"], r["attack"]) == (method, attack))
            lines.append(f"| {f'**{method}**' if bold else method} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def speeds(course: list[Row]) -> str:
    """The gap to eps* by steps, the worst of the seeds."""
    steps, ratios = (sorted({r[key] for r in course}) for key in ("steps", "d/n"))
    lines = [
        "| method | steps | " + " | ".join(f"d/n {q}" for q in ratios) + " |",
        "| --- | ---: |" + " ---: |" * len(ratios),
    ]
    for method in dict.fromkeys(r["method"] for r in course):
        for step in steps:
            cells = [
                max(
                    float(r["gap"])
                    for r in course
                    if (r["method"], r["steps"], r["d/n"]) == (method, step, q)
                )
                for q in ratios
            ]
            lines.append(f"| {method} | {step:,} | " + " | ".join(f"{c:.1e}" for c in cells) + " |")
    return "\n".join(lines)


def agreement(rows: list[Row]) -> str:
    """How far the attack's radius is from the margin's, where that is positive."""
    off = [
        abs(float(r["eps_by_attack"]) / float(r["eps"]) - 1) for r in rows if float(r["eps"]) > 0
    ]
    most = max(float(r["share"]) for r in rows)
    return (
        f"Of {len(off)} radii the one by attack is at most {max(off):.1e} (relative) from the one by "
        f"margin. The largest share is {most:.5f}."
    )


# --- pictures

_STYLE = {
    "coordinate descent": ("C0", "-"), "gradient descent": ("C1", "-"),
    "gradient descent, line search": ("C1", "-."), "sign descent": ("C2", "-"),
    "convolutional network": ("C3", "-"), "l1, logistic": ("C0", "--"), "l2, logistic": ("C1", "--"),
    "linf, logistic": ("C2", "--"), "fourier-l1, logistic": ("C3", "--"), "l1, hinge": ("C0", ":"),
    "l2, hinge": ("C1", ":"), "linf, hinge": ("C2", ":"), "fourier-l1, hinge": ("C3", ":"),
}  # fmt: skip


def draw(rows: list[Row], out: Path) -> None:
    """Fig. 5.2, 5.3 by attack, B.1, B.2 by margin, as shares of eps*."""
    ratios = sorted({r["d/n"] for r in rows})
    for file, column in (("attack", "eps_by_attack"), ("margin", "eps")):
        figure, axes = panels_of(4, width=3.6, sharey=True)
        for ax, attack in zip(axes, NORMS.values(), strict=True):
            for method, (colour, line) in _STYLE.items():
                own = [r for r in rows if r["attack"] == attack and r["method"] == method]
                of = [
                    [float(r[column]) / float(r["eps_star"]) for r in own if r["d/n"] == q]
                    for q in ratios
                ]
                ax.plot(
                    ratios, [np.mean(one) for one in of], line, color=colour,
                    linewidth=2.2 if own[0]["matches"] else 1, label=method, marker=".",
                )  # fmt: skip
            ax.axhline(1, color="black", linewidth=0.6)
            ax.set_xscale("log", base=2)
            ax.set(title=f"{attack} attack", xlabel="d/n", ylim=(0, 1.05))
        axes[0].set_ylabel(f"largest eps by {file}, share of eps*")
        axes[-1].legend(fontsize="xx-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        save(figure, out / f"{file}.png")


def draw_sweep(sweep: list[Row], lam_exact: dict[str, Tensor], out: Path) -> None:
    """Fig. 5.4a over the radius of training, 5.4b over λ; up to the vertical lines the hinge is exact."""
    seeds = list(dict.fromkeys(r["seed"] for r in sweep))
    for figure_name, xlabel in (("a", "radius of training / eps*"), ("b", "λ")):
        figure, axes = panels_of(4, width=3.6, sharey=True)
        for ax, (norm, attack) in zip(axes, NORMS.items(), strict=True):
            own = [r for r in sweep if r["figure"] == figure_name and r["attack"] == attack]
            for loss, seed in dict.fromkeys((r["loss"], r["seed"]) for r in own):
                line = [r for r in own if (r["loss"], r["seed"]) == (loss, seed)]
                ax.plot(
                    [float(r["value"]) for r in line], [float(r["share"]) for r in line],
                    "--" if loss == "logistic" else "-", color=f"C{seeds.index(seed)}",
                    label=f"{loss}, seed {seed}",
                )  # fmt: skip
            ax.axhline(1, color="black", linewidth=0.6)
            if figure_name == "b":
                ax.set_xscale("log")
                for s, lam in enumerate(lam_exact[norm].tolist()):
                    ax.axvline(lam, color=f"C{s}", linewidth=0.6)
            ax.set(title=f"{attack} attack", xlabel=xlabel, ylim=(-0.2, 1.05))
        axes[0].set_ylabel("largest eps, share of eps*")
        axes[-1].legend(fontsize="x-small", loc="lower left")
        save(figure, out / f"sweep-{figure_name}.png")
