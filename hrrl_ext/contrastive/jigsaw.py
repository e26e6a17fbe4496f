"""The parts of a view, in an order by chance (PIRL)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._streams import Draws
from .views import TwoViews

_SHARE = 64 / 85  # of the side of a cell, as PIRL has it at 255 pixels


@dataclass(frozen=True)
class Jigsaw:
    """A first view as it is, and of the second a grid of ``side`` x ``side`` cells, from each of which a
    part is cut, with 64/85 of its sides and by chance where; in an order by chance, [B, side², 3, h, w].

    Draws are of (seed, epoch, index), as those of the views.
    """

    views: TwoViews
    side: int
    seed: int

    def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        first, second = self.views.two(images, index, epoch)
        return first, self.cut(second, Draws.of_images(index, self.seed, "jigsaw", epoch))

    def cut(self, view: Tensor, draws: Draws) -> Tensor:
        """view [B, C, H, W] → its parts [B, side², C, h, w], of its own kind and device."""
        cells = self.side**2
        order = draws.uniform(shape=(cells,)).argsort(1)  # which cell comes at each place
        at = draws.uniform(shape=(2, cells))
        rows = self._within(view.shape[2], order // self.side, at[:, 0]).to(view.device)
        columns = self._within(view.shape[3], order % self.side, at[:, 1]).to(view.device)
        image = torch.arange(len(view), device=view.device).view(-1, 1, 1, 1)
        parts = view[image, :, rows[:, :, :, None], columns[:, :, None]]  # [B, P, h, w, C]
        return parts.permute(0, 1, 4, 2, 3).contiguous()

    def part(self, length: int) -> int:
        """Pixels of a part along a side of so many."""
        return round(length // self.side * _SHARE)

    def _within(self, length: int, cell: Tensor, at: Tensor) -> Tensor:
        """[B, P, part] int64, of cells [B, P] of a side: which of its pixels."""
        part = self.part(length)
        first = cell * length // self.side + (at * (length // self.side - part + 1)).long()
        return first[:, :, None] + torch.arange(part)
