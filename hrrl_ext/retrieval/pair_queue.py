"""Negatives beyond the batch: pairs of earlier steps, as they were embedded then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..row_queue import RowQueue
from .losses import Keys


class PairQueue(RowQueue):
    """The last ``size`` pairs that were put in. It begins empty.

    Their embeddings stay as they were: nothing is encoded again, and the oldest are those of the model
    of as many steps ago as it takes to fill the queue (Wang et al. 2020, cross-batch memory).
    """

    image: Tensor
    caption: Tensor
    """[size, dim] float32 both"""
    group: Tensor
    """[size] int64"""
    pair: Tensor
    """[size] int64: which pair of the data it is; -1 where there is none yet"""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(
            image=torch.zeros(size, dim),
            caption=torch.zeros(size, dim),
            group=torch.zeros(size, dtype=torch.int64),
            pair=torch.full((size,), -1),
        )
        self.filled = 0
        """Pairs that are there; known without asking the device."""
        self.register_load_state_dict_post_hook(_count)

    def put(self, *rows: Tensor) -> None:
        """image [B, dim], caption [B, dim], group [B] and pair [B]."""
        super().put(*rows)
        self.filled = min(self.filled + len(rows[0]), len(self.pair))

    def keys(self) -> Keys | None:
        """What a batch is compared with, if there is anything yet."""
        if self.filled == 0:
            return None
        return Keys(*(rows[: self.filled] for rows in (self.image, self.caption, self.group)))

    def oldest(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """image, caption and pair of up to so many."""
        first = self.next if self.filled == len(self.pair) else torch.zeros_like(self.next)
        place = torch.arange(min(count, self.filled), device=first.device)
        place = (first + place) % len(self.pair)
        return self.image[place], self.caption[place], self.pair[place]


def _count(queue: PairQueue, _: Any) -> None:
    queue.filled = int((queue.pair >= 0).sum())
