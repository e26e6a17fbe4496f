"""The rows of a run for MLflow and for Weights & Biases; extras, imported only where they are asked for.

Each keeps in the run's folder which of the tracker's runs is its own, so that a run which is resumed goes
on there. Where that is, and as whom, is said as these packages have it: by their variables of the
environment.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage import read_json, write_json
from .recipe import Row
from .run_folder import flat
from .scalars import numbers

_PROJECT = "hrrl_ext"
"""Where the environment names none."""
_AT_ONCE = 100
"""The most parameters that MLflow takes in a call; of metrics it would take more."""


class _Kept:
    """What a tracker has of this run, in a file of the run's folder, and how far it was told."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.entries = read_json(file) if file.exists() else {}

    def keep(self, **entries: Any) -> None:
        self.entries |= entries
        write_json(self._file, self.entries)

    def has(self, row: Row) -> bool:
        """An epoch that is done again comes to the same numbers."""
        return bool(row["step"] <= self.entries.get("step", 0))


class MLflow:
    """A run of MLflow's, by its client: a run that is active in this process stays what it is.

    The store is that of MLFLOW_TRACKING_URI or ``mlflow.set_tracking_uri``, else MLflow's default; the
    experiment that of MLFLOW_EXPERIMENT_NAME. Settings are parameters, numbers metrics over the step.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._file = folder, folder / "mlflow.json"

    def start(self, config: Mapping[str, Any]) -> None:
        mlflow = self.require()
        self._told, self._names = _Kept(self._file), _Names()
        entries = self._told.entries
        store = mlflow.get_tracking_uri()
        if (
            not mlflow.is_tracking_uri_set()
        ):  # then MLflow's default, which depends on the current folder
            store = entries.get("store", store)
        self._client = mlflow.MlflowClient(tracking_uri=store)
        if "run" in entries:
            self._client.update_run(entries["run"], status="RUNNING")
            return
        run = self._client.create_run(self._experiment(), run_name=self._folder.name)
        self._told.keep(run=run.info.run_id, store=store)
        self._send("params", _parameters(mlflow.entities.Param, config))

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def log(self, row: Row, epoch: int) -> None:
        if self._told.has(row):
            return
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), row["step"]
        measured = [*numbers(row).items(), ("epoch", epoch)]
        self._send("metrics", [Metric(self._names.of(k), float(n), now, step) for k, n in measured])
        self._told.keep(step=step)

    def _send(self, what: str, entries: Sequence[Any]) -> None:
        for start in range(0, len(entries), _AT_ONCE):
            few = entries[start : start + _AT_ONCE]
            self._client.log_batch(self._told.entries["run"], **{what: few})

    def close(self) -> None:
        self._client.set_terminated(self._told.entries["run"])

    @staticmethod
    def require() -> Any:
        import mlflow

        return mlflow


def _parameters(make: Callable[[str, str], Any], config: Mapping[str, Any]) -> list[Any]:
    """Not what is long, such as the names of all classes: config.json has it."""
    names = _Names()
    texts = {name: str(value) for name, value in flat(config).items()}
    return [make(names.of(name), text) for name, text in texts.items() if len(text) <= 500]


class _Names:
    """Names as MLflow takes them, which can be paths of files there: letters, digits, "_", "-", "." and
    spaces, with at most one "/". Two that would become one stay two."""

    def __init__(self) -> None:
        self._made: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._made:
            group, slash, rest = name.partition("/")
            clean = group + slash + re.sub(r"[^\w.\- ]", "_", rest)[:200]
            made, number = re.sub(r"/(\.{0,2})$", r"/_\1", clean), 2
            while made in self._made.values():
                made, number = f"{clean}_{number}", number + 1
            self._made[name] = made
        return self._made[name]


class WandB:
    """A run of Weights & Biases', beside any other of this process.

    Without WANDB_MODE and WANDB_API_KEY it is "offline": nothing leaves the machine, and ``wandb sync``
    sends it later. Its files are in ``wandb`` of the run's folder, or in WANDB_DIR.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._file = folder, folder / "wandb.json"

    def start(self, config: Mapping[str, Any]) -> None:
        wandb = self.require()
        self._told = _Kept(self._file)
        if "run" not in self._told.entries:
            self._told.keep(run=secrets.token_hex(8))
        said = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", self._folder.name),
            id=self._told.entries["run"],
            resume="allow",
            reinit="create_new",
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            mode=None if said else "offline",
            config=dict(config),
            settings=wandb.Settings(console="off"),  # the lines of a run stand in its train.log
        )

    def log(self, row: Row, epoch: int) -> None:
        if self._told.has(row):
            return
        self._run.log(numbers(row) | {"epoch": epoch}, step=row["step"])
        self._told.keep(step=row["step"])

    def close(self) -> None:
        self._run.finish()

    @staticmethod
    def require() -> Any:
        import wandb

        return wandb
