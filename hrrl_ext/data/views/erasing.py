"""Random erasing, a rectangle of its own for every image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._streams import Draws
from ..image_sets import as_float

_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomErasing:
    """A rectangle of the image becomes one colour, with a probability (Zhong et al., AAAI 2020).

    Its area is U(scale) of the image's, its sides are in a ratio of logU(ratio), as torchvision has them:
    ten are drawn, the first that leaves something of each side is taken, and where none does the image
    stays. The colour is uniform in the cube, one draw for each rectangle.

    Args:
        p: probability.
        scale: the least share of the area and the most.
        ratio: height over width, the least and the most.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"RandomErasing: p must be a probability, got {self.p}")
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"RandomErasing: {name} must be the least and the most, above 0"
                    f"{' and at most 1' if most == 1 else ''}, got {(low, high)}"
                )

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """images [B, C, H, W], uint8 or float in [0, 1], of any device → new ones of the same kind."""
        height, width = images.shape[2:]
        box = self.boxes(draws, height, width).to(images.device, non_blocking=True)
        colour = draws.whole(256, (images.shape[1], 1, 1)).to(torch.uint8)
        if images.dtype != torch.uint8:
            colour = as_float(colour).to(images.dtype)
        top, left, h, w = box[:, :, None].unbind(1)  # [B, 1] each
        row, column = (torch.arange(n, device=images.device) for n in (height, width))
        rows = (row >= top) & (row < top + h)
        columns = (column >= left) & (column < left + w)
        within = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(within, colour.to(images.device, non_blocking=True), images)

    def boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """[B, 4] int64: top, left, height and width of each rectangle; the last two are 0 for none"""
        chosen, shape = draws.chance(self.p), (_ATTEMPTS,)
        area = height * width * draws.uniform(*self.scale, shape)
        ratio = draws.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), shape).exp()
        h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (h > 0) & (h < height) & (w > 0) & (w < width)
        first = fits.int().argmax(1, keepdim=True)
        chosen = chosen & fits.any(1)
        h, w = (torch.where(chosen, side.gather(1, first)[:, 0], 0) for side in (h, w))
        at = draws.uniform(shape=(2,))
        top, left = (at[:, 0] * (height - h + 1)).floor(), (at[:, 1] * (width - w + 1)).floor()
        return torch.stack([top, left, h, w], 1).long()
