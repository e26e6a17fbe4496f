"""One geometry for every image: it is scaled to cover the wanted size, then the centre is cropped.

Of a square that is: the shorter side is resized, then the centre is cropped square.

What is longer than wanted by more than `_LONG` times is cut to that first, at its centre: scaled whole,
one row of a million pixels would take gigabytes, of which the crop keeps one part in a million.

Resizing is bilinear and antialiased. Two routes with the same geometry: `fit_tensor` for images in
memory, `fit_picture` for decoded files. They differ by the rounding of Pillow's fixed-point
filter, by one of 255 levels at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 1024  # images in float32 at a time
_LONG = 64  # far beyond any panorama, which is scaled whole as ever, to the same bits

ImageSize: TypeAlias = int | Sequence[int]
"""The side of a square in pixels, or height and width."""


def sides(image_size: ImageSize, name: str = "image_size") -> tuple[int, int]:
    """Height and width. Raises TypeError or ValueError unless they are whole and positive."""
    pair = [image_size] * 2 if isinstance(image_size, int) else image_size
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) for side in pair)
    ):
        raise TypeError(
            f"{name} must be an int, the side of a square in pixels, or (height, width), got "
            f"{image_size!r}"
        )
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1, got {image_size}")
    return pair[0], pair[1]


def size_of(image_shape: Sequence[int]) -> ImageSize:
    """What image_size is for images [..., H, W]: the side of a square, else [height, width]."""
    height, width = image_shape[-2:]
    return width if height == width else [height, width]


def fit_tensor(images: Tensor, image_size: ImageSize) -> Tensor:
    """images [N, C, H, W], uint8 or float32 in [0, 1] → the same kind, of that size."""
    n, channels = images.shape[:2]
    height, width = sides(image_size)
    upper, lower, first, last = _looked_at(images.shape[2], images.shape[3], height, width)
    images = images[:, :, upper:lower, first:last]
    rows, columns, top, left = _geometry(images.shape[2], images.shape[3], height, width)
    fitted = images.new_empty(n, channels, height, width)
    for start in range(0, n, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        scaled = _resize(images[chunk], (rows, columns))
        fitted[chunk] = scaled[:, :, top : top + height, left : left + width]
    return fitted


def fit_picture(picture: Image.Image, image_size: ImageSize) -> Tensor:
    """Decoded file, in RGB (`decoding.as_rgb`) → [3, H, W] uint8 of that size.

    A view of pixels as they lie in files, channels last: the batch it is copied to has them first.
    """
    from PIL.Image import Resampling

    height, width = sides(image_size)
    upper, lower, first, last = _looked_at(picture.height, picture.width, height, width)
    if (last - first, lower - upper) != picture.size:
        picture = picture.crop((first, upper, last, lower))
    rows, columns, top, left = _geometry(picture.height, picture.width, height, width)
    picture = picture.resize((columns, rows), Resampling.BILINEAR)  # Pillow always antialiases
    picture = picture.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _looked_at(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """Rows and columns, from and to, that are scaled: all, of what is not too long."""
    rows = min(height, _LONG * -(-width * to_height // to_width))
    columns = min(width, _LONG * -(-height * to_width // to_height))
    upper, first = (height - rows) // 2, (width - columns) // 2
    return upper, height - upper, first, width - first  # as much on either side: the centre stays


def _geometry(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """Rows and columns after scaling, top and left of the crop, rounded as torchvision does."""
    if to_height * width >= to_width * height:  # the height is what just covers
        rows, columns = to_height, to_height * width // height
    else:
        rows, columns = to_width * height // width, to_width
    return rows, columns, round((rows - to_height) / 2), round((columns - to_width) / 2)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    images, dtype = images.float(), images.dtype
    scaled = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    if dtype == torch.uint8:
        return scaled.round_().clamp_(0, 255).to(torch.uint8)
    return scaled.clamp_(0, 1)  # filter weights sum to 1 only up to rounding
