"""Pictures of runs, from the rows of their metrics: loss, accuracy and error, and the adversary's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._regular import regular
from .._shapes import number, record
from ..clustering.recorder import read_recording
from ..storage import read_rows
from .adversary import has_slow_phase, plot_h, plot_q
from .figures import History, column, of_run, over_epochs, panels_of, save, shown
from .gradients import plot_variances

_METRICS = "metrics.jsonl"
_NUMBERS = ("epoch", "loss", "accuracy", "worst_concept_accuracy", "mu", "lam", "s", "c")
_BY_CONCEPT = ("q", "concept_accuracy")


def plot_runs(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """:func:`plot_histories` of runs on disk: their folders, or files of metrics themselves.

    A run is called by its folder; one in a file of another name than metrics.jsonl by that. Where runs
    have a variance.jsonl beside their metrics.jsonl, :func:`plot_variances` of these.
    """
    if not runs:
        raise ValueError("runs: give at least one folder of a run")
    files = [Path(run) if regular(run).is_file() else Path(run) / _METRICS for run in runs]
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"runs: the same run is given twice: {', '.join(map(str, runs))}")
    named = dict(zip(_names(files), files, strict=True))
    histories = {name: read_history(file) for name, file in named.items()}
    recorded = {n: f.with_name("variance.jsonl") for n, f in named.items() if f.name == _METRICS}
    recordings = {n: read_recording(f) for n, f in recorded.items() if f.is_file()}
    drawn = plot_histories(histories, out, report=report)
    return drawn + (plot_variances(recordings, out) if recordings else [])


def _names(files: Sequence[Path]) -> list[str]:
    """Of different files: the last part of each path, or all of it where that is the same for some."""
    of_folder = [file.name == _METRICS for file in files]
    short = [
        f.resolve().parent.name if of else f.stem for f, of in zip(files, of_folder, strict=True)
    ]
    long = [str(f.parent if of else f) for f, of in zip(files, of_folder, strict=True)]
    return short if len(set(short)) == len(files) else long


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. FileNotFoundError without it, ValueError naming a bad line."""
    if not regular(file).is_file():
        raise FileNotFoundError(f"{file} does not exist: no run, or none of its epochs is over yet")
    try:
        rows = read_rows(
            file,
            ("epoch", "loss"),
            of="a run",
            numbers=_NUMBERS,
            named=_BY_CONCEPT,
            shape=record(epoch=number),
        )
    except ValueError as error:
        if not (file.parent / "checkpoints").is_dir():
            raise
        raise ValueError(
            f"{error}. The run's own command with --resume writes it anew, from its checkpoint"
        ) from error
    if not rows:
        raise ValueError(f"{file} is empty: none of the run's epochs is over yet")
    return rows


def plot_histories(
    histories: Mapping[str, History],
    out: str | os.PathLike[str],
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Pictures of one or several runs, by name, in folder ``out``; returns what was drawn.

    - loss.png and q.png, over the epochs
    - accuracy.png (average and worst concept, over the epochs), error.png (as in Figure 3) and
      concept_accuracy.png (of the last epoch), of runs with a validation set
    - h.png, where a run moves q as HRRL does: h(s) of Proposition 1, with the run's s and c

    A history is what :class:`hrrl_ext.training.TrainingResult` holds, or the rows of metrics.jsonl; those
    of another method may do without q and concepts. Each picture is of the runs that have its column,
    and ``report`` is told in a line of those that have not.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[str, Callable[[Mapping[str, History], Path], Path]]] = {
        "loss.png": ("loss", _loss),
        "q.png": ("q", plot_q),
        "accuracy.png": ("accuracy", _accuracy),
        "error.png": ("accuracy", lambda runs, path: plot_errors({"": runs}, path)),
        "concept_accuracy.png": ("concept_accuracy", _concept_accuracy),
    }
    drawn, without = [], []
    for file, (needed, draw) in pictures.items():
        having = {name: rows for name, rows in histories.items() if _has(rows, needed)}
        if having:
            drawn.append(draw(having, out / file))
        if lacking := [name for name in histories if name not in having]:
            of = f"{', '.join(lacking)} in " if having else ""
            without.append(f"{of}{file} (no {needed})")
    adversaries = {name: rows for name, rows in histories.items() if has_slow_phase(rows)}
    if adversaries:
        drawn.append(plot_h(adversaries, out / "h.png"))
    if without:
        report(f"left out: {'; '.join(without)}")
    return drawn


