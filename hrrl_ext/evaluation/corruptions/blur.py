"""Corruptions by blur. x [B, 3, H, W] float32 in [0, 1]; unit: pixels per published pixel."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import Draws
from .filters import convolve, crop_middle, smear, smooth, zoom, zoom_source


def gaussian_blur(x: Tensor, draws: Draws, unit: float, sigma: float) -> Tensor:
    """Convolution with a Gaussian, cut off at 4 sigma."""
    return smooth(x, sigma * unit)


def defocus_blur(x: Tensor, draws: Draws, unit: float, radius: float, soft: float) -> Tensor:
    """Convolution with a disk whose edge is softened by a small Gaussian."""
    return convolve(x, disk(radius, soft, unit).to(x))


@lru_cache(maxsize=16)
def disk(radius: float, soft: float, unit: float) -> Tensor:
    """[K, K] of sum 1. The Gaussian reaches 1 published pixel, 2 for a disk beyond 8, as published."""
    reach = max(1, round((2 if radius > 8 else 1) * unit))
    span = torch.arange(-reach, reach + 1, dtype=torch.float64) / (soft * unit)
    edge = torch.exp(-0.5 * (span[:, None].square() + span.square()))
    half = int(radius * unit)
    y = torch.arange(-half, half + 1, dtype=torch.float64)
    inside = (y[:, None].square() + y.square() <= (radius * unit) ** 2).double()
    softened = F.conv2d(inside[None, None], edge[None, None], padding=2 * reach)
    return (softened[0, 0] / softened.sum()).float()


def glass_blur(
    x: Tensor, draws: Draws, unit: float, sigma: float, reach: float, rounds: float
) -> Tensor:
    """Gaussian blur, each pixel from a random neighbour, Gaussian blur.

    As published, pixels are visited from the bottom right to the top left, and each takes what its
    neighbour, up to ``reach`` away, holds at that time. (The published line is meant to swap the
    two; of NumPy's views it copies one.)
    """
    distance = max(1, round(reach * unit))
    shuffled = smooth(x, sigma * unit)
    for _ in range(int(rounds)):
        source = _sources(draws, distance, x.shape[2], x.shape[3])  # [B, H W]
        flat = shuffled.flatten(2)
        shuffled = flat.gather(2, source[:, None].expand_as(flat)).view_as(x)
    return smooth(shuffled, sigma * unit)


def _sources(draws: Draws, reach: int, height: int, width: int) -> Tensor:
    """[B, H W]: the pixel whose value each pixel holds after one round.

    A pixel that takes from one visited before it takes what that one took: a chain, which ends at the
    first neighbour not visited yet. Chains are followed by doubling, in a few steps for all pixels.
    """
    shift = draws.integers(
        -reach, reach, height, width, 2
    )  # [B, H, W, 2], below reach as published
    visited = torch.zeros(height, width, dtype=torch.bool, device=shift.device)
    visited[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True  # as published
    visited = visited.flatten()
    here = torch.arange(height * width, device=shift.device)
    taken = here + visited * (shift[..., 0] * width + shift[..., 1]).flatten(1)  # [B, H W]
    chain = torch.where((taken > here) & visited[taken], taken, here)
    while True:
        further = chain.gather(1, chain)
        if torch.equal(further, chain):
            return taken.gather(1, chain)
        chain = further


def motion_blur(x: Tensor, draws: Draws, unit: float, radius: float, sigma: float) -> Tensor:
    """One-sided Gaussian blur along a line, at an angle between -45° and 45° to the horizontal."""
    return smear(x, draws.uniform(-45, 45), radius * unit, sigma * unit)


def zoom_blur(x: Tensor, draws: Draws, unit: float, step: float, count: float) -> Tensor:
    """(x + Σ_i zoom(x, 1 + i · step)) / (count + 1), i = 0..count-1, about the centre."""
    size = x.shape[2:]
    total = 2 * x  # the image itself, and the factor 1
    for i in range(1, int(count)):
        factor = 1 + i * step
        total += zoom(crop_middle(x, zoom_source(size, factor)), factor, size)
    return total / (count + 1)
