"""A run's folder: what it is, what it has measured, and where it can be taken up again.

config.json                       settings, model, classes, concepts
environment.jsonl                 per start: versions, device, command, commit
metrics.csv, metrics.jsonl        one row per epoch
evaluations.jsonl                 one row per evaluation within epochs, where there are such
train.log                         the same in plain lines, and what went wrong beside them
results.json                      when it is through: last and best epoch, and what the recipe adds
tensorboard/                      events, if asked for
mlflow.json, wandb.json, wandb/   which run of a tracker is this one, and its files, if asked for
plots/                            of hrrl train
checkpoints/step-00000240/        the newest two (checkpoint.py)
best/                             config.json and model.safetensors of the best epoch, and digests
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from .._environment import environment
from .._regular import regular
from ..pretrained import HasFiles, build_from, from_pretrained, read_config, save_pretrained
from ..processes import Processes
from ..storage import (
    WorkFolder,
    append_row,
    as_read,
    read_rows,
    write_csv,
    write_json,
    write_rows,
    write_text,
)
from .checkpoint import CheckpointError, checkpoints, last_good, load_checkpoint, save_checkpoint
from .recipe import Row

_NOTE = "note: "
_NEWER = ("labels", "validation", "validation_examples", "validation_labels")
"""Entries that config.json of an older run lacks: there nothing is known of them."""


class RunFolder(WorkFolder):
    """Names and contents of the files of one run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "a run", "config.json")

    # --- who writes to it

    def take_for(self, processes: Processes) -> None:
        """The first process holds the folder for all; where it is refused, each of them is."""
        refused = None
        if processes.main:
            try:
                self.take()
            except OSError as error:
                refused = error
        if (refused := processes.gather(refused)[0]) is not None:
            raise refused

    @contextmanager
    def held_for(self, processes: Processes) -> Iterator[None]:
        self.take_for(processes)
        try:
            yield
        finally:
            self.release()

    # --- whether there is a run

    @property
    def taken(self) -> bool:
        return super().taken or (self.path / "checkpoints").exists()

    @property
    def holds_run(self) -> bool:
        return self.taken

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last_good(self) -> Path | None:
        return last_good(self.path / "checkpoints", self.config()) if self.taken else None

    @property
    def checkpoints(self) -> list[Path]:
        return checkpoints(self.path / "checkpoints")

    def require_run(self, description: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """That it holds a run, and of this description; a setting that is newer than the run had its
        default there."""
        unknown = {name: description[name] for name in _NEWER if name in description}
        self.require_same(description, {"training": defaults} | unknown)

    def require_nothing_lost(self) -> None:
        """That a run without a checkpoint was stopped before its first, and would not be overwritten.

        The metrics of an epoch are written before its checkpoint, so one row may be there.
        """
        metrics, folder = self.path / "metrics.jsonl", self.path / "checkpoints"
        rows = len(regular(metrics).read_bytes().splitlines()) if metrics.exists() else 0
        if rows > 1 or (rows and not folder.exists()) or (self.path / "results.json").exists():
            raise CheckpointError(
                f"resume: {self.path} has the metrics of {rows} epochs, but no checkpoint to go on from: "
                f"{folder} was emptied. Put it back; or train anew in another out, for here the metrics "
                "and best/ would be overwritten"
            )

    # --- writing

    def begin(
        self, description: Mapping[str, Any], device: str, processes: int, model: nn.Module
    ) -> None:
        self.describe(description)
        if isinstance(model, HasFiles):  # such as words, for load_joint_embedding
            model.save_files(self.path)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        append_row(self.path / "environment.jsonl", environment(device) | {"processes": processes})

    def save(self, step: int, model: nn.Module, state: Mapping[str, Any]) -> None:
        save_checkpoint(self.path / "checkpoints", step, model, state, self.config())

    def save_best(self, model: nn.Module, row: Mapping[str, Any]) -> None:
        """The best epoch so far, as a model of its own."""
        save_pretrained(model, self.best, self.config() | {"best": dict(row)})

    def write_evaluations(self, evaluations: Sequence[Row]) -> None:
        write_rows(self.path / "evaluations.jsonl", evaluations)

    def write_metrics(self, history: Sequence[Row], lines: Sequence[str]) -> None:
        """metrics.jsonl as it is; metrics.csv with one column per concept for what is a dict there."""
        write_rows(self.path / "metrics.jsonl", history)
        rows = [flat(row) for row in history]
        # Concepts that are found while training may come and go: a row has those of its epoch.
        names = dict.fromkeys(name for row in rows for name in row)
        write_csv(self.path / "metrics.csv", list(names), rows)
        log = self.path / "train.log"
        notes = [line for line in _lines(log) if line.startswith(_NOTE)]
        write_text(log, "".join(line + "\n" for line in (*lines, *notes)))

    def mend(self, history: Sequence[Row], lines: Sequence[str]) -> None:
        """Writes the metrics anew where they are not those of ``history``, which a checkpoint has."""
        metrics, why = self.path / "metrics.jsonl", "it has other rows than the checkpoint"
        try:
            rows = read_rows(metrics, ("epoch", "step"), "a run")
            if rows[: len(history)] == [as_read(row) for row in history]:
                return
        except (OSError, ValueError) as error:
            why = str(error)
        warnings.warn(
            f"{metrics} was damaged: {why}. It is written anew from the checkpoint", stacklevel=3
        )
        self.write_metrics(history, lines)

    def note(self, text: str) -> None:
        """A line of train.log that is of no epoch."""
        log = self.path / "train.log"
        if (line := f"{_NOTE}{text}") not in (lines := _lines(log)):
            write_text(log, "".join(f"{line}\n" for line in (*lines, line)))

    def write_results(self, results: Mapping[str, Any]) -> None:
        write_json(self.path / "results.json", results)

    # --- reading

    def description(self) -> dict[str, Any]:
        return self.config()

    def config(self) -> dict[str, Any]:
        try:
            return read_config(self.path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Images that the run left out when it began, by what they are for."""
        return dict(self.config().get("left_out", {})) if self.taken else {}

    def load(self, model: nn.Module, part: str | None = None) -> tuple[int, dict[str, Any]]:
        """Fills ``model`` from the newest checkpoint that can be read; returns its step and its state."""
        return load_checkpoint(self.path / "checkpoints", model, self.config(), part)


def load_model(
    out: str | os.PathLike[str], model: nn.Module | None = None, *, which: str = "last"
) -> nn.Module:
    """The trained model of a run's folder, in eval mode on the CPU.

    ``which`` is "last", the newest checkpoint; "best", the best evaluation on the validation set; or
    "ema", the moving average of the weights at the newest checkpoint, of a run that has one. A run
    of a model given by name is rebuilt from its configuration; for a run of your own module pass a
    fresh one, which is filled. Raises FileNotFoundError where ``out`` is no run and CheckpointError
    where none of its checkpoints can be read.
    """
    if which not in ("last", "best", "ema"):
        raise ValueError(f"which must be 'last', 'best' or 'ema', got {which!r}")
    run = RunFolder(out)
    if which == "best":
        return from_pretrained(run.best, model)
    config = run.config()
    model = build_from(config, run.path) if model is None else model
    part = config.get("part")
    _, state = run.load(model, part)
    if which == "ema":
        if "ema" not in state:
            raise ValueError(
                f"{run.path} is a run without a moving average; train it with ema=0.999"
            )
        prefix = "module." if part is None else f"module.{part}."
        average = {
            k.removeprefix(prefix): v for k, v in state["ema"].items() if k.startswith(prefix)
        }
        model.load_state_dict(average)
    return model.eval()


def open_model(folder: str | os.PathLike[str]) -> nn.Module:
    """The model of a run (its last state) or of :func:`hrrl_ext.pretrained.save_pretrained`."""
    saved_alone = (Path(folder) / "model.safetensors").is_file()
    return from_pretrained(folder) if saved_alone else load_model(folder)


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []


def flat(row: Row) -> dict[str, Any]:
    """What belongs to concepts as a column name/concept of its own."""
    columns: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            columns |= {f"{name}/{key}": entry for key, entry in value.items()}
        else:
            columns[name] = value
    return columns
