"""One geometry for every image: the shorter side is resized, then the centre is cropped square.

Resizing is bilinear and antialiased. Two routes with the same geometry: `fit_tensor` for images in
memory, `fit_picture` for decoded files. They differ by the rounding of Pillow's fixed-point
filter, by one of 255 levels at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 1024  # images in float32 at a time


def check_image_size(image_size: int) -> None:
    """Raise unless image_size is a positive int (a square side in pixels)."""
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        raise TypeError(f"image_size must be an int (pixels of a square), got {image_size!r}")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")


def fit_tensor(images: Tensor, image_size: int) -> Tensor:
    """images [N, C, H, W], uint8 or float32 in [0, 1] → the same kind, square."""
    n, channels, height, width = images.shape
    rows, columns, top, left = _geometry(height, width, image_size)
    fitted = images.new_empty(n, channels, image_size, image_size)
    for start in range(0, n, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        scaled = _resize(images[chunk], (rows, columns))
        fitted[chunk] = scaled[:, :, top : top + image_size, left : left + image_size]
    return fitted


def fit_picture(picture: Image.Image, image_size: int) -> Tensor:
    """Decoded file, in RGB (`decoding.as_rgb`) → [3, image_size, image_size] uint8.

    A view of pixels as they lie in files, channels last: the batch it is copied to has them first.
    """
    from PIL.Image import Resampling

    rows, columns, top, left = _geometry(picture.height, picture.width, image_size)
    picture = picture.resize((columns, rows), Resampling.BILINEAR)  # Pillow always antialiases
    picture = picture.crop((left, top, left + image_size, top + image_size))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _geometry(height: int, width: int, image_size: int) -> tuple[int, int, int, int]:
    """Rows and columns after scaling, top and left of the crop, rounded as torchvision does."""
    short = min(height, width)
    rows, columns = image_size * height // short, image_size * width // short
    return rows, columns, round((rows - image_size) / 2), round((columns - image_size) / 2)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    images, dtype = images.float(), images.dtype
    scaled = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    if dtype == torch.uint8:
        return scaled.round_().clamp_(0, 255).to(torch.uint8)
    return scaled.clamp_(0, 1)  # filter weights sum to 1 only up to rounding
