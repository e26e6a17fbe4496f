"""The rows of a run for TensorBoard; an extra, imported only where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run_folder import flat


class Scalars:
    """Writes rows as scalars to ``folder``, over the step; without a folder it writes nothing.

    A run that is resumed passes the first step it has not done: later events, of an epoch that was
    measured but not saved, are dropped by TensorBoard.
    """

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self._writer: Any = None
        if folder is not None:
            writer = require_tensorboard()
            self._writer = writer(str(folder), purge_step=first_step)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """A column by its name; one of a dict as name/concept, so that its concepts share a group."""
        if self._writer is None:
            return
        for tag, number in flat(row).items():
            if number is not None and tag not in ("epoch", "step"):
                self._writer.add_scalar(tag, number, row["step"])
        self._writer.flush()  # a run that is killed keeps what it has measured


def require_tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs tensorboard: pip install 'hrrl_ext[tensorboard]'"
        ) from error
    return SummaryWriter
