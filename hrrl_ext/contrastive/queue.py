"""The negatives: keys of the last batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._arrays import unit_rows
from .._streams import random_stream


class KeyQueue(nn.Module):
    """The last ``size`` keys [D] that were put in. All of it is buffers, so a run resumes to the bit.

    It begins with random directions, as MoCo's does: the loss is low while they last, and rises as keys
    take their places.
    """

    keys: Tensor
    """[size, dim] float32, of norm 1"""
    next: Tensor
    """[] int64: the place of the oldest, where the next key goes"""

    def __init__(self, size: int, dim: int, seed: int) -> None:
        super().__init__()
        directions = torch.randn(size, dim, generator=random_stream(seed, "queue"))
        self.register_buffer("keys", unit_rows(directions))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, keys: Tensor) -> None:
        """keys [B, dim] in the places of the oldest, going on at the beginning where the end is reached.
        Of more than ``size`` of them the last stay. Never waits for the device."""
        size, count = len(self.keys), len(keys)
        new = keys[-size:].to(self.keys)
        place = self.next + torch.arange(count - len(new), count, device=self.keys.device)
        self.keys.index_copy_(0, place % size, new)
        self.next.add_(count).remainder_(size)
