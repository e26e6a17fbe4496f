"""Which examples an epoch has, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["uniform", "class", "concept"]


@dataclass(frozen=True)
class GroupSampling:
    """Draws with replacement: group k with probability s_k ∝ N_k^(1 - balance), then uniformly within.

    balance = 0 draws each example as often as any other, 1 each group. A group without an example is
    never drawn.
    """

    group: Tensor
    """[N] int64 ids from 0, one per example"""
    balance: float = 1.0

    @property
    def share(self) -> Tensor:
        """[K] s_k in float64."""
        size = self._size.double()
        weight = torch.where(size > 0, size ** (1 - self.balance), 0.0)
        return weight / weight.sum()

    @property
    def draws(self) -> Tensor:
        """[N] float64: how often each example comes among N draws, in the mean."""
        return (self.share * len(self.group) / self._size)[self.group]

    def order(self, generator: torch.Generator) -> Tensor:
        """[N] rows, as many draws as there are examples."""
        k_uniform, i_uniform = torch.rand(
            2, len(self.group), generator=generator, dtype=torch.float64
        )
        size, until = self._size, self.share.cumsum(0)
        # The last is divided by itself: 1, which no u reaches. The first k above u has an example.
        k = torch.searchsorted(until / until[-1:], k_uniform, right=True)
        place = (i_uniform * size[k]).long()  # below size: u < 1 has 53 bits
        return self.group.argsort(stable=True)[size.cumsum(0)[k] - size[k] + place]

    @property
    def _size(self) -> Tensor:
        return torch.bincount(self.group)
