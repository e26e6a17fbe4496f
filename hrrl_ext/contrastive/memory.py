"""The memory bank: what each image of the set was mapped to, in a mean over epochs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._arrays import unit_rows
from .._streams import random_stream


class MemoryBank(nn.Module):
    """A direction m_i [D] for each of N images, m_i ← (μ m_i + (1 - μ) z_i)/‖·‖ as the image is seen.

    It begins with random directions. All of it is a buffer, so a run resumes to the bit.
    """

    entries: Tensor
    """[N, dim] float32, of norm 1"""

    def __init__(self, images: int, dim: int, momentum: float, seed: int) -> None:
        super().__init__()
        directions = torch.randn(images, dim, generator=random_stream(seed, "memory"))
        self.register_buffer("entries", unit_rows(directions))
        self.momentum = momentum

    @torch.no_grad()
    def put(self, rows: Tensor, z: Tensor) -> None:
        """z [B, dim] of images ``rows`` [B], each of which is there once. Never waits for the device."""
        mean = self.momentum * self.entries[rows] + (1 - self.momentum) * z.to(self.entries)
        self.entries.index_copy_(0, rows, unit_rows(mean))

    def drawn(self, count: int, without: Tensor, seed: int, step: int) -> Tensor:
        """[count, dim] entries of other images than ``without`` [B], each of which is there once:
        uniformly and with replacement, by the arguments alone. Never waits for the device."""
        others = len(self.entries) - len(without)
        stream = random_stream(seed, "negatives", step)
        place = torch.randint(others, (count,), generator=stream)
        place = place.to(without.device, non_blocking=True)
        # How many of the others are before each of those left out.
        before = without.sort().values - torch.arange(len(without), device=without.device)
        return self.entries[place + torch.searchsorted(before, place, right=True)]
