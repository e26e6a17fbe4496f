"""Pictures of a run: the loss, what the adversary did, and what it did to each concept.

They are drawn from the rows of metrics.jsonl, without the model and the data; those of a clustering
from it and its images, and the noise of gradients from the rows of a VarianceRecorder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ._files import read_rows
from .clustering.recorder import read_recording
from .data.image_sets import as_float
from .robust.concepts import slow_phase_divisor, variance_gain

if TYPE_CHECKING:
    from .clustering import GradientClustering
    from .data import ImageSet

History = Sequence[Mapping[str, Any]]

_GRID = 8  # clusters, and examples of each, that are shown
_DECADES = 4  # of a variance that are shown: right after a snapshot, SVRG's is rounding alone
_ACROSS = 4  # panels beside each other
_NAMED = 5  # lines of q that are named where there are too many for a legend


def plot_runs(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[Path]:
    """:func:`plot_histories` of runs on disk: their folders, or files of metrics.jsonl themselves.

    Where runs have a variance.jsonl beside it, :func:`plot_variances` of these.
    """
    if not runs:
        raise ValueError("runs: give at least one folder of a run")
    files = [Path(run) if Path(run).is_file() else Path(run) / "metrics.jsonl" for run in runs]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):  # of the same name in several places
        names = [str(file.parent) for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"runs: the same run is given twice: {', '.join(map(str, runs))}")
    drawn = plot_histories({n: read_history(f) for n, f in zip(names, files, strict=True)}, out)
    recorded = {n: f.with_name("variance.jsonl") for n, f in zip(names, files, strict=True)}
    recordings = {n: read_recording(f) for n, f in recorded.items() if f.is_file()}
    return drawn + (plot_variances(recordings, out) if recordings else [])


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. FileNotFoundError without it, ValueError naming a bad line."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: no run, or none of its epochs is over yet")
    rows = read_rows(file, ("epoch", "loss", "q"), of="a run")
    if not rows:
        raise ValueError(f"{file} is empty: none of the run's epochs is over yet")
    return rows


def plot_histories(histories: Mapping[str, History], out: str | os.PathLike[str]) -> list[Path]:
    """Pictures of one or several runs, by name, in folder ``out``; returns what was drawn.

    - loss.png and q.png, over the epochs
    - accuracy.png (average and worst concept, over the epochs), error.png (as in Figure 3) and
      concept_accuracy.png (of the last epoch), where all runs have a validation set
    - h.png, where a run moves q as HRRL does: h(s) of Proposition 1, with the run's s and c

    A history is what :class:`hrrl_ext.training.TrainingResult` holds, or the rows of metrics.jsonl.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    drawn = [_loss(histories, out / "loss.png"), _q(histories, out / "q.png")]
    if all("concept_accuracy" in rows[-1] for rows in histories.values()):
        drawn.append(_accuracy(histories, out / "accuracy.png"))
        drawn.append(plot_errors({"": histories}, out / "error.png"))
        drawn.append(_concept_accuracy(histories, out / "concept_accuracy.png"))
    adversaries = {name: rows for name, rows in histories.items() if _has_slow_phase(rows)}
    if adversaries:
        drawn.append(_h(adversaries, out / "h.png"))
    return drawn


def plot_errors(panels: Mapping[str, Mapping[str, History]], path: str | os.PathLike[str]) -> Path:
    """The picture of Figure 3: a panel per task, or method, by name; in it a line of error per run.

    The numbers are those of :func:`hrrl_ext.transfer.error_curve`; ValueError, as there, for a run
    without a validation set.
    """
    from .transfer import error_curve

    figure, axes = _axes(len(panels), width=4.2)
    for ax, (title, histories) in zip(axes, panels.items(), strict=True):
        error_curve(histories)  # refuses what has no error
        for name, rows in histories.items():
            _over_epochs(ax, rows, [100 * (1 - row["accuracy"]) for row in rows], label=name)
        ax.set(title=title, xlabel="epoch")
    axes[0].set(ylabel="error on the validation set, %")
    axes[-1].legend(fontsize="small")
    return _save(figure, Path(path))


def _axes(count: int, width: float = 5.0, *, sharey: bool = True) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'hrrl_ext[plots]'") from error
    columns = min(count, _ACROSS)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path


