"""Pictures of a run: the loss, what the adversary did, and what it did to each concept.

Everything is drawn from the rows of metrics.jsonl, without the model and the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .robust.concepts import slow_phase_divisor, variance_gain

History = Sequence[Mapping[str, Any]]

_NAMED = 5  # lines of q that are named where there are too many for a legend


def plot_runs(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[Path]:
    """:func:`plot_histories` of runs on disk: their folders, or files of metrics.jsonl themselves."""
    if not runs:
        raise ValueError("runs: give at least one folder of a run")
    files = [Path(run) if Path(run).is_file() else Path(run) / "metrics.jsonl" for run in runs]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):  # of the same name in several places
        names = [str(file.parent) for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"runs: the same run is given twice: {', '.join(map(str, runs))}")
    return plot_histories({n: read_history(f) for n, f in zip(names, files, strict=True)}, out)


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. FileNotFoundError without it, ValueError naming a bad line."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: no run, or none of its epochs is over yet")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict) or not {"epoch", "loss", "q"} <= row.keys():
            raise ValueError(
                f"{file}, line {number} is no row of a run: epoch, loss and q belong there"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} is empty: none of the run's epochs is over yet")
    return rows


def plot_histories(histories: Mapping[str, History], out: str | os.PathLike[str]) -> list[Path]:
    """Pictures of one or several runs, by name, in folder ``out``; returns what was drawn.

    - loss.png and q.png, over the epochs
    - accuracy.png (average and worst concept, over the epochs) and concept_accuracy.png (of the last
      epoch), where all runs have a validation set
    - h.png, where a run moves q as HRRL does: h(s) of Proposition 1, with the run's s and c

    A history is what :class:`hrrl_ext.training.TrainingResult` holds, or the rows of metrics.jsonl.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    drawn = [_loss(histories, out / "loss.png"), _q(histories, out / "q.png")]
    if all("concept_accuracy" in rows[-1] for rows in histories.values()):
        drawn.append(_accuracy(histories, out / "accuracy.png"))
        drawn.append(_concept_accuracy(histories, out / "concept_accuracy.png"))
    adversaries = {name: rows for name, rows in histories.items() if _has_slow_phase(rows)}
    if adversaries:
        drawn.append(_h(adversaries, out / "h.png"))
    return drawn


def _axes(count: int, width: float = 5.0, *, sharey: bool = True) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'hrrl_ext[plots]'") from error
    figure = Figure(figsize=(width * count, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0])


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
