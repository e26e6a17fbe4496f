"""Mixup: mixtures of two images of a batch, and of their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._streams import Draws


@dataclass(frozen=True)
class Mixup:
    """x = a x_i + (1 - a) x_j with a ~ Beta(α, α) for each image, whose labels are y_i and y_j with the
    shares a and 1 - a (Zhang et al., ICLR 2018).

    j is the neighbour of i in the batch: 0 and 1, 2 and 3, ...; the last of an odd number has the one
    before it, and an image alone itself. In a batch of random order that is a partner by chance.

    Args:
        alpha: α > 0; 0.2 for ImageNet, 1 for CIFAR.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"Mixup: alpha must be positive and finite, got {self.alpha}")

    def shares(self, draws: Draws) -> Tensor:
        """a [B], float32 in [0, 1], by the draws of each image."""
        own, other = draws.named("own").gamma(self.alpha), draws.named("other").gamma(self.alpha)
        return (own / (own + other)).float()

    def partners(self, count: int) -> Tensor:
        """j [B] of each image of a batch."""
        place = torch.arange(count)
        other = place ^ 1
        return torch.where(other < count, other, (place - 1).clamp(min=0))

    def mixed(self, x: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """The mixtures [B, ...] of float images with their partners, like both."""
        return partner.lerp(x, share.view(-1, *[1] * (x.ndim - 1)))
