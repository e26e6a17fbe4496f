"""Operations on batches of 8-bit images, as Pillow computes them on one: each image with its parameters.

levels [B, C, H, W] uint8, of one channel or three, → new ones; parameter [B, 6] float64 on their device,
of which most operations look at the first number only. :func:`mix_chains` specifies the operator.

All is sums of integers, and single IEEE operations on single values, each rounded by itself: the bits
depend neither on the batch nor on the device, and a kernel can have the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_chains(
    images: Tensor, operation: Tensor, parameter: Tensor, weight: Tensor, mix: Tensor
) -> Tensor:
    """See :func:`hrrl_ext.ops.mix_chains`. Every chain of every image is in memory at once."""
    kind = torch.promote_types(images.dtype, torch.float32)
    top = 255 if images.dtype == torch.uint8 else 1
    levels = images if top == 255 else as_levels(images)
    width = weight.shape[1]
    made = levels.expand(width, *levels.shape).flatten(0, 1)  # [W B, C, H, W]
    for step in range(operation.shape[2]):
        numbers = operation[:, :, step].T.flatten()
        given = parameter[:, :, step].transpose(0, 1).flatten(0, 1)
        after = made.clone()
        for number, function in enumerate(OPERATIONS.values()):
            rows = (numbers == number).nonzero()[:, 0]
            if len(rows):
                after[rows] = function(made[rows], given[rows])
        made = after
    original = (1 - mix).to(kind)
    shares = (mix * weight.T * (top / 255)).to(kind)  # [W, B]
    mixed = images * original[:, None, None, None]
    for share, chain in zip(shares, made.view(width, *levels.shape), strict=True):
        mixed += chain * share[:, None, None, None]
    mixed = mixed.clamp_(0, top)  # shares sum to 1 only up to rounding
    return (mixed.round_() if top == 255 else mixed).to(images.dtype)


def as_levels(images: Tensor) -> Tensor:
    """Of floats in [0, 1], the nearest ones."""
    kind = torch.promote_types(images.dtype, torch.float32)
    return (images.to(kind) * 255).nan_to_num().round().clamp(0, 255).to(torch.uint8)


# --- tables of 256 levels


def autocontrast(levels: Tensor, _: Tensor) -> Tensor:
    """Each channel is stretched over 0 .. 255; one of a single level stays."""
    pixels = levels.flatten(2)
    low, high = (level.double()[:, :, None] for level in (pixels.amin(2), pixels.amax(2)))
    every = torch.arange(256, dtype=torch.float64, device=levels.device)
    scale = every[255] / (high - low).clamp(min=1)  # a number / x would be its reciprocal times it
    table = (every * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return _looked_up(levels, torch.where(high > low, table, every.to(torch.uint8)))


def equalize(levels: Tensor, _: Tensor) -> Tensor:
    """The histogram of each channel is made flat."""
    pixels = levels.flatten(2).long()
    histogram = pixels.new_zeros(*pixels.shape[:2], 256)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    below = histogram.cumsum(2) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255).to(torch.uint8)
    every = torch.arange(256, dtype=torch.uint8, device=levels.device)
    return _looked_up(levels, torch.where(step > 0, table, every))


def _looked_up(levels: Tensor, table: Tensor) -> Tensor:
    """table [B, C, 256]: the new level of each old one."""
    return table.gather(2, levels.flatten(2).long()).view_as(levels)


def posterize(levels: Tensor, parameter: Tensor) -> Tensor:
    """Keeps so many of 8 bits, 0 .. 8."""
    bits = _of_pixels(parameter).nan_to_num(0).clamp(0, 8).long()
    return levels & (256 - 2 ** (8 - bits)).to(torch.uint8)


def solarize(levels: Tensor, parameter: Tensor) -> Tensor:
    """Levels from the threshold on are inverted."""
    return torch.where(levels >= _of_pixels(parameter), 255 - levels, levels)


def _of_pixels(parameter: Tensor, number: int = 0) -> Tensor:
    """[B, 1, 1, 1]"""
    return parameter[:, number, None, None, None]


# --- geometry


def affine(levels: Tensor, parameter: Tensor) -> Tensor:
    """The pixel centred at (x, y) shows (a x + b y + c, d x + e y + f) of the old image.

    Bilinear. What lies outside of the old image is black; within half a pixel of its edge the outermost
    pixels go on.
    """
    b, _, height, width = levels.shape
    x, y = (
        torch.arange(n, dtype=torch.float64, device=levels.device) + 0.5 for n in (width, height)
    )
    of_x, of_y, of_one = (
        parameter.view(b, 2, 3, 1, 1).transpose(0, 1).unbind(2)
    )  # [2, B, 1, 1] each
    place = (of_x * x + of_y * y[:, None]).add_(of_one)  # [2, B, H, W], x and y of the old image
    near = torch.empty_like(place)  # the same, or at the edge where that is outside
    for axis, size in enumerate((width, height)):
        torch.clamp(place[axis], 0, math.nextafter(size, 0), out=near[axis])
    inside = (near[0] == place[0]) & (near[1] == place[1])
    # With an edge of one pixel around the image: the centre of pixel i is at i + 1.
    near = near.nan_to_num_().add_(0.5)
    first = near.floor()  # of the four pixels around a place
    (column, row), (to_right, to_below) = first.long(), (near - first).float()[:, :, None]
    padded = F.pad(levels.float(), (1, 1, 1, 1), mode="replicate")
    shown = _between(padded, (row, row + 1), (column, column + 1), to_right, to_below)
    return shown.to(torch.uint8).mul_(inside[:, None])  # cut off, as Pillow does


def crop(levels: Tensor, parameter: Tensor) -> Tensor:
    """top, left, height and width of a part of the image, enlarged to the whole; flipped if the fifth
    number is above 0. Bilinear, rounded; beyond the edge of the part its outermost pixels go on."""
    size, parameter = levels.shape[2:], parameter.nan_to_num()
    taps = []
    for axis in (0, 1):
        first = parameter[:, axis, None].clamp(0, size[axis] - 1).floor()
        length = torch.minimum(parameter[:, axis + 2, None].floor(), size[axis] - first).clamp(1)
        out = torch.arange(size[axis], dtype=torch.float64, device=levels.device)[None]
        if axis == 1:
            out = torch.where(parameter[:, 4, None] > 0, size[axis] - 1 - out, out)
        per = length / torch.full_like(
            length, size[axis]
        )  # x / a number would be its reciprocal times x
        place = torch.minimum(((out + 0.5) * per - 0.5).clamp(0), length - 1)
        below = place.floor()
        above = torch.minimum(below + 1, length - 1)
        taps.append(((first + below).long(), (first + above).long(), (place - below).float()))
    rows, columns = ([tap.unsqueeze(dim) for tap in t] for t, dim in zip(taps, (2, 1), strict=True))
    to_right, to_below = columns[2][:, None], rows[2][:, None]
    shown = _between(levels.float(), rows[:2], columns[:2], to_right, to_below)
    return (shown + 0.5).to(torch.uint8)


def _between(
    pixels: Tensor,
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    to_right: Tensor,
    to_below: Tensor,
) -> Tensor:
    """Between four pixels [B, C, ...]: in rows and columns [B, H, W], and how far from the first."""
    width = pixels.shape[3]

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = row * width + column
        flat = index.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
        return pixels.flatten(2).gather(2, flat).unflatten(2, index.shape[1:])

    above, below = at(rows[0], columns[0]), at(rows[1], columns[0])
    above += at(rows[0], columns[1]).sub_(above).mul_(to_right)
    below += at(rows[1], columns[1]).sub_(below).mul_(to_right)
    return above.add_(below.sub_(above).mul_(to_below))


# --- enhancement: 0 is the degenerate image, 1 the image itself, more is beyond it


def brightness(levels: Tensor, parameter: Tensor) -> Tensor:
    """Degenerate: black."""
    return _enhanced(levels, torch.zeros_like(levels, dtype=torch.float32), parameter)


def contrast(levels: Tensor, parameter: Tensor) -> Tensor:
    """Degenerate: the mean grey, rounded."""
    grey = _grey(levels).flatten(1)
    pixels = grey.shape[1]
    mean = (2 * grey.sum(1) + pixels) // (2 * pixels)
    return _enhanced(levels, mean.float()[:, None, None, None], parameter)


def color(levels: Tensor, parameter: Tensor) -> Tensor:
    """Degenerate: grey."""
    return _enhanced(levels, _grey(levels).float(), parameter)


def sharpness(levels: Tensor, parameter: Tensor) -> Tensor:
    """Degenerate: smoothed by [1 1 1; 1 5 1; 1 1 1] / 13; the outermost pixels stay."""
    x, smooth = levels.int(), levels.float()
    if min(levels.shape[2:]) > 2:
        rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).float()
    return _enhanced(levels, smooth, parameter)


def _grey(levels: Tensor) -> Tensor:
    """[B, 1, H, W] int32, the luma of ITU-R 601 in 16 bits of fraction."""
    x = levels.int()
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _enhanced(levels: Tensor, degenerate: Tensor, parameter: Tensor) -> Tensor:
    away = (levels - degenerate) * _of_pixels(parameter).float()
    return (degenerate + away).nan_to_num_().clamp(0, 255).to(torch.uint8)


# --- hue and blur


def hue(levels: Tensor, parameter: Tensor) -> Tensor:
    """Turned by so much of the colour circle in HSV of 8 bits: whole 255ths, cut off."""
    if levels.shape[1] == 1:
        return levels.clone()
    value, chroma = levels.amax(1), levels.amax(1) - levels.amin(1)
    away = (value[:, None] - levels).float() / chroma.clamp(min=1).float()[:, None]
    of_red, of_green, of_blue = away.double().unbind(1)
    red, green = levels[:, 0] == value, levels[:, 1] == value
    sextant = torch.where(
        red,
        of_blue - of_green,
        torch.where(green, 2 + of_red - of_blue, 4 + of_green - of_red),
    )
    turn = sextant.float().double() * (1 / 6) + 1
    steps = (_of_pixels(parameter)[:, 0].nan_to_num(-1) * 255).clamp(-255, 255).long()
    hue = (((turn - turn.floor()).float() * 255).long() + steps) % 256
    saturation = (chroma.float() / value.clamp(min=1).float() * 255).long()
    value, one = value.long(), 255 * 255
    turned = []
    for start in (5, 3, 1):
        place = (6 * hue + 255 * start) % (6 * 255)
        share = torch.minimum(place, 4 * 255 - place).clamp(0, 255)
        turned.append((2 * value * (one - saturation * share) + one) // (2 * one))
    return torch.stack(turned, 1).to(torch.uint8)


def blur(levels: Tensor, parameter: Tensor) -> Tensor:
    """A Gaussian of so many pixels, 64 at most, as three boxes of its variance, along rows and then along
    columns: each rounded, and the edge goes on for each of them."""
    radius = _box_radius(parameter[:, 0].nan_to_num(0).clamp(0, 64).float())
    reach = radius.floor()
    near = (torch.full_like(radius, 2**24) / (2 * radius + 1)).long()  # in units of 2^-24
    far = (2**24 - (2 * reach.long() + 1) * near) // 2
    x, most = levels.long(), int(reach.max()) + 1 if len(reach) else 0
    for dim in (3, 3, 3, 2, 2, 2):
        last = levels.shape[dim] - 1
        place = torch.arange(last + 1, device=levels.device)
        total = near[:, None, None, None] * x
        for k in range(1, most + 1):
            weight = torch.where(reach >= k, near, torch.where(reach == k - 1, far, 0))
            sides = (place - k).clamp(min=0), (place + k).clamp(max=last)
            total += weight[:, None, None, None] * sum(x.index_select(dim, side) for side in sides)
        x = (total + 2**23) >> 24
    return x.to(torch.uint8)


def _box_radius(sigma: Tensor) -> Tensor:
    """[B] float32: a box has 2 r + 1 pixels, of a radius that is not whole a part of two of them (Gwosdek
    et al., 2011)."""
    variance = sigma * sigma / torch.full_like(sigma, 3)
    length = (12 * variance.double() + 1).sqrt().float()
    whole = ((length - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) * (whole + 1)))


OPERATIONS = {
    function.__name__: function
    for function in (
        *(autocontrast, equalize, posterize, solarize, affine, brightness, contrast, color),
        *(sharpness, crop, hue, blur),
    )
}
"""By name, in the order of their numbers, which the kernels share (csrc/common/image_program.h)."""
