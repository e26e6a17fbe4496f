"""The demo's picture: what each level gains over plain training, and hidden groups seed by seed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plots.figures import panels_of, save
from ..transfer.study import Difference
from .groups import WAYS
from .levels import MEASURES


def draw(
    levels: Mapping[str, Mapping[str, Difference]],
    groups: Mapping[str, Sequence[float]],
    path: Path,
) -> Path:
    """Differences to plain training by method and measure; worst groups by way, of each seed."""
    figure, (left, right) = panels_of(2, width=5.6, sharey=False)
    _levels(left, levels)
    _groups(right, groups)
    return save(figure, path)


def _levels(axes: Any, levels: Mapping[str, Mapping[str, Difference]]) -> None:
    for number, (method, of) in enumerate(levels.items()):
        y = [place + 0.2 * (number - (len(levels) - 1) / 2) for place in range(len(MEASURES))]
        means = [100 * of[name].mean for name in MEASURES]
        halves = [100 * (of[name].high - of[name].mean) for name in MEASURES]  # NaN of one seed
        bars = None if any(map(math.isnan, halves)) else halves
        axes.errorbar(means, y, xerr=bars, fmt="o", markersize=4, capsize=2, label=method)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(MEASURES)), list(MEASURES.values()), fontsize="small")
    axes.invert_yaxis()
    axes.set(
        xlabel="points above plain training (95 % interval)", title="digits, some of them rare"
    )
    axes.legend(fontsize="small")


def _groups(axes: Any, groups: Mapping[str, Sequence[float]]) -> None:
    of_seeds = zip(*(groups[name] for name in WAYS), strict=True)
    for values in of_seeds:
        axes.plot(range(len(WAYS)), [100 * v for v in values], "o-", color="C0", alpha=0.5)
    names = [textwrap.fill(what, 20) for what in WAYS.values()]
    axes.set_xticks(range(len(WAYS)), names, fontsize="small")
    axes.set_xlim(-0.4, len(WAYS) - 0.6)
    axes.set(ylabel="accuracy of the worst group, %", ylim=(0, 100), title="hidden groups, by seed")
