"""At which step embeddings came near one point, seen at every one without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import RetrievalConfig
from .ranks import scores

_LEAST_SPREAD = 1e-4
_LITTLE_SPREAD = 0.01
WATCHED = 32
"""Pairs of a batch, or all: few enough to cost little beside a step, of the order similarity too."""
_FEWEST = 4
"""Of fewer the scores may be the same by chance, such as of one image in a short last batch."""


class Seen(NamedTuple):
    """A step of the run, its loss of a pair, and the standard deviation of its scores."""

    step: int
    loss: float
    spread: float


class CollapseWatch:
    """Keeps, on the device, the step since which scores have no spread, and the first one at which both
    hinges of a pair came to be the margin: its own score was that of its hardest negatives."""

    def __init__(self, config: RetrievalConfig, device: torch.device) -> None:
        self._similarity = config.similarity
        self._margin = config.margin if config.loss == "max_hinge" else None
        nothing = torch.zeros(len(Seen._fields), dtype=torch.float64, device=device)
        self._at_one_point, self._at_margin = nothing, nothing

    @torch.no_grad()
    def see(self, step: int, loss: Tensor, image: Tensor, caption: Tensor) -> None:
        """Step ``step`` of the run, from 1: its loss of a pair [], and embeddings [B, D]."""
        if len(image) < _FEWEST:
            return
        spread = scores(image[:WATCHED], caption[:WATCHED], self._similarity).std().double()
        loss = loss.double()
        now = torch.stack([torch.full_like(loss, step), loss, spread])
        since = _first(self._at_one_point, now)
        # Not for good: two pairs may be alike, as all of a short batch.
        self._at_one_point = since.where(spread < _LEAST_SPREAD, 0.0)
        if self._margin is not None:
            near = (loss / 2 - self._margin).abs() < 0.01 * self._margin
            first = _first(self._at_margin, now)
            self._at_margin = first.where(near & (spread <= _LITTLE_SPREAD), self._at_margin)

    @property
    def at_one_point(self) -> Seen | None:
        """Since when, where it is so at the last step. Waits for the device, as the next one does."""
        return _told(self._at_one_point)

    @property
    def at_margin(self) -> Seen | None:
        return _told(self._at_margin)

    def state_dict(self) -> dict[str, Any]:
        return {"at_one_point": self._at_one_point, "at_margin": self._at_margin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self._at_margin.device
        self._at_one_point, self._at_margin = (
            state.get(name, kept).to(device) for name, kept in self.state_dict().items()
        )


def _first(kept: Tensor, now: Tensor) -> Tensor:
    return kept.where(kept[0] > 0, now)


def _told(kept: Tensor) -> Seen | None:
    step, loss, spread = kept.tolist()
    return Seen(int(step), loss, spread) if step > 0 else None
