"""Random resized crops and flips, a part of its own for every image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ..._arrays import is_numbers
from ..._streams import Draws
from ..augmix import ImageProgram
from ..resize import ImageSize, sides

if TYPE_CHECKING:
    from PIL import Image

CropOf: TypeAlias = Literal["image", "picture"]
"""What a part is of: an image as it was opened, of one size with all others; or the whole picture in a
file, at its own size."""

_ATTEMPTS = 10
_CROP = ops.IMAGE_OPERATIONS.index("crop")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image, with an area of U(scale) of it and sides in a ratio of logU(ratio), resized,
    and flipped with a probability.

    The part is torchvision's: ten of them are drawn, and the first that fits is taken; else the largest
    in the middle whose ratio is allowed.

    Args:
        scale: the least share of the area and the most. MoCo has (0.2, 1), training on ImageNet
            (0.08, 1).
        ratio: width over height, the least and the most.
        size: of the result in pixels: the side of a square, or (height, width). None keeps the sides of
            the images.
        flip: its probability.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    size: ImageSize | None = None
    flip: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            value = getattr(self, name)
            if not (is_numbers(value, 2) and 0 < value[0] <= value[1] <= most):
                raise ValueError(
                    f"RandomResizedCrop: {name} must be the least and the most, above 0"
                    f"{' and at most 1' if most == 1 else ''}, got {value!r}"
                    + (
                        f"; the size of the result is size={value}"
                        if isinstance(value, int)
                        else ""
                    )
                )
        if self.size is not None:
            sides(self.size, "RandomResizedCrop: size")  # refuses what is none
        if not 0 <= self.flip <= 1:
            raise ValueError(f"RandomResizedCrop: flip must be a probability, got {self.flip}")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """images [B, C, H, W], uint8 or float in [0, 1] → the same kind. Floats are rounded to 8-bit
        levels where the sides stay: then a native operator does it."""
        height, width = images.shape[2:]
        box = self.boxes(draws, height, width)
        size = (height, width) if self.size is None else sides(self.size)
        if size == (height, width):
            return crop_program(box)(images)
        return resized_crop(images, box, size)

    def of_picture(
        self, picture: Image.Image, draws: Sequence[Draws], size: tuple[int, int]
    ) -> Tensor:
        """A decoded file, in RGB → a part of it by each of the draws, of this image alone, [V, 3, *size]
        uint8, as Pillow resizes it: torchvision's to the bit."""
        boxes = [self.boxes(one, picture.height, picture.width)[0] for one in draws]
        return torch.stack([resized_part(picture, box, size) for box in boxes])

    @property
    def narrowest(self) -> float:
        """At least this share of a picture's shorter side is the shorter one of a part, drawn or in the
        middle."""
        least, most = self.ratio
        drawn = math.sqrt(self.scale[0] * min(least, 1 / most))
        return min(drawn, most, 1 / least)

    def boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """[B, 5] float64: top, left, height and width of each part, and whether it is flipped, 0 or 1"""
        shape = (_ATTEMPTS,)
        area = height * width * draws.uniform(*self.scale, shape)
        ratio = draws.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), shape).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        middle_h, middle_w = self._middle(height, width)
        h = torch.where(found, h.gather(1, first)[:, 0], middle_h)
        w = torch.where(found, w.gather(1, first)[:, 0], middle_w)
        at = draws.uniform(shape=(2,))
        top = torch.where(found, (at[:, 0] * (height - h + 1)).floor(), (height - h) // 2)
        left = torch.where(found, (at[:, 1] * (width - w + 1)).floor(), (width - w) // 2)
        return torch.stack([top, left, h, w, draws.chance(self.flip).double()], 1)

    def _middle(self, height: int, width: int) -> tuple[float, float]:
        least, most = self.ratio
        if width / height < least:
            return float(min(height, round(width / least))), float(width)
        if width / height > most:
            return float(height), float(min(width, round(height * most)))
        return float(height), float(width)


def crop_program(box: Tensor) -> ImageProgram:
    """Parts as an operation, for results of the images' size."""
    b = len(box)
    parameter = torch.cat([box, box.new_zeros(b, 1)], 1)[:, None, None]
    one = torch.ones(b, 1)
    return ImageProgram(torch.full((b, 1, 1), _CROP), parameter, one, one[:, 0])


def resized_part(picture: Image.Image, box: Tensor, size: tuple[int, int]) -> Tensor:
    """A decoded file, in RGB, and one part [5] → [3, *size] uint8."""
    from PIL.Image import Resampling, Transpose

    top, left, h, w, flip = map(int, box.tolist())
    # Cut out first: with resize(box=) the filter would see pixels beyond the part.
    part = picture.crop((left, top, left + w, top + h))
    part = part.resize((size[1], size[0]), Resampling.BILINEAR)  # Pillow always antialiases
    if flip:
        part = part.transpose(Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)


def resized_crop(images: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """images [B, C, H, W], their parts [B, 5] → [B, C, *size], the same kind; floats in [0, 1].

    Bilinear, with antialiasing: where the part is larger than the result, the filter is as wide as the
    pixels of the result. Float between the two directions, rounded at the end for uint8.
    """
    if len(images) == 0:
        return images.new_empty(0, images.shape[1], *size)
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    # Here, where the parts still are: nothing waits for a device.
    counts = [math.ceil(2 * max(1.0, float(box[:, 2 + d].max()) / size[d]) + 1) for d in (0, 1)]
    box = box.to(images.device, non_blocking=True)
    rows = _taps(box[:, 0], box[:, 2], size[0], torch.zeros_like(box[:, 4]), counts[0])
    columns = _taps(box[:, 1], box[:, 3], size[1], box[:, 4], counts[1])
    x = _weighed(_weighed(x, *columns, dim=3), *rows, dim=2)
    if images.dtype == torch.uint8:
        return (x + 0.5).clamp(0, 255).to(torch.uint8)
    return x.clamp(0, 1).to(images.dtype)  # weights sum to 1 only up to rounding


def _taps(
    first: Tensor, length: Tensor, size: int, flip: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Of each new pixel, old ones [B, size, count] and their weights: 0 beyond an image's own support."""
    first, length = first[:, None, None], length[:, None, None]  # [B, 1, 1]
    out = torch.arange(size, dtype=torch.float64, device=first.device)[:, None]
    out = torch.where(flip[:, None, None] > 0, size - 1 - out, out)
    per = length / torch.full_like(length, size)
    support = per.clamp(min=1)
    centre = (out + 0.5) * per  # [B, size, 1]
    place = (centre - support + 0.5).floor() + torch.arange(count, device=first.device)
    weight = (1 - (place + 0.5 - centre).abs() / support).clamp(0)
    weight = torch.where((place >= 0) & (place < length), weight, 0)
    weight = weight / weight.sum(2, keepdim=True)
    return (first + torch.minimum(place.clamp(0), length - 1)).long(), weight


def _weighed(x: Tensor, place: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Along one dimension, tap by tap: the sum of one image does not depend on the taps of another."""
    total: Tensor | None = None
    for index, w in zip(place.unbind(2), weight.to(x.dtype).unbind(2), strict=True):
        shape = (len(x), 1, -1, 1) if dim == 2 else (len(x), 1, 1, -1)
        sides = [len(x), x.shape[1], x.shape[2], x.shape[3]]
        sides[dim] = index.shape[1]
        part = x.gather(dim, index.view(shape).expand(sides)) * w.view(shape)
        total = part if total is None else total + part
    assert total is not None
    return total