def _over_epochs(axes: Any, rows: History, values: Sequence[float | None], **style: Any) -> Any:
    """A line; a single epoch, or one between two without a value, still shows."""
    marker = "o" if len(rows) == 1 else None
    (line,) = axes.plot(
        [row["epoch"] for row in rows],
        [math.nan if value is None else value for value in values],
        marker=marker,
        **style,
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    return line


def _loss(histories: Mapping[str, History], path: Path) -> Path:
    figure, (axes,) = _axes(1)
    for name, rows in histories.items():
        _over_epochs(axes, rows, [row["loss"] for row in rows], label=name)
    axes.set(xlabel="epoch", ylabel="mean loss of the training examples")
    axes.legend(fontsize="small")
    return _save(figure, path)


def _q(histories: Mapping[str, History], path: Path) -> Path:
    """A panel per run, a line per concept; of many concepts only those that end largest are named.

    A concept that was found while training has a line over the epochs that had it.
    """
    all_of = {
        n: list(dict.fromkeys(k for r in rows for k in r["q"])) for n, rows in histories.items()
    }
    few = all(len(concepts) <= 10 for concepts in all_of.values())
    figure, panels = _axes(len(histories), width=4.2 if few else 5.5)
    for axes, (name, rows) in zip(panels, histories.items(), strict=True):
        last = rows[-1]["q"]
        named = all_of[name] if few else sorted(last, key=lambda k: -last[k])[:_NAMED]
        for concept in sorted(all_of[name], key=named.__contains__):  # the others behind
            style = (
                {"color": f"C{named.index(concept)}", "linewidth": 1.4}
                if concept in named
                else {"color": "0.82", "linewidth": 0.8}
            )
            _over_epochs(
                axes, rows, [row["q"].get(concept) for row in rows], label=concept, **style
            )
        axes.set(title=name, xlabel="epoch")
    panels[0].set(ylabel="q", ylim=(0, None))  # shared, and only now known
    if few:
        panels[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        for axes, rows in zip(panels, histories.values(), strict=True):
            _name_largest(axes, rows[-1]["q"])
    return _save(figure, path)


def _name_largest(axes: Any, q: Mapping[str, float]) -> None:
    """At the right edge, from the top down, each at its line or as far below it as the text needs."""
    low, high = axes.get_ylim()
    height, above = 0.05 * (high - low), math.inf
    for number, concept in enumerate(sorted(q, key=lambda k: -q[k])[:_NAMED]):
        above = min(q[concept], above - height)
        axes.annotate(
            concept,
            (1.0, above),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color=f"C{number}",
            annotation_clip=False,
        )


def _accuracy(histories: Mapping[str, History], path: Path) -> Path:
    figure, (axes,) = _axes(1, width=6.0)
    for name, rows in histories.items():
        average = [100 * row["accuracy"] for row in rows]
        worst = [100 * row["worst_concept_accuracy"] for row in rows]
        line = _over_epochs(axes, rows, average, label=f"{name}, average")
        style = {"color": line.get_color(), "linestyle": "--"}
        _over_epochs(axes, rows, worst, label=f"{name}, worst concept", **style)
    axes.set(xlabel="epoch", ylabel="accuracy on the validation set, %", ylim=(0, None))
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(figure, path)


def _concept_accuracy(histories: Mapping[str, History], path: Path) -> Path:
    """Concepts from hard to easy by the first run, as in Figure 5 of the paper."""
    first = next(iter(histories.values()))[-1]["concept_accuracy"]
    order = sorted((k for k in first if first[k] is not None), key=lambda k: first[k])
    figure, (axes,) = _axes(1, width=max(5.0, 2.0 + 0.3 * len(order)))
    for name, rows in histories.items():
        accuracy = {k: v for k, v in rows[-1]["concept_accuracy"].items() if v is not None}
        values = [100 * accuracy.get(k, math.nan) for k in order]
        axes.plot(range(len(order)), values, marker="o", label=name)
    axes.set_xticks(range(len(order)), order, rotation=45, ha="right", fontsize="small")
    axes.set(ylabel="accuracy, %", title="validation set, last epoch")
    axes.legend(fontsize="small")
    return _save(figure, path)


# --- h(s)


def _has_slow_phase(rows: History) -> bool:
    return {"mu", "lam", "s", "c"} <= rows[-1].keys() and rows[-1]["s"] > 1


def _h(histories: Mapping[str, History], path: Path) -> Path:
    """h over s as in Figure 2 of the paper: for the measured μ, and for the one that c and s imply."""
    figure, panels = _axes(len(histories), width=5.5, sharey=False)
    for axes, (name, rows) in zip(panels, histories.items(), strict=True):
        _h_of_run(axes, rows)
        lam, s, c = (rows[-1][key] for key in ("lam", "s", "c"))
        axes.set(
            title=f"{name}: λ = {lam:g}, s = {s}, c = {c:.3g}", xlabel="s, slow first steps of q"
        )
        axes.legend(fontsize="x-small", loc="lower left")
    panels[0].set(ylabel="h(s), gain of the slow steps")
    return _save(figure, path)


def _h_of_run(axes: Any, rows: History) -> None:
    lam, s, c = (rows[-1][key] for key in ("lam", "s", "c"))
    measured = max(row["mu"] for row in rows if "mu" in row)  # μ bounds ‖ĝ‖
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


# --- gradients


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
    figure, panels = _axes(2 * len(recordings), sharey=False)
    for number, (name, rows) in enumerate(recordings.items()):
        average, normalised = panels[2 * number : 2 * number + 2]
        for estimator in dict.fromkeys(row["estimator"] for row in rows):
            own = [row for row in rows if row["estimator"] == estimator]
            _variance(average, own, "average_variance", estimator)
            _variance(normalised, own, "normalised_variance", estimator)
        average.set(title=name, ylabel="average variance")
        normalised.set(title=name, ylabel="normalised variance, V[g]/E[‖g‖²]")
        for axes in (average, normalised):
            _logarithmic(axes)
            axes.set_xlabel("step")
        normalised.legend(fontsize="small")
    return [_save(figure, out / "variance.png")]


def _variance(axes: Any, rows: History, column: str, estimator: str) -> None:
    steps = [row["step"] for row in rows]
    values = [math.nan if row[column] is None else row[column] for row in rows]
    marker = "o" if len(rows) == 1 else None
    (line,) = axes.plot(steps, values, label=estimator, marker=marker)
    if column == "average_variance":
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
    figure, (axes,) = _axes(1)
    axes.bar(range(1, len(size) + 1), size, width=0.9)
    equal = sum(size) / len(size)
    axes.axhline(equal, color="0.4", linewidth=0.8, linestyle=":", label=f"N/K = {equal:.4g}")
    axes.set(xlabel="cluster, from the largest on", ylabel="examples")
    axes.legend(fontsize="small")
    return _save(figure, path)


def _rounds(clustering: GradientClustering, path: Path) -> Path:
    rows = clustering.history
    figure, (objective, explained) = _axes(2, sharey=False)
    marker = "o" if len(rows) == 1 else None
    rounds = [row["round"] for row in rows]
    objective.plot(rounds, [row["objective"] for row in rows], marker=marker)
    objective.set(ylabel="objective" + (", Eq. 4.2 over N²" if clustering.weighted else ""))
    explained.plot(rounds, [100 * row["explained"] for row in rows], marker=marker)
    explained.set(ylabel="of the gradients' squares explained, %")
    for axes in (objective, explained):
        axes.set(xlabel="round")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _save(figure, path)


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
        shown = as_float(images.__getitems__(nearest)[0]).permute(0, 2, 3, 1)
        for column, image in enumerate(shown):
            top, left = row * (height + 1), column * (width + 1)
            grid[top : top + height, left : left + width] = image
    figure, (axes,) = _axes(1)
    figure.set_size_inches(6, 0.4 + 0.65 * len(largest) * height / width)
    axes.imshow(grid.numpy(), interpolation="nearest")
    middle = [row * (height + 1) + height / 2 for row in range(len(largest))]
    axes.set_yticks(middle, [f"{k} ({int(size[k])})" for k in largest], fontsize="small")
    axes.set_xticks([])
    axes.set(ylabel="cluster (its examples)", xlabel="from the nearest to the centre on")
    return _save(figure, path)
