"""Operations on batches against Pillow's on one image after the other."""

from __future__ import annotations

import colorsys
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
from scipy.ndimage import gaussian_filter

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


def test_hue_turns_by_the_colour_circle() -> None:
    """colorsys, in double precision: rounded, to a level. Grey pixels, and a whole turn, change nothing."""
    x, turn = images(3, 7), uniform(-1, 1)
    turn[:2] = torch.tensor([0.0, 1.0])
    ours = operations.hue(x, given(turn))
    for image, out, by in zip(x, ours, turn.tolist(), strict=True):
        pixels = image.flatten(1).T.tolist()
        for levels, got in zip(pixels, out.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in levels))
            want = [255 * c for c in colorsys.hsv_to_rgb((h + by) % 1, s, v)]
            assert all(abs(a - b) <= 0.5 + 1e-3 for a, b in zip(got, want, strict=True))
    assert torch.equal(ours[:2], x[:2])
    grey = x[:, :1]
    assert torch.equal(operations.hue(grey, given(turn)), grey)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blur_is_a_gaussian(height: int, width: int) -> None:
    """SciPy's, cut off at the same neighbours, in double precision: two roundings come to a level."""
    x, sigma = images(height, width), uniform(0.1, 2.0)
    sigma[0] = 0.05
    weights = torch.exp(-0.5 * (torch.arange(7) / sigma[:, None]) ** 2)
    weights = weights[:, 1:] / (1 + 2 * weights[:, 1:].sum(1, keepdim=True))
    ours = operations.blur(x, weights)
    for image, out, s in zip(x.numpy(), ours.numpy(), sigma.tolist(), strict=True):
        for plane, got in zip(image, out, strict=True):
            want = gaussian_filter(plane.astype(float), s, mode="nearest", radius=6)
            assert abs(got - want).max() <= 1 + 1e-4
    assert torch.equal(ours[0], x[0])


def smooth() -> Tensor:
    coarse = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize("x", [images(32, 32), smooth()], ids=["all kinds", "smooth"])
def test_hue_is_pillows_but_for_its_eight_bits(x: Tensor) -> None:
    """torchvision turns Pillow's HSV, which cuts hue and saturation off to whole 255ths. A step of the hue is
    6/255 of the chroma; there is another where the sum goes around, as a byte has 256. The saturation moves
    the darkest channel by a level at most, and roundings by another. Even a turn of 0 moves levels there."""

    def turned(image: Any, steps: float) -> Any:
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(level + int(steps)) % 256 for level in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")

    steps = uniform(-26, 26).floor()
    steps[0] = 0
    apart = (operations.hue(x, given(steps / 255)).int() - by_pillow(x, turned, steps).int()).abs()
    chroma = (x.amax(1) - x.amin(1)).double()[:, None]
    assert (apart <= 2 + 2 * 6 / 255 * chroma).all()
    assert apart.double().mean() < 1 and apart[0].any()


@pytest.mark.parametrize("x", [images(32, 32), smooth()], ids=["all kinds", "smooth"])
def test_blur_is_pillows_but_for_its_boxes(x: Tensor) -> None:
    """MoCo's views are blurred by Pillow, whose Gaussian is three boxes of the same variance. Levels of 0 to
    255 come apart by 255/2 times the sum of what the weights differ by, and by the roundings: Pillow's six
    and our two, half a level each. Not so at the edge, which Pillow lets go on anew for each box."""
    sigma = uniform(0.1, 2.0)
    weights = torch.exp(-0.5 * (torch.arange(7) / sigma[:, None]) ** 2)
    weights = weights[:, 1:] / (1 + 2 * weights[:, 1:].sum(1, keepdim=True))
    theirs = by_pillow(x, lambda image, s: image.filter(ImageFilter.GaussianBlur(s)), sigma)
    apart = (operations.blur(x, weights).int() - theirs.int()).abs()
    for one, own, s in zip(apart, weights.numpy(), sigma.tolist(), strict=True):
        whole = np.array([*own[::-1], 1 - 2 * own.sum(), *own])
        boxes = three_boxes(s, len(whole) // 2)
        differ = abs(np.outer(whole, whole) - np.outer(boxes, boxes)).sum()
        assert one[:, 6:-6, 6:-6].max() <= 255 / 2 * differ + 4


def three_boxes(sigma: float, reach: int) -> Any:
    """[2 reach + 1] weights: three boxes of 2 l + 1 pixels, and a part of one more at each end, so that
    their variances come to that of the Gaussian (Gwosdek et al., 2011)."""
    variance = sigma**2 / 3
    inner = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    end = (2 * inner + 1) * (inner * (inner + 1) - 3 * variance)
    end /= 6 * (variance - (inner + 1) ** 2)
    box = np.array([end, *[1.0] * (2 * inner + 1), end]) / (2 * inner + 1 + 2 * end)
    three = np.convolve(np.convolve(box, box), box)
    middle, most = len(three) // 2, max(reach, len(three) // 2)
    return np.pad(three, most - middle)[most - reach : most + reach + 1]
