"""Where the rows of a run go beside its own files: trackers by name, or an object of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..spec import not_known
from .recipe import Row
from .scalars import TensorBoard
from .trackers import MLflow, WandB


@runtime_checkable
class RunLogger(Protocol):
    """What is told of a run, in its first process alone. That one of its methods fails is warned of once,
    and ends no training."""

    def start(self, config: Mapping[str, Any]) -> None:
        """As a run begins or goes on, before any row: its settings, as in config.json."""
        ...

    def log(self, row: Row, epoch: int) -> None:
        """As an epoch is over, the first of which is 1: its row, as in metrics.jsonl. One that a kill
        kept from being saved comes again when the run goes on."""
        ...

    def close(self) -> None:
        """As the run ends, stops or fails; not after a kill."""
        ...


class Named(RunLogger, Protocol):
    """One that a name stands for: it keeps what it needs in the folder of the run."""

    def __init__(self, folder: Path, first_step: int) -> None: ...

    @staticmethod
    def require() -> object:
        """ImportError, without its package."""
        ...


Loggers = Sequence[str | RunLogger]

NAMED: dict[str, type[Named]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def asked_for(loggers: Loggers, tensorboard: bool) -> list[str | RunLogger]:
    """``tensorboard=True`` is the short form of the name."""
    if isinstance(loggers, str):
        raise TypeError(f"loggers must be a list, got {loggers!r}; give [{loggers!r}]")
    also = ["tensorboard"] if tensorboard and "tensorboard" not in loggers else []
    return [*also, *loggers]


def check_loggers(loggers: Loggers, folder: object) -> None:
    """That each is known and installed, and has the folder that it writes to; before any work."""
    for logger in loggers:
        if isinstance(logger, str):
            if logger not in NAMED:
                raise ValueError(f"loggers: {not_known(logger, NAMED)}")
            if folder is None:
                raise ValueError(f"loggers: {logger!r} needs out, the folder of the run")
            try:
                NAMED[logger].require()
            except ImportError as error:
                raise ImportError(
                    f"loggers: {logger!r} needs {logger}: pip install 'hrrl_ext[{logger}]'"
                ) from error
        elif not isinstance(logger, RunLogger):
            raise TypeError(
                f"loggers: an object must have start(config), log(row, epoch) and close(), as "
                f"RunLogger has; got {type(logger).__name__}"
            )


class Told:
    """All that are told of a run while the context is open; none of them can end it."""

    def __init__(
        self, loggers: Loggers, folder: Path | None, first_step: int, config: Mapping[str, Any]
    ) -> None:
        self._loggers, self._folder, self._first_step = loggers, folder, first_step
        self._config = config
        self._open: list[RunLogger] = []
        self._failed: list[RunLogger] = []

    def __enter__(self) -> Told:
        for logger in self._loggers:
            if isinstance(logger, str):
                assert self._folder is not None  # check_loggers
                logger = NAMED[logger](self._folder, self._first_step)
            if self._went_well(logger, logger.start, self._config):
                self._open.append(logger)
        return self

    def log(self, row: Row) -> None:
        for logger in self._open:
            self._went_well(logger, logger.log, row, row["epoch"])

    def __exit__(self, *_: object) -> None:
        for logger in self._open:
            self._went_well(logger, logger.close)

    def _went_well(self, logger: RunLogger, do: Callable[..., None], *arguments: Any) -> bool:
        try:
            do(*arguments)
        except Exception as error:
            if not any(logger is one for one in self._failed):
                self._failed.append(logger)
                warnings.warn(
                    f"the logger {type(logger).__name__} failed ({type(error).__name__}: {error}); the "
                    "run goes on without it or with gaps there, and its own files have every row",
                    stacklevel=3,
                )
            return False
        return True
