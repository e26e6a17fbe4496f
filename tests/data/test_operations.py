"""Operations on batches against Pillow's on one image after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hrrl_ext.data import operations

pytest.importorskip("PIL")
from augmix_peer import AFFINE, as_pictures, as_tensor
from PIL import ImageEnhance, ImageOps

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


def by_pillow(x: Tensor, function: Callable[..., object], *parameter: Tensor) -> Tensor:
    pictures = as_pictures(x)
    rows = zip(pictures, *(p.tolist() for p in parameter), strict=True)
    return as_tensor([function(*row) for row in rows])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tables_are_pillows(height: int, width: int, channels: int) -> None:
    x = images(height, width, channels)
    before = x.clone()
    assert torch.equal(operations.autocontrast(x), by_pillow(x, ImageOps.autocontrast))
    assert torch.equal(operations.equalize(x), by_pillow(x, ImageOps.equalize))
    bits = torch.arange(COUNT) % 8 + 1
    assert torch.equal(
        operations.posterize(x, bits.double()), by_pillow(x, ImageOps.posterize, bits)
    )
    threshold = uniform(1, 257).floor()
    threshold[:2] = torch.tensor([1.0, 256.0])
    assert torch.equal(
        operations.solarize(x, threshold), by_pillow(x, ImageOps.solarize, threshold)
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color", "Sharpness"])
def test_enhancements_are_pillows(name: str, height: int, width: int, channels: int) -> None:
    """To the bit; factor 1 is the identity, 0 the degenerate image."""
    x, factor = images(height, width, channels), uniform(0.1, 1.9)
    factor[:3] = torch.tensor([0.0, 1.0, 2.5])
    ours = getattr(operations, name.lower())(x, factor)
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
    x, factor = images(21, 33), uniform(0.1, 1.9)
    matrix = torch.stack([uniform(-1, 1).roll(k) for k in range(6)], 1)
    calls: dict[str, tuple[Tensor, ...]] = {
        "autocontrast": (), "equalize": (), "posterize": (torch.arange(COUNT) % 8 + 1,),
        "solarize": (uniform(1, 256).floor(),), "affine": (matrix,),
        **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), (factor,)),
    }  # fmt: skip
    for name, parameter in calls.items():
        function = getattr(operations, name)
        whole = function(x, *parameter)
        for row in ([5], [23, 0, 12]):
            assert torch.equal(function(x[row], *(p[row] for p in parameter)), whole[row]), name
        assert function(x[:0], *(p[:0] for p in parameter)).shape == (0, 3, 21, 33), name
