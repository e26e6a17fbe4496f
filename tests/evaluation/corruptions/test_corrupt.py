"""What holds for every kind: seeds, batches, dtypes, layouts, sizes, severities; and the corrupted view."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages, Batches, ConceptMap
from hrrl_ext.evaluation.corruptions import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corrupted,
)
from hrrl_ext.evaluation.corruptions.severities import TABLES, parameters

pytest.importorskip("PIL")  # jpeg_compression

KINDS = CORRUPTIONS + EXTRA_CORRUPTIONS
NO_DRAWS = {
    *("defocus_blur", "zoom_blur", "brightness", "contrast"),
    *("pixelate", "jpeg_compression", "gaussian_blur", "saturate"),
}


@functools.cache
def pictures(count=4, height=32, width=32, seed=0) -> torch.Tensor:
    """[count, 3, H, W] uint8: smooth colours with edges, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    edges = torch.nn.functional.interpolate(
        torch.rand(count, 3, 7, 7, generator=generator), (height, width)
    )
    return ((0.7 * smooth + 0.3 * edges).clamp(0, 1) * 255).to(torch.uint8)


def test_names():
    assert len(CORRUPTIONS) == 15 and len(EXTRA_CORRUPTIONS) == 4
    assert tuple(TABLES) == KINDS
    for large, small in TABLES.values():
        assert len(large) == len(small) == 5
        assert len({len(row) for row in large + small}) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [9, 86])
def test_an_image_is_corrupted_alike_in_any_batch(kind, side, monkeypatch):
    images = pictures(3, side, side)
    together = corrupt(images, kind, 3, index=[7, 0, 9])
    assert torch.equal(corrupt(images[2:], kind, 3, index=[9]), together[2:])
    monkeypatch.setattr("hrrl_ext.evaluation.corruptions.kinds._CHUNK", 3 * side * side * 2)
    assert torch.equal(corrupt(images, kind, 3, index=[7, 0, 9]), together)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_random_depends_on_seed_and_index(kind):
    images = pictures(1).repeat(3, 1, 1, 1)
    first = corrupt(images, kind, 4)
    assert torch.equal(first, corrupt(images, kind, 4))
    other_seed = corrupt(images, kind, 4, seed=1)
    if kind in NO_DRAWS:
        assert torch.equal(first, other_seed) and torch.equal(first[0], first[1])
    else:
        assert not torch.equal(first[0], other_seed[0])
        assert not torch.equal(first[0], first[1])
        assert torch.equal(first[[2]], corrupt(images[:1], kind, 4, index=torch.tensor([2])))


def test_kinds_and_severities_draw_differently():
    grey = torch.full((1, 3, 32, 32), 0.5)
    gaussian = (corrupt(grey, "gaussian_noise", 1) - 0.5) / 0.04
    stronger = (corrupt(grey, "gaussian_noise", 2) - 0.5) / 0.06
    speckle = (corrupt(grey, "speckle_noise", 1) - 0.5) / 0.03
    for other in (stronger, speckle):  # 3072 draws: a correlation of 0.018 is one standard error
        assert abs(torch.corrcoef(torch.stack([gaussian.flatten(), other.flatten()]))[0, 1]) < 0.09


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_layouts(kind):
    images = pictures(2)
    before, state = images.clone(), torch.get_rng_state()
    made = corrupt(images, kind, 2)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert made.dtype == torch.uint8 and made.shape == images.shape
    assert torch.equal(corrupt(images.contiguous(memory_format=torch.channels_last), kind, 2), made)
    assert torch.equal(corrupt(images.flip(3).contiguous().flip(3), kind, 2), made)
    exact = corrupt(images / 255, kind, 2)
    assert torch.equal((exact * 255).round().to(torch.uint8), made)
    spaced = torch.zeros(2, 3, 32, 64)
    spaced[..., ::2] = images / 255
    assert torch.equal(corrupt(spaced[..., ::2], kind, 2), exact)
    wide = corrupt(images.double() / 255, kind, 2)
    assert wide.dtype == torch.float64
    # 8-bit levels in float64 and float32 differ by rounding, which one level of an encoder may follow.
    assert (wide - exact).abs().max() < (1.5 / 255 if kind == "jpeg_compression" else 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    images = (pictures(1) / 255).to(torch.bfloat16)
    made = corrupt(images, kind, 5)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, corrupt(images.float(), kind, 5).to(torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (17, 5)], ids=str)
