"""The rows of a run for TensorBoard; an extra, imported only where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipe import Row
from .run_folder import flat


class TensorBoard:
    """Writes rows as scalars to ``tensorboard`` in the run's folder, over the step.

    A run that is resumed passes the first step it has not done: later events, of an epoch that was
    measured but not saved, are dropped by TensorBoard.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._first_step = folder / "tensorboard", first_step
        self._writer: Any = None

    def start(self, config: Mapping[str, Any]) -> None:
        self._writer = self.require()(str(self._folder), purge_step=self._first_step)

    def log(self, row: Row, epoch: int) -> None:
        for tag, number in numbers(row).items():
            self._writer.add_scalar(tag, number, row["step"])
        self._writer.flush()  # a run that is killed keeps what it has measured

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def require() -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter


def numbers(row: Row) -> dict[str, float]:
    """A column by its name; one of a dict as name/concept, so that its concepts share a group. Without
    what has no number there, and without where in the run it is."""
    return {
        name: value
        for name, value in flat(row).items()
        if value is not None and name not in ("epoch", "step")
    }