def _has(rows: History, name: str) -> bool:
    """A value of it in some row; of what belongs to concepts, of some concept."""
    values = (row.get(name) for row in rows)
    return any(
        any(v is not None for v in value.values())
        if isinstance(value, Mapping)
        else value is not None
        for value in values
    )


def plot_errors(panels: Mapping[str, Mapping[str, History]], path: str | os.PathLike[str]) -> Path:
    """The picture of Figure 3: a panel per task, or method, by name; in it a line of error per run.

    The numbers are those of :func:`hrrl_ext.transfer.error_curve`. ValueError for a run without a
    validation set.
    """
    figure, axes = panels_of(len(panels), width=4.2)
    for ax, (title, histories) in zip(axes, panels.items(), strict=True):
        for k, (name, rows) in enumerate(histories.items()):
            if not _has(rows, "accuracy"):
                raise ValueError(
                    f"plot_errors: {name} has no accuracy over epochs; train it with validation images"
                )
            error = [100 - accuracy for accuracy in column(rows, "accuracy", 100)]
            over_epochs(ax, rows, error, label=shown(name), **of_run(k))
        ax.set(title=shown(title), xlabel="epoch")
    axes[0].set(ylabel="error on the validation set, %")
    axes[-1].legend(fontsize="small")
    return save(figure, Path(path))


def _loss(histories: Mapping[str, History], path: Path) -> Path:
    figure, (axes,) = panels_of(1)
    for k, (name, rows) in enumerate(histories.items()):
        over_epochs(axes, rows, column(rows, "loss"), label=shown(name), **of_run(k))
    axes.set(xlabel="epoch", ylabel="mean loss of the training examples")
    axes.legend(fontsize="small")
    return save(figure, path)


def _accuracy(histories: Mapping[str, History], path: Path) -> Path:
    """The average, and the worst concept of the runs that have concepts."""
    figure, (axes,) = panels_of(1, width=6.0)
    for k, (name, rows) in enumerate(histories.items()):
        average, style = column(rows, "accuracy", 100), of_run(k)
        over_epochs(axes, rows, average, label=f"{shown(name)}, average", **style)
        if _has(rows, "worst_concept_accuracy"):
            worst = column(rows, "worst_concept_accuracy", 100)
            style |= {"linewidth": 0.7}
            over_epochs(axes, rows, worst, label=f"{shown(name)}, worst concept", **style)
    axes.set(xlabel="epoch", ylabel="accuracy on the validation set, %", ylim=(0, None))
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save(figure, path)


def _concept_accuracy(histories: Mapping[str, History], path: Path) -> Path:
    """Concepts from hard to easy by the first run, as in Figure 5 of the paper."""
    last = {
        name: next(row for row in reversed(rows) if _has([row], "concept_accuracy"))
        for name, rows in histories.items()
    }
    of_runs = {
        name: {k: v for k, v in row["concept_accuracy"].items() if v is not None}
        for name, row in last.items()
    }
    first = next(iter(of_runs.values()))
    order = sorted(first, key=lambda k: first[k])
    figure, (axes,) = panels_of(1, width=max(5.0, 2.0 + 0.3 * len(order)))
    for k, (name, accuracy) in enumerate(of_runs.items()):
        values = [100 * accuracy.get(k, math.nan) for k in order]
        axes.plot(range(len(order)), values, marker="o", label=shown(name), **of_run(k))
    ticks = {"rotation": 45, "ha": "right", "fontsize": "small"}
    axes.set_xticks(range(len(order)), [shown(k) for k in order], **ticks)
    axes.set(ylabel="accuracy, %", title="validation set, last epoch")
    axes.legend(fontsize="small")
    return save(figure, path)
