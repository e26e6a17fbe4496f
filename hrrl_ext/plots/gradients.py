"""Pictures of gradients: what clustering found among them, and how noisy estimators of their mean are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.image_sets import as_float, as_picture
from .figures import History, column, line_over, panels_of, save, shown

if TYPE_CHECKING:
    from ..clustering import GradientClustering
    from ..data import ImageSet

_GRID = 8  # clusters, and examples of each, that are shown
_DECADES = 4  # of a variance that are shown: right after a snapshot, SVRG's is rounding alone


def plot_clusters(
    clustering: GradientClustering,
    out: str | os.PathLike[str],
    images: ImageSet | None = None,
) -> list[Path]:
    """Pictures of a clustering that was fitted, in folder ``out``; returns what was drawn.

    - sizes.png: N_k, from the largest on, beside equal sizes
    - rounds.png: the objective, and the share of the gradients that the centres explain, over rounds
    - examples.png, given the images that were clustered: those nearest to the centres of the largest
      clusters
    """
    if not clustering.history:
        raise ValueError("clustering has no rounds yet; call fit first")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    drawn = [_sizes(clustering, out / "sizes.png"), _rounds(clustering, out / "rounds.png")]
    if images is not None:
        drawn.append(_examples(clustering, images, out / "examples.png"))
    return drawn


def plot_variances(recordings: Mapping[str, History], out: str | os.PathLike[str]) -> list[Path]:
    """variance.png in folder ``out``: what a VarianceRecorder has recorded, by name of the run.

    Average and normalised variance over steps, a line per estimator; bands of ± one standard error, which
    is known of the average variance. Logarithmic; what is below 1e-4 of the largest is out of sight.
    """
    if not recordings or not all(recordings.values()):
        raise ValueError("recordings: nothing has been recorded yet")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    figure, panels = panels_of(2 * len(recordings), sharey=False)
    for number, (name, rows) in enumerate(recordings.items()):
        average, normalised = panels[2 * number : 2 * number + 2]
        for estimator in dict.fromkeys(row["estimator"] for row in rows):
            own = [row for row in rows if row["estimator"] == estimator]
            _variance(average, own, "average_variance", estimator)
            _variance(normalised, own, "normalised_variance", estimator)
        average.set(title=shown(name), ylabel="average variance")
        normalised.set(title=shown(name), ylabel="normalised variance, V[g]/E[‖g‖²]")
        for axes in (average, normalised):
            _logarithmic(axes)
            axes.set_xlabel("step")
        normalised.legend(fontsize="small")
    return [save(figure, out / "variance.png")]


def _variance(axes: Any, rows: History, name: str, estimator: str) -> None:
    steps, values = [row["step"] for row in rows], column(rows, name)
    line = line_over(axes, steps, values, label=shown(estimator))
    if name == "average_variance":
        error = [row.get("standard_error") or 0.0 for row in rows]
        low, high = ([v + sign * e for v, e in zip(values, error, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.25, linewidth=0)


def _logarithmic(axes: Any) -> None:
    values = [v for line in axes.lines for v in line.get_ydata() if v > 0]
    if values:  # else all are 0, or none is a number
        axes.set_yscale("log", nonpositive="clip")
        low, high = min(values), max(values)
        axes.set_ylim(max(low, high * 10**-_DECADES) / 1.5, 1.5 * high)


def _sizes(clustering: GradientClustering, path: Path) -> Path:
    size = clustering.cluster_size.sort(descending=True).values.tolist()
    figure, (axes,) = panels_of(1)
    axes.bar(range(1, len(size) + 1), size, width=0.9)
    equal = sum(size) / len(size)
    axes.axhline(equal, color="0.4", linewidth=0.8, linestyle=":", label=f"N/K = {equal:.4g}")
    axes.set(xlabel="cluster, from the largest on", ylabel="examples")
    axes.legend(fontsize="small")
    return save(figure, path)


def _rounds(clustering: GradientClustering, path: Path) -> Path:
    rows = clustering.history
    figure, (objective, explained) = panels_of(2, sharey=False)
    rounds = [row["round"] for row in rows]
    line_over(objective, rounds, column(rows, "objective"))
    objective.set(ylabel="objective" + (", Eq. 4.2 over N²" if clustering.weighted else ""))
    line_over(explained, rounds, column(rows, "explained", 100))
    explained.set(ylabel="of the gradients' squares explained, %")
    for axes in (objective, explained):
        axes.set(xlabel="round")
    return save(figure, path)


def _examples(clustering: GradientClustering, images: ImageSet, path: Path) -> Path:
    """A row per cluster, a single picture of them all."""
    if len(images) != len(clustering.assignment):
        raise ValueError(
            f"images are {len(images)}, and {len(clustering.assignment)} examples were clustered"
        )
    size = clustering.cluster_size
    order = size.argsort(descending=True, stable=True)[:_GRID].tolist()
    largest = [k for k in order if size[k] > 0]
    _, height, width = images.image_shape
    grid = torch.ones(len(largest) * (height + 1), _GRID * (width + 1), 3)
    for row, k in enumerate(largest):
        members = (clustering.assignment == k).nonzero().flatten()
        nearest = members[clustering.distance[members].argsort(stable=True)[:_GRID]]
        x = as_float(images.__getitems__(nearest)[0])
        pictures = as_picture(x).permute(0, 2, 3, 1)
        for place, image in enumerate(pictures):
            top, left = row * (height + 1), place * (width + 1)
            grid[top : top + height, left : left + width] = image
    figure, (axes,) = panels_of(1)
    figure.set_size_inches(6, 0.4 + 0.65 * len(largest) * height / width)
    axes.imshow(grid.numpy(), interpolation="nearest")
    middle = [row * (height + 1) + height / 2 for row in range(len(largest))]
    axes.set_yticks(middle, [f"{k} ({int(size[k])})" for k in largest], fontsize="small")
    axes.set_xticks([])
    axes.set(ylabel="cluster (its examples)", xlabel="from the nearest to the centre on")
    return save(figure, path)
