"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class TrainingResult:
    """In memory; of a run with a folder its files have more."""

    model: nn.Module
    """of the last iterate"""
    history: list[dict[str, Any]]
    """one row per epoch, as in metrics.jsonl"""
    out: Path | None
    ema: nn.Module | None = None
    """the moving average of the weights, where there is one"""

    @property
    def last(self) -> dict[str, Any]:
        if not self.history:
            raise ValueError("the run was stopped before the end of its first epoch; resume it")
        return self.history[-1]
