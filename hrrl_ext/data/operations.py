"""Operations on batches of 8-bit images, as Pillow computes them on one: each image with its parameter.

images [B, C, H, W] uint8 → new ones. ``color`` and ``contrast`` know one channel or three, the others any
number. Parameters [B] are float64, on the device of the images.

All is sums of integers, and single IEEE operations on single values, each rounded by itself: the bits
depend neither on the batch nor on the device. Nothing waits for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# --- tables of 256 levels


def autocontrast(images: Tensor) -> Tensor:
    """Each channel is stretched over 0 .. 255; one of a single level stays."""
    pixels = images.flatten(2)
    low, high = (level.double()[:, :, None] for level in (pixels.amin(2), pixels.amax(2)))
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = levels[255] / (high - low).clamp(min=1)  # a number / x would be its reciprocal times it
    table = (levels * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return _looked_up(images, torch.where(high > low, table, levels.to(torch.uint8)))


def equalize(images: Tensor) -> Tensor:
    """The histogram of each channel is made flat."""
    pixels = images.flatten(2).long()
    histogram = pixels.new_zeros(*pixels.shape[:2], 256)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    below = histogram.cumsum(2) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255).to(torch.uint8)
    levels = torch.arange(256, dtype=torch.uint8, device=images.device)
    return _looked_up(images, torch.where(step > 0, table, levels))


def _looked_up(images: Tensor, table: Tensor) -> Tensor:
    """table [B, C, 256]: the new level of each old one."""
    return table.gather(2, images.flatten(2).long()).view_as(images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps so many of 8 bits."""
    return images & (256 - 2 ** (8 - bits.long())).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Levels from the threshold on, 1 .. 256, are inverted."""
    highest = (threshold - 1).to(torch.uint8)[:, None, None, None]  # of those that stay
    return images ^ (images > highest) * torch.full_like(highest, 255)


# --- geometry


def affine(images: Tensor, matrix: Tensor) -> Tensor:
    """The pixel centred at (x, y) shows (a x + b y + c, d x + e y + f) of the old image; matrix [B, 6].

    Bilinear. What lies outside of the old image is black; within half a pixel of its edge the outermost
    pixels go on.
    """
    b, channels, height, width = images.shape
    x, y = (
        torch.arange(n, dtype=torch.float64, device=images.device) + 0.5 for n in (width, height)
    )
    of_x, of_y, of_one = matrix.view(b, 2, 3, 1, 1).transpose(0, 1).unbind(2)  # [2, B, 1, 1] each
    place = (of_x * x + of_y * y[:, None]).add_(of_one)  # [2, B, H, W], x and y of the old image
    near = torch.empty_like(place)  # the same, or at the edge where that is outside
    for axis, size in enumerate((width, height)):
        torch.clamp(place[axis], 0, math.nextafter(size, 0), out=near[axis])
    inside = (near[0] == place[0]) & (near[1] == place[1])
    # With an edge of one pixel around the image: the centre of pixel i is at i + 1.
    first = near.add_(0.5).floor()  # of the four pixels around a place
    to_right, to_below = near.sub_(first).float()[:, :, None]  # [B, 1, H, W]
    index = first[1].mul_(width + 2).add_(first[0]).long().flatten(1)[:, None]
    index = index.expand(-1, channels, -1)
    pixels = F.pad(images.float(), (1, 1, 1, 1), mode="replicate").flatten(2)

    def at(row: int, column: int) -> Tensor:
        return pixels[:, :, row * (width + 2) + column :].gather(2, index).view_as(images)

    above, below = at(0, 0), at(1, 0)
    above += at(0, 1).sub_(above).mul_(to_right)
    below += at(1, 1).sub_(below).mul_(to_right)
    above += below.sub_(above).mul_(to_below)
    return above.to(torch.uint8).mul_(inside[:, None])  # cut off, as Pillow does


# --- enhancement: 0 is the degenerate image, 1 the image itself, more is beyond it


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Degenerate: black."""
    return _enhanced(images, torch.zeros_like(images, dtype=torch.float32), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Degenerate: the mean grey, rounded."""
    grey = _grey(images).flatten(1)
    pixels = grey.shape[1]
    mean = (2 * grey.sum(1) + pixels) // (2 * pixels)
    return _enhanced(images, mean.float()[:, None, None, None], factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Degenerate: grey."""
    return _enhanced(images, _grey(images).float(), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Degenerate: smoothed by [1 1 1; 1 5 1; 1 1 1] / 13; the outermost pixels stay."""
    x, smooth = images.int(), images.float()
    if min(images.shape[2:]) > 2:
        rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).float()
    return _enhanced(images, smooth, factor)


def _grey(images: Tensor) -> Tensor:
    """[B, 1, H, W] int32, the luma of ITU-R 601 in 16 bits of fraction."""
    x = images.int()
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _enhanced(images: Tensor, degenerate: Tensor, factor: Tensor) -> Tensor:
    away = (images - degenerate) * factor.float()[:, None, None, None]
    return (degenerate + away).clamp(0, 255).to(torch.uint8)
