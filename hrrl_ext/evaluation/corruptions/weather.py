"""Corruptions by weather. x [B, 3, H, W] float32 in [0, 1]; unit: pixels per published pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import Draws
from .filters import mirror_pad, smear, smooth, zoom, zoom_source

_LUMA = (0.299, 0.587, 0.114)
# Frost: means of the five photographs that the published generator draws from, in [0, 1].
_ICE_TINT = (0.89, 1.02, 1.09)
_ICE_TONE = (0.45, 0.83)
_ICE_SPREAD = (0.06, 0.14)
_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_REACH_OF_RELIEF = 20  # published pixels


def snow(
    x: Tensor,
    draws: Draws,
    unit: float,
    mean: float,
    scale: float,
    flake: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """share · x + (1 - share) · max(x, 1.5 · grey(x) + 0.5) + flakes + the flakes turned by 180°.

    Flakes are magnified Gaussian noise above a threshold, smeared along their fall.
    """
    size = x.shape[2:]
    factor = max(1.0, flake * unit)
    noise = mean + scale * draws.normal(1, *zoom_source(size, factor))
    flakes = zoom(noise, factor, size)
    flakes = flakes.masked_fill(flakes < threshold, 0).clamp_(0, 1)
    flakes = smear(flakes, draws.uniform(-135, -45), radius * unit, sigma * unit)
    grey = (x * _colour(_LUMA, x)).sum(1, keepdim=True)
    whitened = torch.maximum(x, 1.5 * grey + 0.5)
    return share * x + (1 - share) * whitened + flakes + flakes.flip(2, 3)


def frost(x: Tensor, draws: Draws, unit: float, image: float, ice: float) -> Tensor:
    """image · x + ice · texture.

    Deviates from the published generator, which crops one of five photographs of ice: the texture is
    drawn, see `_ice`.
    """
    return image * x + ice * _ice(draws, x)


def _ice(draws: Draws, x: Tensor) -> Tensor:
    """[B, 3, H, W]: noise of power 1/f², and bright veins where another such noise changes its sign.

    Tone, spread, tint and slope of the spectrum are those of the photographs.
    """
    height, width = x.shape[2:]
    fy, fx = torch.fft.fftfreq(height, device=x.device), torch.fft.rfftfreq(width, device=x.device)
    frequency = (fy[:, None].square() + fx.square()).sqrt()
    frequency[0, 0] = torch.inf  # no mean
    field = torch.fft.irfft2(
        torch.fft.rfft2(draws.normal(2, height, width)) / frequency, (height, width)
    )
    cloud, vein = _standardised(field).unbind(1)
    texture = _standardised(cloud - 2 * vein.abs().clamp(max=0.5))
    tone, spread = (draws.uniform(*limits, 1, 1) for limits in (_ICE_TONE, _ICE_SPREAD))
    shade = tone + spread * texture
    return (shade[:, None] * _colour(_ICE_TINT, x)).clamp_(0, 1)


def _standardised(field: Tensor) -> Tensor:
    mean, std = field.mean((-2, -1), keepdim=True), field.std((-2, -1), keepdim=True, correction=0)
    return (field - mean) / std.clamp(min=1e-12)


def fog(x: Tensor, draws: Draws, unit: float, density: float, decay: float) -> Tensor:
    """(x + density · plasma) · m / (m + density), m the largest value of the image."""
    plasma = _plasma(draws, max(x.shape[2:]), decay)[:, None, : x.shape[2], : x.shape[3]]
    largest = x.amax((1, 2, 3), keepdim=True)
    return (x + density * plasma) * largest / (largest + density)


def _plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """[B, S, S] in [0, 1], S the power of two from side on: the diamond-square fractal, periodic."""
    size = 1 << max(side - 1, 1).bit_length()
    values = draws.uniform(-1, 1, size, size)  # a value is drawn once, at the level that sets it
    step, wobble = size, 100.0
    values[:, 0, 0] = 0
    while step >= 2:
        half = step // 2
        corners = values[:, ::step, ::step]
        below, right = corners + corners.roll(-1, 1), corners + corners.roll(-1, 2)
        centres = _wobbled(values[:, half::step, half::step], wobble, below + below.roll(-1, 2))
        _wobbled(values[:, ::step, half::step], wobble, right + centres + centres.roll(1, 1))
        _wobbled(values[:, half::step, ::step], wobble, below + centres + centres.roll(1, 2))
        step, wobble = half, wobble / decay
    values -= values.amin((1, 2), keepdim=True)
    return values / values.amax((1, 2), keepdim=True)


def _wobbled(values: Tensor, wobble: float, neighbours: Tensor) -> Tensor:
    """In place: the mean of four neighbours, of which the sum is given, plus the value drawn."""
    return values.mul_(wobble**2).add_(neighbours, alpha=0.25)


def spatter(
    x: Tensor,
    draws: Draws,
    unit: float,
    mean: float,
    scale: float,
    drop: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Tensor:
    """Drops where blurred noise is above a threshold: x + m · water, or (1 - m) · x + m · mud."""
    # The blur divides the spread of the noise by its width: multiplied, drops cover the same share.
    noise = mean + scale * unit * draws.normal(1, *x.shape[2:])
    layer = smooth(noise, drop * unit)
    drops = layer >= threshold
    if mud:
        cover = smooth((layer > threshold).to(x), strength * unit)
        cover = cover.masked_fill(cover < 0.8, 0)
        return x * (1 - cover) + cover * _colour(_MUD, x)
    gloss = layer * drops * _relief(drops, round(_REACH_OF_RELIEF * unit))
    largest = gloss.amax((1, 2, 3), keepdim=True)
    return x + strength * (gloss / largest.clamp(min=1e-12)) * _colour(_WATER, x)


def _relief(drops: Tensor, reach: int) -> Tensor:
    """Shading [B, 1, H, W] in [0, 255] of drops: the equalised distance to their edge, embossed."""
    # Of the two pixels across an edge the upper or left one, as non-maximum suppression takes them.
    edge = torch.zeros_like(drops)
    edge[..., :-1, :] |= drops[..., :-1, :] != drops[..., 1:, :]
    edge[..., :-1] |= drops[..., :-1] != drops[..., 1:]
    distance = _distance(edge, reach)
    level = F.avg_pool2d(mirror_pad(distance, 1), 3, 1).long()
    emboss = distance.new_tensor([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    shaded = F.conv2d(mirror_pad(_equalised(level), 1), emboss[None, None]).clamp_(0, 255)
    return F.avg_pool2d(mirror_pad(shaded, 1), 3, 1)


def _distance(edge: Tensor, reach: int) -> Tensor:
    """To the nearest pixel of the edge, at most reach. Squares are separable: columns, then rows."""
    squared = torch.where(edge, 0.0, float(reach**2))
    for dim in (2, 3):
        near = squared
        for k in range(1, reach):
            size = squared.shape[dim] - k
            if size <= 0:
                break
            near = near.clone() if near is squared else near
            for to, source in ((0, k), (k, 0)):
                part = near.narrow(dim, to, size)
                torch.minimum(part, squared.narrow(dim, source, size) + k**2, out=part)
        squared = near
    return squared.sqrt()


def _equalised(level: Tensor) -> Tensor:
    """Levels [B, 1, H, W] int64 → float32: their ranks, from 0 for the lowest to 255 for the highest."""
    batch, size = len(level), 256
    image = torch.arange(batch, device=level.device)[:, None]
    flat = level.flatten(1)
    count = torch.bincount((flat + size * image).flatten(), minlength=batch * size).view(
        batch, size
    )
    rank = count.cumsum(1)
    lowest = count.gather(1, flat.amin(1, keepdim=True))
    span = flat.shape[1] - lowest
    table = torch.where(
        span > 0,
        ((rank - lowest) * 255 / span.clamp(min=1)).round(),
        torch.arange(size, device=level.device),  # of one level alone: as it is
    )
    return table.float().gather(1, flat).view(level.shape)


def _colour(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]
