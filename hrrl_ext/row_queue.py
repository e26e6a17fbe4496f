"""A queue of rows in memory that is taken once: what a method compares a batch with beyond the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowQueue(nn.Module):
    """The last ``size`` rows that were put in, of one tensor or of several side by side: first in, first
    out. All of it is buffers, so a run resumes to the bit.

    Args:
        rows: by name what it begins with, [size, ...] each.
    """

    next: Tensor
    """[] int64: the place of the oldest, where the next row goes"""

    def __init__(self, **rows: Tensor) -> None:
        super().__init__()
        for name, values in rows.items():
            self.register_buffer(name, values)
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))
        self._names = list(rows)

    @torch.no_grad()
    def put(self, *rows: Tensor) -> None:
        """rows [B, ...], in the order of their names, in the places of the oldest, going on at the
        beginning where the end is reached. Of more than ``size`` the last stay. Never waits for the
        device."""
        held = [self.get_buffer(name) for name in self._names]
        size, count = len(held[0]), len(rows[0])
        first = max(0, count - size)
        place = (self.next + torch.arange(first, count, device=self.next.device)) % size
        for kept, new in zip(held, rows, strict=True):
            kept.index_copy_(0, place, new[first:].to(kept))
        self.next.add_(count).remainder_(size)
