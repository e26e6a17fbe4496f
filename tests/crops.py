"""Views for tests: each image is moved and flipped by draws of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hrrl_ext._streams import random_stream
from hrrl_ext.data import Augmentation


@dataclass(frozen=True)
class Crops:
    padding: int = 1
    seed: int = 0

    def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return self._view(images, index, epoch, 0), self._view(images, index, epoch, 1)

    def _view(self, images: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
        augment = Augmentation(self.padding)
        streams = [random_stream(self.seed, epoch, int(i), view) for i in index]
        return augment.apply(images, torch.cat([augment.draw(1, stream) for stream in streams]))
