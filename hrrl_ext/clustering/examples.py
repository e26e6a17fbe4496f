"""The data of a clustering: every example at its own row, with the same pixels whenever it is asked for."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from ..data import ImageSet, Source, load_images
from ..data.image_sets import as_float

Data: TypeAlias = "Source | tuple[Tensor, Tensor]"
"""What :func:`hrrl_ext.data.load_images` opens, or tensors (x [N, ...], target [N])."""


class Examples:
    """N examples by row: images of uint8 as float32 in [0, 1], never augmented."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self.device = device
        self._images: ImageSet | None = None
        if isinstance(data, tuple):
            x, target = data
            if len(x) != len(target):
                raise ValueError(
                    f"data: x and target must have one row per example, got {len(x)} and {len(target)}"
                )
            self._x, self.target = x, target
        else:
            self._images = load_images(data)
            self.target = self._images.target
        if len(self.target) == 0:
            raise ValueError("data holds no example")

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(x [B, ...], target [B]) of rows [B], on the device."""
        if self._images is None:
            x, target = self._x[rows], self.target[rows]
        else:
            x, target = self._images.__getitems__(rows.tolist())
        return as_float(x.to(self.device)), target.to(self.device)
