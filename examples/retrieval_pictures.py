"""The pictures of the page of examples/retrieval_evidence.py."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
from retrieval_rows import (
    BINS,
    BY_QUEUE,
    CURVES,
    MEASURES,
    Rows,
    curves,
    epochs_looked_at,
    in_common,
    interval,
    negatives,
    of_hardest,
    of_splits,
    set_size,
    values,
)

from hrrl_ext.plots.figures import panels_of, save, shown


def draw_curves(rows: Rows, path: Path) -> None:
    """Fig. 3.2: rsum by epoch, each split thin, and their mean."""
    figure, (axes,) = panels_of(1, width=6.0)
    for number, name in enumerate(CURVES):
        of = list(curves(rows, name).values())
        for curve in of:
            axes.plot(
                range(1, len(curve) + 1), curve, color=f"C{number}", alpha=0.15, linewidth=0.7
            )
        if of:
            mean = np.mean(of, axis=0)
            axes.plot(range(1, len(mean) + 1), mean, color=f"C{number}", label=shown(name))
    axes.set(xlabel="epoch", ylabel="rsum on validation pairs")
    axes.legend()
    save(figure, path)


def draw_negatives(rows: Rows, path: Path) -> None:
    """Fig. 3.6: recall at 1 and rsum by the size of the set of negatives, SH's as a line."""
    figure, panels = panels_of(2, sharey=False)
    ways = {"-": ([n for n in negatives(rows) if not n.endswith(BY_QUEUE)], rows)}
    by_queue = [n for n in negatives(rows) if n.endswith(BY_QUEUE)]
    if by_queue and (shared := in_common(rows)):
        ways[":"] = (["VSE++", *by_queue], shared)
    for axes, measures in zip(panels, (("i2t_r1", "t2i_r1"), ("rsum",)), strict=True):
        for number, measure in enumerate(measures):
            for line, (names, of) in ways.items():
                found = [(set_size(n), *interval(of_splits(values(of, n, measure)))) for n in names]
                size, mean, half = zip(*found, strict=True)
                label = MEASURES[measure] + BY_QUEUE * (line == ":")
                style = {"marker": "o", "capsize": 2, "color": f"C{number}", "linestyle": line}
                error = None if any(map(math.isnan, half)) else half
                axes.errorbar(size, mean, yerr=error, label=label, **style)
            level = statistics.fmean(of_splits(values(rows, "SH", measure)))
            axes.axhline(level, color=f"C{number}", linestyle="--", label="SH")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="size of the set of negatives", ylabel="on test pairs")
        axes.legend(fontsize="small")
    save(figure, path)


def draw_distances(rows: Rows, path: Path) -> None:
    """Fig. 3.5: distances of the hardest negatives, of all trials together."""
    epochs = epochs_looked_at(rows)
    figure, panels = panels_of(len(epochs))
    for axes, epoch in zip(panels, epochs, strict=True):
        for name in CURVES[:2]:
            counts = list(of_hardest(rows, name, epoch, "count").values())
            total = np.sum(counts, axis=0)
            axes.stairs(total / total.sum() / np.diff(BINS), BINS, label=shown(name))
        axes.set(title=f"epoch {epoch}", xlabel="1 − cosine to the hardest negative", xlim=(0, 1.2))
        axes.legend()
    panels[0].set_ylabel("density")
    save(figure, path)
