"""Corruptions value by value. x [B, 3, H, W] float32 in [0, 1]; `corrupt` clamps what leaves it."""

from __future__ import annotations

from torch import Tensor

from .draws import Draws


def gaussian_noise(x: Tensor, draws: Draws, unit: float, scale: float) -> Tensor:
    """x + scale · n, n ~ N(0, 1)."""
    return x + scale * draws.normal(*x.shape[1:])


def shot_noise(x: Tensor, draws: Draws, unit: float, photons: float) -> Tensor:
    """Poisson(photons · x) / photons: mean x, variance x / photons."""
    return draws.poisson(photons * x) / photons


def impulse_noise(x: Tensor, draws: Draws, unit: float, amount: float) -> Tensor:
    """A share ``amount`` of the values, each on its own, becomes 0 or 1, with equal odds."""
    u = draws.uniform(0, 1, *x.shape[1:])
    return x.masked_fill(u < amount / 2, 0).masked_fill(u >= 1 - amount / 2, 1)


def speckle_noise(x: Tensor, draws: Draws, unit: float, scale: float) -> Tensor:
    """x + scale · x · n, n ~ N(0, 1)."""
    return x + scale * x * draws.normal(*x.shape[1:])
