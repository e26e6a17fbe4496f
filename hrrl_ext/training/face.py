"""What every trainer shows of its loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..processes import Processes
from .loop import Loop
from .result import TrainingResult
from .run_folder import RunFolder


class Trainer:
    """The face of a method: it opens data and model, and hands them to a :class:`Loop`.

    A trainer derives from this one and sets ``loop`` and ``after_step``; its loop is given
    :meth:`_after_step`.
    """

    loop: Loop
    after_step: Callable[[Any, int], object] | None
    """Called with the trainer and the number of steps done."""

    def fit(self, until: int | None = None) -> TrainingResult:
        """Trains what is left of ``epochs`` and returns the model of the last iterate.

        With ``until`` no further than to the end of that epoch; another call goes on from there, as does
        a run that is resumed.
        """
        return self.loop.fit(until)

    def _after_step(self, step: int) -> None:
        if self.after_step is not None:
            self.after_step(self, step)

    # --- what a loop of one's own, a recorder or a look at a run needs

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.loop.history

    @property
    def run(self) -> RunFolder | None:
        return self.loop.run

    @property
    def processes(self) -> Processes:
        return self.loop.processes

    @property
    def device(self) -> torch.device:
        return self.loop.device
