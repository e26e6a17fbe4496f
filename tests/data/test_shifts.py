"""Shifts: values by hand, invariants, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrrl_ext.data import (
    ArrayImages,
    ConceptMap,
    ImageSet,
    concept_shares,
    few_per_class,
    imbalance,
    load_images,
    lower_resolution,
)
from hrrl_ext.data.concept_tables import imagenet_table


def random_images(n=5, side=8, dtype=torch.uint8) -> ArrayImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    concepts = ConceptMap.from_names(["x", "y"])
    return ArrayImages(images, [i % 2 for i in range(n)], concept_map=concepts, name="toys")


def test_lower_resolution_by_hand():
    # Two blocks with means 10 and 50; bilinear enlargement by 2 weighs them 1, 3/4, 1/4, 0.
    row = [8, 12, 40, 60]
    images = ArrayImages(np.array([[row, row]], dtype=np.uint8), [0])
    lowered = lower_resolution(images, 2).images
    assert lowered[0, 0].tolist() == [[10, 20, 40, 50]] * 2
    assert lowered.dtype == torch.uint8


def test_lower_resolution_to_one_pixel_is_the_mean():
    images = random_images()
    lowered = lower_resolution(images, 8).images
    mean = images.images.double().mean((2, 3), keepdim=True)
    # Half a level of rounding, and float32 sums of 64 numbers below 256.
    assert ((lowered - mean).abs() <= 0.5 + 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_factor_one_changes_nothing(dtype):
    images = random_images(dtype=dtype)
    assert torch.equal(lower_resolution(images, 1).images, images.images)


def test_lower_resolution_of_floats_is_not_rounded():
    lowered = lower_resolution(random_images(dtype=torch.float32), 2)
    rounded = lower_resolution(random_images(), 2)
    assert lowered.images.dtype == torch.float32
    # The same values, one route rounded to levels of 1/255 (half a level, plus float32 rounding).
    assert (lowered.images * 255 - rounded.images).abs().max() <= 0.5 + 1e-3
    assert (lowered.images * 255).frac().abs().max() > 0.1


def test_lower_resolution_keeps_everything_else(monkeypatch):
    images = random_images()
    before = images.images.clone()
    lowered = lower_resolution(images)
    assert torch.equal(images.images, before)
    assert torch.equal(lowered.target, images.target)
    assert (lowered.classes, lowered.concept_map) == (images.classes, images.concept_map)
    monkeypatch.setattr("hrrl_ext.data.shifts._CHUNK", 2)
    assert torch.equal(lower_resolution(images).images, lowered.images)


@pytest.mark.parametrize(
    ("factor", "error"), [(3, ValueError), (0, ValueError), (-2, ValueError), (2.0, TypeError)]
)
def test_factor(factor, error):
    with pytest.raises(error, match="factor must"):
        lower_resolution(random_images(), factor)


def test_only_images_in_memory():
    class Other(ImageSet):
        pass

    other = Other([0], (3, 8, 8), classes=None, concept_map=None, name="other")
    with pytest.raises(TypeError, match="must be ArrayImages, got Other"):
        lower_resolution(other)


CONCEPT = torch.tensor([0, 1, 0, 1, 0, 1, 0, 2, 0, 0])


def numbered() -> ArrayImages:
    return ArrayImages(np.zeros((10, 2, 2), dtype=np.uint8), list(range(10)))


def kept(keep, seed=0) -> list[int]:
    return imbalance(numbered(), CONCEPT, keep, seed).target.tolist()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ([1, 1, 1], [6, 3, 1]),
        ([0.5, 0.5, 0.5], [3, 2, 1]),  # 1.5 is rounded up, 0.5 too
        ([0, 0, 0], [1, 1, 1]),
        ([0.25, 1, 0], [2, 3, 1]),
    ],
)
def test_imbalance_keeps_these_shares(keep, expected):
    rows = kept(keep)
    assert CONCEPT[rows].bincount().tolist() == expected
    assert rows == sorted(set(rows))  # old order, no image twice


def test_imbalance_is_reproducible_and_nested():
    assert kept([0.5, 0.5, 0]) == kept([0.5, 0.5, 0])
    assert len({tuple(kept([0.5, 0.5, 0], seed)) for seed in range(20)}) > 5
    smaller, larger = kept([0.3, 0.3, 1]), kept([0.7, 0.3, 1])
    assert set(smaller) < set(larger)
    # The share of one concept does not touch the choice within another.
    assert [i for i in smaller if CONCEPT[i] == 1] == [i for i in larger if CONCEPT[i] == 1]


def test_imbalance_keeps_classes():
    assert imbalance(numbered(), CONCEPT, [0, 0, 0], 0).num_classes == 10


@pytest.mark.parametrize(
    ("concept", "keep", "error", "message"),
    [
        (CONCEPT[:9], [1, 1, 1], ValueError, r"shape \[10\], one entry per image, got \[9\]"),
        (CONCEPT.float(), [1, 1, 1], TypeError, "must hold integers"),
        (CONCEPT, [1, 1], ValueError, r"in 0\.\.1, got 2 at position 7"),
        (CONCEPT, [1, 1, 1, 1], ValueError, "no image of concept 3"),
        (CONCEPT, [1, 1.5, 1], ValueError, r"shares in \[0, 1\], got 1.5"),
        (CONCEPT, [1, float("nan"), 1], ValueError, r"shares in \[0, 1\], got nan"),
    ],
)
def test_imbalance_refusals(concept, keep, error, message):
    with pytest.raises(error, match=message):
        imbalance(numbered(), concept, keep, 0)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("equal", [100, 100, 100, 100, 100]),
        ("linear:10", [100, 77.5, 55, 32.5, 10]),
        ("tail:16", [100, 50, 25, 12.5, 6.25]),
        (
            "imagenet",
            [100, 112.5 / 1.29, 100 / 1.29, 63 / 1.29, 56 / 1.29],
        ),  # at 0, 2.5, 5, 7.5, 10
    ],
)
def test_profiles_by_hand(profile, expected):
    shares = concept_shares(profile, [100] * 5)
    assert [100 * share for share in shares] == pytest.approx(expected)


def test_imagenet_s_profile_is_its_table_s():
    counts = np.unique(list(imagenet_table().values()), return_counts=True)[1]
    shares = concept_shares("imagenet", [1] * 11)
    assert shares == pytest.approx(sorted(counts / counts.max(), reverse=True))


@pytest.mark.parametrize("profile", ["equal", "linear:3", "tail:100", "imagenet"])
def test_the_scarcest_concept_keeps_all_of_its_images(profile):
    count = [50, 400, 90, 1000]
    sizes = [share * n for share, n in zip(concept_shares(profile, count), count, strict=True)]
    flat = concept_shares(profile, [1] * 4)
    assert [size / sizes[0] for size in sizes] == pytest.approx(flat)  # whatever there was
    assert max(concept_shares(profile, count)) == 1.0


def test_a_seed_draws_who_gets_which_place():
    drawn = {tuple(concept_shares("linear:10", [9] * 4, seed=seed)) for seed in range(12)}
    assert len(drawn) > 4
    assert {tuple(sorted(shares)) for shares in drawn} == {
        tuple(sorted(concept_shares("linear:10", [9] * 4)))
    }
    one = [concept_shares("tail:10", [9] * 4, seed=3) for _ in range(2)]
    assert one[0] == one[1]
    assert concept_shares("tail:10", [7], seed=3) == [1.0]  # of one concept all


@pytest.mark.parametrize(
    ("profile", "count", "message"),
    [
        ("liner:10", [1, 1], "did you mean 'linear'"),
        ("linear", [1, 1], "ratio is missing; expected linear:10"),
        ("tail:0.5", [1, 1], "at least 1"),
        ("tail:many", [1, 1], "ratio must be a finite number"),
        ("equal:2", [1, 1], "it takes no setting"),
        ("equal", [1, 0], r"at least 1, got \[1, 0\]"),
        ("equal", [], r"got \[\]"),
    ],
)
def test_profile_refusals(profile, count, message):
    with pytest.raises(ValueError, match=message):
        concept_shares(profile, count)


def test_few_per_class_is_nested_and_of_the_seed():
    digits = load_images("digits")
    five, twenty = (few_per_class(digits, count, 3) for count in (5, 20))
    assert digits.target[five].bincount().tolist() == [5] * 10
    assert set(five.tolist()) < set(twenty.tolist())
    assert five.tolist() == sorted(five.tolist()) == few_per_class(digits, 5, 3).tolist()
    assert five.tolist() != few_per_class(digits, 5, 4).tolist()
    # What is drawn of a class does not depend on the others.
    some = digits.subset((digits.target != 0).nonzero().flatten())
    drawn = few_per_class(some, 5, 3)
    others = digits.images[five][digits.target[five] != 0]
    assert torch.equal(some.images[drawn], others)


def test_too_few_per_class():
    with pytest.raises(
        ValueError, match="class '0' of digits-train has 134 images, fewer than 135"
    ):
        few_per_class(load_images("digits"), 135, 0)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        few_per_class(load_images("digits"), 0, 0)
