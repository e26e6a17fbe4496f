"""Which examples an epoch has, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .image_sets import ImageSet

Sampling = Literal["uniform", "class", "concept"]


def check_order(
    sampling: Sampling, balance: float, shuffle_buffer: int | None, *, shuffle: bool
) -> None:
    """That settings of `Batches` name one order. Raises ValueError."""
    if sampling not in get_args(Sampling):
        raise ValueError(
            f"Batches: sampling must be one of {', '.join(get_args(Sampling))}, got {sampling!r}"
        )
    if sampling != "uniform" and not shuffle:
        raise ValueError(
            f"Batches: sampling={sampling!r} draws examples by chance, and shuffle=False is their "
            "order; leave one of the two out"
        )
    if not 0 <= balance <= 1:
        raise ValueError(f"Batches: balance must lie in [0, 1], got {balance}")
    if shuffle_buffer is not None and (sampling != "uniform" or not shuffle):
        drawn = f"sampling={sampling!r} draws from any" if shuffle else "shuffle=False is an order"
        raise ValueError(
            f"Batches: shuffle_buffer={shuffle_buffer} reads shards from front to end, and {drawn}; "
            "leave one of the two out"
        )


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


@dataclass(frozen=True)
class Shuffling:
    """Every image once: in any order, or shards one after the other through a buffer.

    buffer: how many images it holds; None is any order. ValueError where the images are in no shards.
    """

    images: ImageSet
    buffer: int | None = None

    def __post_init__(self) -> None:
        if self.buffer is None:
            return
        if self.buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {self.buffer}")
        if self.images.shards is None:
            raise ValueError(
                f"shuffle_buffer={self.buffer} reads shards from front to end, and {self.images.name} is "
                'in none, as "wds:train-{000..127}.tar" is; leave it out'
            )

    def order(self, generator: torch.Generator) -> Tensor:
        """[N] rows."""
        if self.buffer is None:
            return torch.randperm(len(self.images), generator=generator)
        assert self.images.shards is not None
        return through_buffer(self.images.shards, self.buffer, generator)


def through_buffer(shards: Sequence[Tensor], buffer: int, generator: torch.Generator) -> Tensor:
    """[N] the rows of shards [n_k], which are taken in shuffled order, each from front to end.

    The first rows fill the buffer. Each draw takes one of those in it, all with the same chance, and the
    next row takes its place; what is left in the end comes in shuffled order. So the row at place e of
    the walk is among the draws from e - buffer + 1 on, and is still to come after d more of them with a
    chance of (1 - 1/buffer)^d.
    """
    turn = torch.randperm(len(shards), generator=generator)
    walk = torch.cat([shards[k] for k in turn.tolist()])
    buffer = min(buffer, len(walk))
    draws = len(walk) - buffer
    # Whose places the rows take: first all in turn, then that of what is drawn.
    taken = torch.randint(max(buffer, 1), (draws,), generator=generator)
    place, entries = torch.cat([torch.arange(buffer), taken]).sort(stable=True)
    # A row is drawn when the next one takes its place; the last in each place is left.
    left = torch.ones(len(walk), dtype=torch.bool)
    left[:-1] = place[1:] != place[:-1]
    order = torch.empty_like(walk)
    order[entries[1:][~left[:-1]] - buffer] = walk[entries[~left]]
    order[draws:] = walk[entries[left]][torch.randperm(buffer, generator=generator)]
    return order
