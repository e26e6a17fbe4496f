"""What the adversary on the concepts did: q over the epochs, and the gain of its slow first steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..concept_weights import slow_phase_divisor, variance_gain
from .figures import History, over_epochs, panels_of, save, shown

_NAMED = 5  # lines of q that are named where there are too many for a legend


def plot_q(histories: Mapping[str, History], path: Path) -> Path:
    """A panel per run, a line per concept; of many concepts only those that end largest are named.

    A concept that was found while training has a line over the epochs that had it.
    """
    of_runs = {
        name: [{k: v for k, v in (row.get("q") or {}).items() if v is not None} for row in rows]
        for name, rows in histories.items()
    }
    all_of = {name: list(dict.fromkeys(k for q in of for k in q)) for name, of in of_runs.items()}
    last_of = {name: next(q for q in reversed(of) if q) for name, of in of_runs.items()}
    few = all(len(concepts) <= 10 for concepts in all_of.values())
    figure, panels = panels_of(len(histories), width=4.2 if few else 5.5)
    for axes, (name, rows) in zip(panels, histories.items(), strict=True):
        named = all_of[name] if few else _largest(last_of[name])
        for concept in sorted(all_of[name], key=named.__contains__):  # the others behind
            style = (
                {"color": f"C{named.index(concept)}", "linewidth": 1.4}
                if concept in named
                else {"color": "0.82", "linewidth": 0.8}
            )
            values = [q.get(concept) for q in of_runs[name]]
            over_epochs(axes, rows, values, label=shown(concept), **style)
        axes.set(title=shown(name), xlabel="epoch")
    panels[0].set(ylabel="q", ylim=(0, None))  # shared, and only now known
    if few:
        panels[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        for axes, q in zip(panels, last_of.values(), strict=True):
            _name_largest(axes, q)
    return save(figure, path)


def _largest(q: Mapping[str, float]) -> list[str]:
    return sorted(q, key=lambda k: -q[k])[:_NAMED]


def _name_largest(axes: Any, q: Mapping[str, float]) -> None:
    """At the right edge, from the top down, each at its line or as far below it as the text needs."""
    low, high = axes.get_ylim()
    height, above = 0.05 * (high - low), math.inf
    for number, concept in enumerate(_largest(q)):
        above = min(q[concept], above - height)
        axes.annotate(
            shown(concept),
            (1.0, above),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color=f"C{number}",
            annotation_clip=False,
        )


# --- h(s)


def has_slow_phase(rows: History) -> bool:
    last = rows[-1]
    return all(last.get(key) is not None for key in ("mu", "lam", "s", "c")) and last["s"] > 1


def plot_h(histories: Mapping[str, History], path: Path) -> Path:
    """h over s as in Figure 2 of the paper: for the measured μ, and for the one that c and s imply."""
    figure, panels = panels_of(len(histories), width=5.5, sharey=False)
    for axes, (name, rows) in zip(panels, histories.items(), strict=True):
        _h_of_run(axes, rows)
        lam, s, c = (rows[-1][key] for key in ("lam", "s", "c"))
        axes.set(
            title=f"{shown(name)}: λ = {lam:g}, s = {s}, c = {c:.3g}",
            xlabel="s, slow first steps of q",
        )
        axes.legend(fontsize="x-small", loc="lower left")
    panels[0].set(ylabel="h(s), gain of the slow steps")
    return save(figure, path)


def _h_of_run(axes: Any, rows: History) -> None:
    lam, s, c = (rows[-1][key] for key in ("lam", "s", "c"))
    measured = max(row["mu"] for row in rows if row.get("mu") is not None)  # μ bounds ‖ĝ‖
    best = slow_phase_divisor(s, measured, lam)
    curves = {f"measured μ = {measured:.3g} (best c at s: {best:.3g})": measured}
    if c > 1:
        implied = c * lam * math.sqrt(2 * s / math.log(s))  # the μ whose best c at s is this one
        curves[f"μ = {implied:.3g}, for which c = {c:.3g} is best"] = implied
    steps = [10 ** (i / 50) for i in range(50 * math.ceil(math.log10(s) + 1) + 1)]
    top = 3 * math.sqrt(lam)  # h(1) = -√λ, whatever μ
    for label, mu in curves.items():
        h = [variance_gain(t, mu, lam) for t in steps]
        top = max(top, *h)
        (line,) = axes.plot(steps, h, label=label)
        axes.plot([s], [variance_gain(s, mu, lam)], "o", color=line.get_color())
    axes.axvline(s, color="0.6", linewidth=0.8, linestyle=":", label=f"this run's s = {s}")
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(-0.6 * top, 1.15 * top)  # how far it falls below 0 does not matter
