"""Operations on batches of 8-bit images, as Pillow computes them on one: each image with its parameter.

images [B, C, H, W] uint8 → new ones. ``color`` and ``contrast`` know one channel or three, the others any
number. Parameters [B] are float64, on the device of the images.

All is sums of integers, and single IEEE operations on single values, each rounded by itself: the bits
depend neither on the batch nor on the device. Nothing waits for it.
"""

from __future__ import annotations

import torch
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
    column, row = (
        torch.arange(n, dtype=torch.float64, device=images.device) + 0.5 for n in (width, height)
    )
    to_x, to_y = matrix.view(b, 2, 3, 1, 1).unbind(1)
    x, y = ((m[:, 0] * column + m[:, 1] * row[:, None]).add_(m[:, 2]) for m in (to_x, to_y))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # [B, H, W], as are x and y
    left, right, dx = _between(x, width)
    top, bottom, dy = _between(y, height)
    top, bottom = top.mul_(width), bottom.mul_(width)
    pixels = images.flatten(2).float()

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row + column).view(b, 1, -1).expand(-1, channels, -1)
        return pixels.gather(2, index).view_as(images)

    upper, lower = at(top, left), at(bottom, left)
    upper += (at(top, right) - upper) * dx
    lower += (at(bottom, right) - lower) * dx
    upper += lower.sub_(upper).mul_(dy)
    return upper.to(torch.uint8).mul_(inside[:, None])  # cut off, as Pillow does


def _between(place: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels whose centres lie around places [B, H, W], and the share [B, 1, H, W] of the second.
    The places are lost."""
    place -= 0.5
    first = place.floor()
    share = place.sub_(first).float()[:, None]
    first = first.long()
    second = first + 1
    return first.clamp_(0, size - 1), second.clamp_(0, size - 1), share


# --- enhancement: 0 is the degenerate image, 1 the image itself, more is beyond it


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Degenerate: black."""
    return _enhanced(images, torch.zeros_like(images, dtype=torch.float32), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Degenerate: the mean grey, rounded."""
    grey = _grey(images).flatten(1)
    mean = (grey.sum(1).double() / grey.shape[1] + 0.5).floor().float()
    return _enhanced(images, mean[:, None, None, None], factor)


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
