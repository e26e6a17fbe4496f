"""Operations on batches against Pillow's on one image after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hrrl_ext.ops import image_operations as operations

pytest.importorskip("PIL")
from augmix_peer import AFFINE, as_pictures, as_tensor
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import convolve1d

SIZES = [(32, 32), (21, 33), (1, 5), (5, 1), (2, 2), (3, 3)]
COUNT = 24


def images(height: int, width: int, channels: int = 3) -> Tensor:
    """Noise, smooth, low in contrast, of two levels, and of one: histograms of every kind."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    shape = (COUNT, channels, height, width)
    x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, 256, (6, channels, 3, 3), generator=generator).float()
    x[6:12] = torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear").to(torch.uint8)
    x[12:18] = x[12:18] // 9 + 60
    x[18:20] = x[18:20] // 128 * 255
    x[20], x[21], x[22, 0] = 0, 255, 7
    return x


def uniform(low: float, high: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(COUNT, generator=generator, dtype=torch.float64) * (high - low) + low


def given(*columns: Tensor) -> Tensor:
    """Parameters [B, 6]"""
    rest = [torch.zeros(COUNT)] * (6 - len(columns))
    return torch.stack([column.double() for column in (*columns, *rest)], 1)


NONE = given()


def by_pillow(x: Tensor, function: Callable[..., object], *parameter: Tensor) -> Tensor:
    pictures = as_pictures(x)
    rows = zip(pictures, *(p.tolist() for p in parameter), strict=True)
    return as_tensor([function(*row) for row in rows])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tables_are_pillows(height: int, width: int, channels: int) -> None:
    x = images(height, width, channels)
    before = x.clone()
    assert torch.equal(operations.autocontrast(x, NONE), by_pillow(x, ImageOps.autocontrast))
    assert torch.equal(operations.equalize(x, NONE), by_pillow(x, ImageOps.equalize))
    bits = torch.arange(COUNT) % 8 + 1
    assert torch.equal(operations.posterize(x, given(bits)), by_pillow(x, ImageOps.posterize, bits))
    threshold = uniform(1, 257).floor()
    threshold[:2] = torch.tensor([1.0, 256.0])
    assert torch.equal(
        operations.solarize(x, given(threshold)), by_pillow(x, ImageOps.solarize, threshold)
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color", "Sharpness"])
def test_enhancements_are_pillows(name: str, height: int, width: int, channels: int) -> None:
    """To the bit; factor 1 is the identity, 0 the degenerate image."""
    x, factor = images(height, width, channels), uniform(0.1, 1.9)
    factor[:3] = torch.tensor([0.0, 1.0, 2.5])
    ours = getattr(operations, name.lower())(x, given(factor))
    enhance = getattr(ImageEnhance, name)
    assert torch.equal(ours, by_pillow(x, lambda image, f: enhance(image).enhance(f), factor))
    assert torch.equal(ours[1], x[1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_affine_is_pillows_within_a_level(height: int, width: int, channels: int) -> None:
    """The same pixels are black, and the edge goes on for half a pixel in both. Pillow interpolates in
    double precision and cuts off; ours has float32, which falls on the other side of a whole number for
    some pixels in 100,000, at the edge no more than elsewhere."""
    x = images(height, width, channels)
    one, zero = torch.ones(COUNT, dtype=torch.float64), torch.zeros(COUNT, dtype=torch.float64)
    a, b, d, e = (uniform(-0.4, 0.4).roll(k) for k in range(4))
    c, f = uniform(-2, width), uniform(-height, 2)
    cases = {
        "identity": (one, zero, zero, zero, one, zero),
        "whole pixels": (one, zero, c.floor(), zero, one, f.floor()),
        "half pixels": (one, zero, zero + 0.5, zero, one, zero - 0.5),
        "any": (1 + a, b, c, d, 1 + e, f),
    }
    for case, entries in cases.items():
        matrix = torch.stack(entries, 1)
        ours = operations.affine(x, matrix)
        theirs = by_pillow(x, lambda image, *m: image.transform(image.size, AFFINE, m, 2), *entries)
        apart = (ours.int() - theirs.int()).abs()
        if case == "any":
            assert apart.max() <= 1 and (apart > 0).double().mean() < 1e-3
        else:
            assert not apart.any(), case
        assert case != "identity" or torch.equal(ours, x)


def test_an_image_looks_the_same_in_any_batch() -> None:
    x = images(21, 33)
    matrix = torch.stack([uniform(-1, 1).roll(k) for k in range(6)], 1)
    for name, function in operations.OPERATIONS.items():
        parameter = (8 * matrix).floor() if name in ("posterize", "crop") else matrix
        whole = function(x, parameter)
        for row in ([5], [23, 0, 12]):
            assert torch.equal(function(x[row], parameter[row]), whole[row]), name
        assert function(x[:0], parameter[:0]).shape == (0, 3, 21, 33), name


# --- crop, hue and blur: by other routes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_pillows_within_a_level(height: int, width: int, channels: int) -> None:
    """Pillow rounds between the two directions, in fixed point."""
    x = images(height, width, channels)
    top, left = (uniform(0, height) * 0.999).floor(), (uniform(0, width).roll(1) * 0.999).floor()
    h = (uniform(0, 1).roll(2) * (height - top)).ceil().clamp(1)
    w = (uniform(0, 1).roll(3) * (width - left)).ceil().clamp(1)
    flip = torch.arange(COUNT) % 2
    top[:2], left[:2], h[:2], w[:2] = 0, 0, height, width

    def cut(image: Any, *box: float) -> Any:
        top, left, h, w, flip = map(int, box)
        part = image.crop((left, top, left + w, top + h)).resize(
            image.size, Image.Resampling.BILINEAR
        )
        return ImageOps.mirror(part) if flip else part

    box = (top, left, h, w, flip)
    ours = operations.crop(x, given(*box))
    assert (ours.int() - by_pillow(x, cut, *box).int()).abs().max() <= 1
    assert torch.equal(ours[0], x[0]) and torch.equal(ours[1], x[1].flip(2))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (64, 128)])
def test_hue_is_pillows(height: int, width: int) -> None:
    """As torchvision turns it in Pillow's HSV, of 8 bits: to the bit. Grey pixels stay, whatever the turn."""

    def turned(image: Any, turn: float) -> Any:
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(level + int(turn * 255)) % 256 for level in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    x, turn = images(height, width), uniform(-1, 1)
    turn[:4] = torch.tensor([0.0, 1.0, 0.5, 1 / 255])
    x[-1, 1:] = x[-1, :1]
    ours = operations.hue(x, given(turn))
    assert torch.equal(ours, by_pillow(x, turned, turn))
    assert torch.equal(ours[-1], x[-1])
    assert torch.equal(operations.hue(x[:, :1], given(turn)), x[:, :1])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blur_is_pillows(height: int, width: int) -> None:
    """To the bit; and three boxes in double precision, each a mean over what their radius reaches, from which
    six roundings come to three levels."""
    x, sigma = images(height, width), uniform(0.1, 2.0)
    sigma[:6] = torch.tensor([0.0, 1e-3, 2.1, 2.2, 9.0, 64.0])
    ours = operations.blur(x, given(sigma))
    theirs = by_pillow(x, lambda image, s: image.filter(ImageFilter.GaussianBlur(s)), sigma)
    assert torch.equal(ours, theirs)
    for image, out, s in zip(x.numpy(), ours.numpy(), sigma.tolist(), strict=True):
        box, want = box_of(s), image.astype(float)
        for axis in (2, 2, 2, 1, 1, 1):
            want = convolve1d(want, box, axis, mode="nearest")
        assert abs(out - want).max() <= 3 + 1e-2
    assert torch.equal(ours[:2], x[:2])


def box_of(sigma: float) -> Any:
    """Weights of one of three boxes of 2 l + 1 pixels, and a part of one more at each end, so that their
    variances come to that of the Gaussian."""
    variance = sigma**2 / 3
    inner = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance)
    end /= 6 * (variance - (inner + 1) ** 2)
    box = np.array([end, *[1.0] * (2 * inner + 1), end]) / (2 * inner + 1 + 2 * end)
    place = np.arange(len(box)) - inner - 1
    assert math.isclose((box * place**2).sum(), variance, abs_tol=1e-12)
    return box
