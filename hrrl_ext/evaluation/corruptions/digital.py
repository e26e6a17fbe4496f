"""Corruptions by processing. x [B, 3, H, W] float32 in [0, 1]; unit: pixels per published pixel."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from .draws import Draws
from .filters import sample, smooth


def brightness(x: Tensor, draws: Draws, unit: float, added: float) -> Tensor:
    """V + added in HSV, at most 1, with the same hue and saturation: x · V'/V; black becomes grey."""
    value = x.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value), brighter)


def saturate(x: Tensor, draws: Draws, unit: float, factor: float, added: float) -> Tensor:
    """S · factor + added in HSV, clamped: V - (V - x) · S'/S. Grey has the hue 0, red, as published."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = (factor * chroma / value + added).clamp(0, 1)
    distance = (value - x) / chroma  # 0 for the largest channel, 1 for the smallest
    red = x.new_tensor([0.0, 1.0, 1.0])[:, None, None]
    distance = torch.where(chroma > 0, distance, red)
    return torch.where(value > 0, value * (1 - saturation * distance), 0.0)


def contrast(x: Tensor, draws: Draws, unit: float, factor: float) -> Tensor:
    """m + factor · (x - m), m the mean of each channel of each image."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def elastic_transform(
    x: Tensor, draws: Draws, unit: float, amplitude: float, sigma: float, jitter: float
) -> Tensor:
    """A random affine map, then a displacement of each pixel by smooth noise; both bilinear.

    The map moves three points, a third of the side from the centre, by up to ``jitter`` of the side.
    The displacement is amplitude · (uniform noise in [-1, 1], blurred by sigma).
    """
    height, width = x.shape[2:]
    side = min(height, width)
    centre = torch.tensor([width // 2, height // 2], dtype=torch.float64)  # (column, row)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    before = centre + max(side // 3, 1) * corners  # [3, 2]
    after = before + side * draws.uniform(-jitter, jitter, 3, 2).cpu().double()
    # The map takes `before` to `after`; each pixel asks where it came from: after · solution = before.
    ones = torch.ones(len(x), 3, 1, dtype=torch.float64)
    origin = torch.linalg.solve(torch.cat([after, ones], 2), before.expand(len(x), 3, 2)).to(x)
    row, column = torch.meshgrid(
        torch.arange(height, device=x.device, dtype=x.dtype),
        torch.arange(width, device=x.device, dtype=x.dtype),
        indexing="ij",
    )
    from_column, from_row = (
        origin[:, 0, i, None, None] * column
        + origin[:, 1, i, None, None] * row
        + origin[:, 2, i, None, None]
        for i in (0, 1)
    )
    moved = sample(x, from_row, from_column, reflect_at="pixels")
    noise = draws.uniform(-1, 1, 2, height, width)
    # Noise blurred over a length has a spread of 1 / length: the square keeps displacements a share of
    # the side.
    shift = amplitude * unit**2 * smooth(noise, sigma * unit, truncate=3, edge="reflect")
    return sample(moved, row + shift[:, 0], column + shift[:, 1], reflect_at="edges")


def pixelate(x: Tensor, draws: Draws, unit: float, share: float) -> Tensor:
    """Each block becomes its mean: the side is reduced to share of it, and enlarged again.

    As Pillow's box filter: a block is the pixels whose centres lie in it, and an enlarged pixel is that
    of the block its centre lies in.
    """
    (row, rows), (column, columns) = (
        _blocks(n, max(1, int(n * share)), x.device) for n in x.shape[2:]
    )
    means = rows @ x @ columns.T
    return means.index_select(2, row).index_select(3, column)


def _blocks(size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[size] the block of each pixel when enlarged, and [count, size] the weights of each mean."""
    edges = (
        torch.arange(count + 1, dtype=torch.float64, device=device) * size / count + 0.5
    ).floor()
    pixel = torch.arange(size, device=device)
    inside = (pixel >= edges[:-1, None]) & (pixel < edges[1:, None])
    block = ((pixel + 0.5) * count / size).floor().long()
    return block, inside / inside.sum(1, keepdim=True)


def jpeg_compression(x: Tensor, draws: Draws, unit: float, quality: float) -> Tensor:
    """Encoded and decoded by Pillow, after rounding to 8 bits. Needs the extra `images`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'jpeg_compression needs Pillow: pip install "hrrl_ext[images]"'
        ) from error
    pixels = (x * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    decoded = np.empty_like(pixels)
    for image, out in zip(pixels, decoded, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        out[...] = Image.open(file)
    return torch.from_numpy(decoded).to(x.device).permute(0, 3, 1, 2).to(x.dtype).div_(255)
