"""Random erasing against a loop over images, and its law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hrrl_ext._streams import Draws
from hrrl_ext.data import RandomErasing


def draws(count: int, seed: int = 0) -> Draws:
    return Draws.of_images(torch.arange(count), seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_rectangle_has_one_colour_and_the_rest_stays(dtype: torch.dtype, channels: int) -> None:
    x = torch.randint(0, 256, (40, channels, 11, 8), dtype=torch.uint8)
    x = x if dtype == torch.uint8 else x.to(dtype) / 255
    before, erasing = x.clone(), RandomErasing(0.7)
    got = erasing(x, draws(40))
    assert got.dtype == dtype and torch.equal(x, before)
    levels = got if dtype == torch.uint8 else (got * 255).round().to(torch.uint8)
    for n, (top, left, h, w) in enumerate(erasing.boxes(draws(40), 11, 8).tolist()):
        part = levels[n, :, top : top + h, left : left + w]
        assert part.shape[1:] == (h, w) and (part == part[:, :1, :1]).all()
        want = before[n].clone()
        want[:, top : top + h, left : left + w] = got[n, :, top : top + h, left : left + w]
        assert torch.equal(got[n], want)


def test_kinds_of_images_have_the_same_colours() -> None:
    black = torch.zeros(20, 3, 6, 6, dtype=torch.uint8)
    of_levels = RandomErasing(1.0)(black, draws(20))
    assert torch.equal(RandomErasing(1.0)(black.float(), draws(20)), of_levels / 255)
    assert len(of_levels.amax((2, 3)).unique(dim=0)) == 20  # each its own


def test_sides_and_shares_are_those_that_are_asked_for() -> None:
    """Rounding moves a side by half a pixel at most, of 0.3·√0.1·200 ≈ 35 and more."""
    box = RandomErasing(0.5, scale=(0.1, 0.2), ratio=(0.5, 2)).boxes(draws(4000), 200, 200)
    h, w = box[box[:, 2] > 0, 2:].double().unbind(1)
    # Binomial(4000, 1/2) has a standard deviation of 32; five of them
    assert abs(len(h) - 2000) < 160
    area, ratio = h * w / 200**2, (h / w).log()
    assert 0.097 < area.min() < area.max() < 0.203
    assert ratio.abs().max() < math.log(2) + 0.03
    # uniform: means of 0.15 ± 0.1/√(12·2000) and 0 ± 2 log 2/√(12·2000), five of them
    assert abs(area.mean() - 0.15) < 0.0033 and abs(ratio.mean()) < 0.045
    top, left = box[box[:, 2] > 0, :2].double().unbind(1)
    for at, side in ((top, h), (left, w)):
        place = (at + 0.5) / (200 - side + 1)  # uniform on (0, 1)
        assert place.min() > 0 and place.max() < 1 and abs(place.mean() - 0.5) < 0.033


def test_edges() -> None:
    x = torch.rand(9, 3, 5, 7)
    assert torch.equal(RandomErasing(0.0)(x, draws(9)), x)
    for shape in ((9, 3, 1, 7), (9, 3, 5, 1), (9, 3, 1, 1)):  # no side may go whole
        one = torch.rand(shape)
        assert torch.equal(RandomErasing(1.0)(one, draws(9)), one)
    assert RandomErasing(1.0)(x[:0], draws(0)).shape == (0, 3, 5, 7)
    box = RandomErasing(1.0, scale=(1.0, 1.0)).boxes(draws(9), 5, 7)
    assert not box[:, 2:].any()  # the whole of it never fits


def test_an_image_is_erased_by_its_number_alone() -> None:
    x, erasing = torch.rand(8, 3, 6, 6), RandomErasing(1.0)
    of_all = erasing(x, draws(8))
    some = torch.tensor([5, 2])
    assert torch.equal(erasing(x[some], Draws.of_images(some, 0)), of_all[some])
    assert not torch.equal(erasing(x, draws(8, seed=1)), of_all)


def test_by_torchvisions_law() -> None:
    """The same steps in a loop, with the numbers that were drawn here."""
    erasing = RandomErasing(0.8, scale=(0.02, 0.9))
    box = erasing.boxes(draws(200), 9, 12)
    again = draws(200)
    chosen = again.chance(0.8)
    low, high = np.log(erasing.ratio)
    area, ratio = again.uniform(0.02, 0.9, (10,)), again.uniform(low, high, (10,))
    at = again.uniform(shape=(2,))
    for n in range(200):
        want = [0, 0, 0, 0]
        for a, r in zip(area[n].tolist(), ratio[n].exp().tolist(), strict=True):
            h, w = round(math.sqrt(a * 108 * r)), round(math.sqrt(a * 108 / r))
            if chosen[n] and 0 < h < 9 and 0 < w < 12:
                want = [int(at[n, 0] * (10 - h)), int(at[n, 1] * (13 - w)), h, w]
                break
        assert box[n, 2:].tolist() == want[2:]
        assert want[2] == 0 or box[n].tolist() == want


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.5}, "p must be a probability, got 1.5"),
        ({"scale": (0.0, 0.3)}, r"scale must be the least .* at most 1, got \(0.0, 0.3\)"),
        ({"scale": (0.5, 0.3)}, "scale must be the least"),
        ({"ratio": (-1.0, 2.0)}, "ratio must be the least and the most, above 0, got"),
    ],
)
def test_what_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomErasing(**settings)
