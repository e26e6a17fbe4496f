"""Pictures of a run: the loss, what the adversary did, and what it did to each concept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

History = Sequence[Mapping[str, Any]]


def plot_histories(histories: Mapping[str, History], out: str | os.PathLike[str]) -> list[Path]:
    """loss.png, q.png and concept_accuracy.png of one or several runs, by name, in folder ``out``.

    A history is what :class:`hrrl_ext.training.TrainingResult` holds, or the rows of metrics.jsonl.
    Returns what was drawn: without validation images there is no accuracy per concept.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    drawn = [_loss(histories, out / "loss.png"), _q(histories, out / "q.png")]
    if all("concept_accuracy" in rows[-1] for rows in histories.values()):
        drawn.append(_concept_accuracy(histories, out / "concept_accuracy.png"))
    return drawn


def _axes(count: int, width: float = 5.0) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'hrrl_ext[plots]'") from error
    figure = Figure(figsize=(width * count, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True)[0])


def _loss(histories: Mapping[str, History], path: Path) -> Path:
    figure, (axes,) = _axes(1)
    for name, rows in histories.items():
        axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], label=name)
    axes.set(xlabel="epoch", ylabel="mean loss of the (perturbed) examples")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def _q(histories: Mapping[str, History], path: Path) -> Path:
    """A panel per run, a line per concept; the concept that ends with the largest q is named."""
    figure, panels = _axes(len(histories), width=3.6)
    for axes, (name, rows) in zip(panels, histories.items(), strict=True):
        epochs, last = [row["epoch"] for row in rows], rows[-1]["q"]
        for concept in last:
            axes.plot(epochs, [row["q"][concept] for row in rows], label=concept)
        largest = max(last, key=lambda k: last[k])
        axes.annotate(
            largest, (epochs[-1], last[largest]), ha="right", va="bottom", fontsize="small"
        )
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set(ylabel="q", ylim=(0, None))  # shared, and only now known
    if len(last) <= 12:
        panels[-1].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    return path


def _concept_accuracy(histories: Mapping[str, History], path: Path) -> Path:
    """Concepts from hard to easy by the first run, as in Figure 5 of the paper."""
    figure, (axes,) = _axes(1, width=7.0)
    first = next(iter(histories.values()))[-1]["concept_accuracy"]
    order = sorted((k for k in first if first[k] is not None), key=lambda k: first[k])
    for name, rows in histories.items():
        accuracy = rows[-1]["concept_accuracy"]
        axes.plot(range(len(order)), [100 * accuracy[k] for k in order], marker="o", label=name)
    axes.set_xticks(range(len(order)), order, rotation=45, ha="right", fontsize="small")
    axes.set(ylabel="accuracy, %")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
