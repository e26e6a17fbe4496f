"""What mix_chains is tried on, on the CPU and the emulated GPU: images, and every operation on each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hrrl_ext.data import AugMix
from hrrl_ext.ops import IMAGE_OPERATIONS

Program: TypeAlias = tuple[Tensor, ...]
DTYPES = (torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIDES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (9, 13), (32, 32)]
COUNT = 24


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(height: int, width: int, channels: int = 3) -> Tensor:
    """Noise, smooth, low in contrast, of two levels, and of one: histograms of every kind."""
    g = generator(height * 100 + width)
    shape = (COUNT, channels, height, width)
    x = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    coarse = torch.randint(0, 256, (6, channels, 3, 3), generator=g).float()
    x[6:12] = F.interpolate(coarse, shape[2:], mode="bilinear").to(torch.uint8)
    x[12:18] = x[12:18] // 9 + 60
    x[18:20] = x[18:20] // 128 * 255
    x[20], x[21], x[22, 0] = 0, 255, 7
    return x


def as_kind(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Levels, or floats up to half a level away."""
    if dtype == torch.uint8:
        return x
    x = (x.double() + torch.rand(x.shape, generator=generator(1)) - 0.5) / 255
    return x.to(dtype)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def alone(name: str, height: int, width: int) -> Program:
    """One operation, with parameters for each image at and within their bounds."""
    u = torch.rand(COUNT, 6, generator=generator(2), dtype=torch.float64)
    p = u.clone()
    match name:
        case "posterize":
            p[:, 0] = torch.arange(COUNT) % 9
        case "solarize":
            p[:, 0] = (u[:, 0] * 257).floor()
            p[:3, 0] = torch.tensor([0.0, 1.0, 256.0])
        case "affine":
            p = (u - 0.5) * torch.tensor([0.8, 0.8, 0.6 * width, 0.8, 0.8, 0.6 * height])
            p[:, 0], p[:, 4] = p[:, 0] + 1, p[:, 4] + 1
            p[:8, 1], p[4:12, 3] = 0, 0  # columns, or rows, that are the same in all lines
            p[12:16, :2], p[12:16, 3:5] = torch.tensor([1.0, 0]), torch.tensor([0, 1.0])
            p[14:16] = p[14:16].round()  # whole pixels
            p[16] = torch.tensor([1.0, 0, 0, 0, 1, 0])
            p[17] = torch.tensor([1.0, 0, 0.5, 0, 1, -0.5])
            p[18], p[19, 2] = 1e12, torch.nan
        case "crop":
            sides = torch.tensor([height, width]).double()
            p[:, :2], p[:, 2:4] = (u[:, :2] * sides).floor(), (u[:, 2:4] * sides).floor() + 1
            p[:, 4] = u[:, 4].round()
            p[0], p[1] = torch.tensor([0.0, 0, height, width, 0, 0]), -1e9
            p[2], p[3, :4] = 1e9, torch.tensor([0.0, 0, 1, 1])
        case "hue":
            p = 2 * u - 1
            p[:3, 0] = torch.tensor([0.0, 1e30, torch.nan])
        case "blur":
            p = 2.2 * u
            p[:8, 0] = torch.tensor([0.0, 0.01, 9.0, 64.0, 1e30, -1.0, -torch.inf, torch.nan])
        case "brightness" | "contrast" | "color" | "sharpness":
            p[:, 0] = 2.5 * u[:, 0]
            p[:5, 0] = torch.tensor([0.0, 1.0, -1.0, 1e30, torch.nan])
    one = torch.ones(COUNT, 1)
    operation = torch.full((COUNT, 1, 1), IMAGE_OPERATIONS.index(name))
    return operation, p[:, None, None].contiguous(), one, one[:, 0]


def chains(height: int, width: int, seed: int = 0, **settings: object) -> Iterator[Program]:
    """AugMix, of each set of operations."""
    for operations in ("paper", "all", "moco"):
        augmix = AugMix(severity=9.0, operations=operations, **settings)
        yield tuple(augmix.program(augmix.draw(COUNT, generator(seed)), height, width))
