"""Linear filters that several corruptions share, edges as published. Images [B, C, H, W] float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Edge = Literal["nearest", "reflect"]


def smooth(x: Tensor, sigma: float, *, truncate: float = 4, edge: Edge = "nearest") -> Tensor:
    """Gaussian blur, cut off at truncate · sigma; edge: "nearest" aaa|abc, "reflect" cba|abc."""
    rows, columns = (_gaussian_matrix(n, sigma, truncate, edge).to(x) for n in x.shape[-2:])
    return rows @ x @ columns.T


@lru_cache(maxsize=64)
def _gaussian_matrix(n: int, sigma: float, truncate: float, edge: Edge) -> Tensor:
    """[n, n], of rows that sum to 1: a blur with its edges is a product, whatever its reach."""
    reach = int(truncate * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset / max(sigma, 1e-3)).double().square())
    source = torch.arange(n)[:, None] + offset  # [n, 2 reach + 1]
    if edge == "reflect":
        source = source % (2 * n)
        source = torch.minimum(source, 2 * n - 1 - source)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix.scatter_add_(1, source.clamp(0, n - 1), (weight / weight.sum()).expand(n, -1))
    return matrix.float()


def mirror_pad(x: Tensor, width: int) -> Tensor:
    """Padding cb|abc|ba on all four sides, by any width."""
    rows, columns = (_mirrored(n, width, x.device) for n in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


def _mirrored(n: int, width: int, device: torch.device) -> Tensor:
    period = max(2 * (n - 1), 1)
    index = torch.arange(-width, n + width, device=device) % period
    return torch.minimum(index, period - index)


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution with a kernel [K, K] of odd side, mirrored at the edges; by Fourier transform."""
    reach = kernel.shape[0] // 2
    padded = mirror_pad(x, reach)
    # Multiples of 16 have small prime factors: the transform of 244 pixels takes three times that of 256.
    height, width = (-(-n // 16) * 16 for n in padded.shape[-2:])
    spectrum = torch.fft.rfft2(padded, (height, width)) * torch.fft.rfft2(kernel, (height, width))
    out = torch.fft.irfft2(spectrum, (height, width))
    return out[..., 2 * reach : 2 * reach + x.shape[-2], 2 * reach : 2 * reach + x.shape[-1]]


def zoom_source(size: Sequence[int], factor: float) -> tuple[int, int]:
    """Rows and columns of the centre that `zoom` magnifies to this size."""
    height, width = (math.ceil(n / factor) for n in size)
    return height, width


def zoom(centre: Tensor, factor: float, size: Sequence[int]) -> Tensor:
    """Magnifies by a factor, linearly, corner onto corner, and crops the middle to this size."""
    large = [round(n * factor) for n in centre.shape[-2:]]
    out = F.interpolate(centre, large, mode="bilinear", align_corners=True)
    return crop_middle(out, size)


def crop_middle(x: Tensor, size: Sequence[int]) -> Tensor:
    top, left = ((n - m) // 2 for n, m in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


def smear(x: Tensor, angle: Tensor, radius: float, sigma: float) -> Tensor:
    """Blur along a line: y(p) = Σ_i w_i x(p + i (cos, sin)), w_i ∝ exp(-i²/2σ²), i = 0..2⌈radius⌉.

    One-sided as in ImageMagick, with rounded offsets and the edge repeated; angle [B] in degrees.
    """
    reach = 2 * math.ceil(radius)
    step = torch.arange(reach + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * (step / sigma).square())
    weights = (weight / weight.sum()).tolist()
    direction = torch.deg2rad(angle.cpu().double())[:, None]
    offset = torch.stack([direction.sin() * step, direction.cos() * step], 1)  # [B, 2, taps]
    corners = ((offset - 0.5).ceil().long() + reach).tolist()
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    out = torch.zeros_like(x)
    height, width = x.shape[-2:]
    for image, source, (tops, lefts) in zip(out, padded, corners, strict=True):
        for top, left, w in zip(tops, lefts, weights, strict=True):
            image.add_(source[:, top : top + height, left : left + width], alpha=w)
    return out


def sample(
    x: Tensor, row: Tensor, column: Tensor, *, reflect_at: Literal["pixels", "edges"]
) -> Tensor:
    """x at fractional row, column [B, H, W], bilinear; mirrored at the border pixels or their edges."""
    height, width = x.shape[-2:]
    at_pixels = reflect_at == "pixels"
    if at_pixels:
        grid = [2 * column / max(width - 1, 1) - 1, 2 * row / max(height - 1, 1) - 1]
    else:
        grid = [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1]
    return F.grid_sample(
        x, torch.stack(grid, -1), padding_mode="reflection", align_corners=at_pixels
    )