def test_small_and_odd_sizes(kind, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    made = corrupt(images, kind, 5)
    assert made.shape == images.shape
    assert made.min() >= 0 and made.max() <= 1  # fails on NaN too


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_and_white_stay_finite(kind, level):
    for severity in (3, 5):
        made = corrupt(torch.full((1, 3, 12, 12), level), kind, severity)
        assert made.min() >= 0 and made.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_images(kind):
    assert corrupt(torch.zeros(0, 3, 8, 8), kind, 1).shape == (0, 3, 8, 8)


# Kinds whose published parameters do not grow with the severity in every step, by the table they are of:
# saturate turns from less colour to more, spatter from water to mud, elastic_transform and fog exchange one
# parameter for another, glass_blur blur for swaps, snow's thresholds and frost's weights go both ways, and
# pixelate of 32 pixels has blocks of 1 and 2.
UNORDERED = {
    90: {"saturate", "spatter", "elastic_transform", "glass_blur", "fog", "frost", "snow"},
    32: {"saturate", "spatter", "elastic_transform", "glass_blur", "frost", "pixelate"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [90, 32])
def test_a_severity_is_not_milder_than_the_one_before(kind, side):
    images = pictures(2 if side == 90 else 8, side, side, seed=1) / 255
    distance = [(corrupt(images, kind, s) - images).square().mean().item() for s in SEVERITIES]
    assert distance[0] > 0
    assert distance[4] > distance[0] or kind == "elastic_transform"
    if kind not in UNORDERED[side]:
        # Random kinds: the means of a few images scatter by some percent.
        slack = 1 if kind in NO_DRAWS else 0.93
        for milder, stronger in itertools.pairwise(distance):
            assert stronger >= slack * milder


def test_the_rule_for_sizes():
    blur = {side: parameters("gaussian_blur", 5, side) for side in (8, 32, 64, 84, 85, 224, 448)}
    assert {side: row for side, (row, _) in blur.items()} == {
        **dict.fromkeys((8, 32, 64, 84), (1,)),
        **dict.fromkeys((85, 224, 448), (6,)),
    }
    assert {side: unit for side, (_, unit) in blur.items()} == {
        **{8: 1, 32: 1, 64: 2, 84: 84 / 32},
        **{85: 85 / 224, 224: 1, 448: 2},
    }


# Mean and standard deviation in levels of one picture at severity 3, at 32 and 90 pixels. They pin the
# draws as well as the arithmetic; half a level is far more than processors differ by.
GOLDEN = {
    "gaussian_noise": (123.0, 53.2, 123.9, 64.5),
    "shot_noise": (123.7, 52.5, 121.7, 67.2),
    "impulse_noise": (123.1, 52.9, 124.3, 61.3),
    "defocus_blur": (123.1, 48.2, 123.5, 48.8),
    "glass_blur": (122.5, 48.8, 122.8, 49.6),
    "motion_blur": (124.2, 47.5, 124.1, 49.0),
    "zoom_blur": (121.9, 46.8, 122.5, 47.3),
    "snow": (152.2, 51.0, 192.8, 47.0),
    "frost": (164.9, 47.3, 188.2, 40.5),
    "fog": (110.2, 35.7, 134.6, 28.8),
    "brightness": (150.6, 57.7, 173.1, 63.5),
    "contrast": (123.1, 23.4, 123.5, 16.4),
    "elastic_transform": (123.1, 48.6, 123.5, 50.0),
    "pixelate": (123.2, 49.4, 124.0, 49.6),
    "jpeg_compression": (123.3, 47.4, 123.9, 49.7),
    "speckle_noise": (123.5, 52.3, 122.4, 63.9),
    "gaussian_blur": (123.1, 47.7, 123.5, 48.9),
    "spatter": (130.6, 52.9, 128.6, 52.3),
    "saturate": (104.2, 64.1, 93.8, 70.6),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden(kind):
    found: list[float] = []
    for side in (32, 90):
        made = corrupt(pictures(1, side, side), kind, 3, seed=5).double()
        found += [made.mean().item(), made.std().item()]
    assert found == pytest.approx(GOLDEN[kind], abs=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "gausian_noise"}, ValueError, "kind 'gausian_noise' is not known; did you mean 'gaussian_noise'"),
        ({"kind": "none"}, ValueError, "known are 'gaussian_noise', 'shot_noise'"),
        ({"severity": 0}, ValueError, "severity must be one of 1, 2, 3, 4, 5, got 0"),
        ({"severity": 6}, ValueError, "got 6"),
        ({"severity": 2.0}, ValueError, "got 2.0"),
        ({"severity": True}, ValueError, "got True"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"must be RGB, \[B, 3, H, W\], got \[3, 8, 8\]"),
        ({"images": torch.zeros(2, 1, 8, 8)}, ValueError, r"got \[2, 1, 8, 8\]"),
        ({"images": torch.zeros(2, 3, 0, 8)}, ValueError, r"got \[2, 3, 0, 8\]"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, TypeError, "uint8, or float in .* got torch.int64"),
        ({"images": torch.full((2, 3, 8, 8), 1.1)}, ValueError, r"in \[0, 1\]; image 0 .* to 1.1"),
        ({"images": torch.full((2, 3, 8, 8), torch.nan)}, ValueError, "image 0 holds values from nan"),
        ({"index": [0]}, ValueError, r"one number per image, \[2\], got \[1\]"),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    settings = {"images": pictures(2), "kind": "fog", "severity": 1} | arguments
    with pytest.raises(error, match=message):
        corrupt(**settings)


# --- corrupted


def numbered() -> ArrayImages:
    concepts = ConceptMap.from_names(["x", "y"])
    images = ArrayImages(pictures(6), [0, 1] * 3, concept_map=concepts, name="toys")
    images.columns = {"place": np.arange(6)}
    return images


def test_the_view_corrupts_each_image_by_its_place():
    clean = numbered()
    view = corrupted(clean, "gaussian_noise", 3, seed=4)
    expected = corrupt(clean.images, "gaussian_noise", 3, seed=4)
    assert torch.equal(view.__getitems__([4, 1, -1])[0], expected[[4, 1, 5]])
    assert torch.equal(view[2][0], expected[2])
    assert view.__getitems__([4, 1, -1])[1].tolist() == [0, 1, 1]
    assert torch.equal(clean.images, pictures(6))
    assert (view.classes, view.concept_map, len(view)) == (clean.classes, clean.concept_map, 6)
    assert view.name == "toys, gaussian_noise 3"
    assert view.columns["place"].tolist() == list(range(6))


def test_a_subset_of_the_view_keeps_its_noise():
    view = corrupted(numbered(), "shot_noise", 5)
    part = view.subset([5, 2]).subset([1, 0, 0])
    assert torch.equal(part.__getitems__([0, 1, 2])[0], view.__getitems__([2, 5, 5])[0])
    assert part.target.tolist() == [0, 1, 1]
    assert part.columns["place"].tolist() == [2, 5, 5]


def test_the_view_resizes_before_it_corrupts():
    clean = numbered()
    small = corrupted(clean, "pixelate", 3).resized(16)
    assert small.image_shape == (3, 16, 16)
    assert torch.equal(
        small.__getitems__([0, 3])[0], corrupt(clean.resized(16).images[[0, 3]], "pixelate", 3)
    )


def test_the_view_goes_through_batches():
    view = corrupted(numbered(), "fog", 2)
    loaded = [x for x, _, _ in Batches(view, view.target, 4, shuffle=False).epoch(0)]
    whole = view.__getitems__(list(range(6)))[0]
    assert torch.equal((torch.cat(loaded) * 255).round().to(torch.uint8), whole)


def test_the_view_refuses_at_once():
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        corrupted(numbered(), "fogs", 1)
    with pytest.raises(ValueError, match="severity must be"):
        corrupted(numbered(), "fog", 9)
