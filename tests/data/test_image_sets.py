"""ArrayImages: layouts, dtypes, fetching, and every refusal."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages, ConceptMap, ImageSet

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)  # [N, 3, H, W]


def labels(n: int = 5) -> list[int]:
    return [i % 3 for i in range(n)]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    "view",
    [RGB, np.ascontiguousarray(RGB.transpose(0, 2, 3, 1)), RGB.transpose(0, 2, 3, 1)],
    ids=["channels first", "channels last", "strided"],
)
def test_layouts_are_stored_alike(view, kind):
    images = ArrayImages(kind(view), labels())
    assert images.images.shape == (5, 3, 4, 6)
    assert images.images.is_contiguous()
    assert np.array_equal(images.images.numpy(), RGB)
    assert images.image_shape == (3, 4, 6)


def test_grey_images_get_three_equal_channels():
    grey = RGB[:, 0]
    images = ArrayImages(grey, labels()).images
    assert images.shape == (5, 3, 4, 6)
    assert images.is_contiguous()
    for channel in range(3):
        assert np.array_equal(images[:, channel].numpy(), grey)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_become_float32(dtype):
    values = (RGB / 255).astype(dtype)
    images = ArrayImages(values, labels())
    assert images.images.dtype == torch.float32
    assert np.array_equal(images.images.numpy(), values.astype(np.float32))


def test_bfloat16_tensor():
    images = ArrayImages(torch.from_numpy(RGB).bfloat16() / 256, labels())
    assert images.images.dtype == torch.float32


def test_read_only_and_reversed_arrays():
    frozen = RGB.copy()
    frozen.setflags(write=False)
    images = ArrayImages(frozen, labels()).images
    assert np.array_equal(images.numpy(), RGB)
    images.zero_()  # a copy: torch has no read-only tensors
    assert np.array_equal(frozen, RGB)
    assert np.array_equal(ArrayImages(RGB[::-1], labels()).images.numpy(), RGB[::-1])


def test_fetching():
    images = ArrayImages(RGB, labels())
    image, target = images[4]
    assert np.array_equal(image.numpy(), RGB[4])
    assert target == 1
    assert isinstance(target, int)
    x, targets = images.__getitems__([3, 0, 3])
    assert np.array_equal(x.numpy(), RGB[[3, 0, 3]])
    assert targets.tolist() == [0, 0, 0]
    assert np.array_equal(images[-1][0].numpy(), RGB[4])
    x, targets = images.__getitems__([])
    assert x.shape == (0, 3, 4, 6)
    assert targets.shape == (0,)


def test_iteration_ends():
    assert [target for _, target in ArrayImages(RGB, labels())] == labels()  # type: ignore[attr-defined]


def test_a_fetched_image_is_a_copy():
    images = ArrayImages(RGB.copy(), labels())
    images[0][0].zero_()
    images.__getitems__([0])[0].zero_()
    images.subset([0]).images.zero_()
    assert np.array_equal(images.images.numpy(), RGB)


def test_classes_and_defaults():
    images = ArrayImages(RGB, [0, 2, 2, 0, 0])
    assert images.classes == ["0", "1", "2"]
    assert images.num_classes == 3
    assert images.concept_map is None
    assert images.target.dtype == torch.int64
    assert ArrayImages(RGB, labels(), classes=list("abcd")).num_classes == 4
    assert isinstance(images, ImageSet)
    assert repr(images) == "ArrayImages(images: 5 images [3, 4, 6], 3 classes)"


def test_subset_keeps_order_classes_and_concepts():
    concepts = ConceptMap.from_names(["x", "x", "y", "z"])
    images = ArrayImages(RGB, labels(), classes=list("abcd"), concept_map=concepts, name="toys")
    for indices in ([4, 1], np.array([4, 1], dtype=np.uint8), torch.tensor([4, 1]), [-1, 1]):
        part = images.subset(indices)
        assert isinstance(part, ArrayImages)
        assert np.array_equal(part.images.numpy(), RGB[[4, 1]])
        assert part.target.tolist() == [1, 1]
        assert (part.classes, part.concept_map, part.name) == (list("abcd"), concepts, "toys")


def test_a_side_of_three_pixels_survives():
    # [N, 3, H, 3] is ambiguous for the constructor, not for what is stored already.
    images = ArrayImages(RGB[:, 0, :, :3], labels())
    assert images.image_shape == (3, 4, 3)
    assert images.subset([1]).image_shape == (3, 4, 3)
    assert ArrayImages(RGB, labels()).resized(3).image_shape == (3, 3, 3)


def test_no_images():
    empty = ArrayImages(RGB[:0], [])
    assert len(empty) == 0
    assert empty.num_classes == 0
    part = ArrayImages(RGB, labels()).subset([])
    assert (len(part), part.num_classes, part.image_shape) == (0, 3, (3, 4, 6))
    assert ArrayImages((RGB / 255)[:0], []).images.dtype == torch.float32


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([5], IndexError, r"toys: indices must lie in 0\.\.4, got 5\.\.5"),
        ([0, -6], IndexError, r"got -6\.\.0"),
        ([0.5], TypeError, "must be integers, got torch.float32"),
        (np.array([True] * 5), TypeError, "mask.nonzero"),
        ([[0, 1]], ValueError, r"must have shape \[B\], got \[1, 2\]"),
    ],
)
def test_indices(indices, error, message):
    images = ArrayImages(RGB, labels(), name="toys")
    for fetch in (images.subset, images.__getitems__):
        with pytest.raises(error, match=message):
            fetch(indices)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01])
def test_values_outside_the_unit_interval_name_the_first_bad_image(value):
    images = (RGB / 255).astype(np.float32)
    images[2, 1, 0, 3] = images[4, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"toys: float images must lie in \[0, 1\]; image 2 holds"):
        ArrayImages(images, labels(), name="toys")


def test_closed_interval():
    ArrayImages(np.array([[[0.0, 1.0]]]), [0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 4), "must have shape"),
        ((5, 6, 6, 6), "that axis must be the shortest, or the images square"),
        ((5, 4, 6, 4), "must have shape"),
        ((5, 3, 6, 3), "pad the side of 3 pixels"),
        ((5, 3, 0, 6), r"got \[5, 3, 0, 6\]"),
        ((1, 5, 3, 4, 6), "must have shape"),
    ],
)
def test_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        ArrayImages(np.zeros(shape, dtype=np.uint8), labels(shape[0]))


@pytest.mark.parametrize("images", [RGB.astype(np.int64), RGB > 9, torch.from_numpy(RGB).int()])
def test_image_dtypes(images):
    with pytest.raises(TypeError, match="must be uint8, or float"):
        ArrayImages(images, labels())


def test_images_of_another_type():
    with pytest.raises(TypeError, match="tensor or a NumPy array, got list"):
        ArrayImages(RGB.tolist(), labels())


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 1], ValueError, "5 images, but 2 labels"),
        ([0, 1, -1, 0, 0], ValueError, r"target must be in 0\.\.2, got -1 at position 2"),
        ([0, 1, 3, 0, 0], ValueError, r"target must be in 0\.\.2, got 3 at position 2"),
        ([0.0] * 5, TypeError, "target must hold integers"),
        ([[[0]]] * 5, ValueError, r"target must have shape \[N\], got \[5, 1, 1\]"),
    ],
)
def test_targets(target, error, message):
    with pytest.raises(error, match=message):
        ArrayImages(RGB, target, classes=list("abc"))


def test_concept_map_of_other_classes():
    with pytest.raises(ValueError, match="concept_map has 2 classes, the images have 3"):
        ArrayImages(RGB, labels(), concept_map=ConceptMap.from_names(["x", "y"]))


IDS = np.array([2, 0, 1])


@pytest.mark.parametrize(
    "target",
    [IDS[:, None], np.eye(3)[IDS], np.eye(3, dtype=np.uint8)[IDS], np.eye(3, dtype=bool)[IDS],
     IDS.astype(np.int32), IDS.astype(np.uint8), IDS.astype(">i4"), IDS.tolist(),
     torch.from_numpy(IDS).int(), torch.eye(3)[IDS]],
)  # fmt: skip
def test_labels_as_people_have_them(target):
    images = ArrayImages(np.zeros((3, 4, 4), np.uint8), target)
    assert images.target.tolist() == [2, 0, 1]
    assert images.target.dtype == torch.int64
    assert images.classes == ["0", "1", "2"]


def test_truth_values_and_unmet_classes():
    pixels = np.zeros((2, 4, 4), np.uint8)
    assert ArrayImages(pixels, np.array([True, False])).target.tolist() == [1, 0]
    assert ArrayImages(pixels, np.eye(5)[:2]).num_classes == 5  # of which two are met
    assert ArrayImages(pixels[:0], np.zeros((0, 3))).num_classes == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            [[1, 1, 0], [0, 1, 0]],
            "one-hot, with a single 1 in each row, but row 0 is not: images of several",
        ),
        ([[1, 0, 0], [0, 0, 0]], "row 1 is not"),
        ([[1, 0, 0], [0.5, 0.5, 0]], "row 1 is not"),
        ([[1, 0], [0, 1]], "one-hot of 2 classes, but 3 have names"),
        (
            [1, 3],
            r"in 0\.\.2, but counts the classes from 1 to 3: subtract 1, here and in the other",
        ),
    ],
)
def test_labels_that_are_not_guessed(target, message):
    with pytest.raises(ValueError, match=message):
        ArrayImages(np.zeros((2, 4, 4), np.uint8), np.array(target), classes=["a", "b", "c"])


def test_labels_from_1_without_names_are_said_and_not_moved():
    """A part of a set without the last class would look like a set that counts from 0."""
    pixels = np.zeros((3, 4, 4), np.uint8)
    with pytest.warns(
        UserWarning, match="no image is of class 0, and 4 classes are read .* subtract 1"
    ):
        assert ArrayImages(pixels, [1, 3, 2]).target.tolist() == [1, 3, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ArrayImages(pixels, [1, 4, 2])  # does not count: some are missing anyway
        ArrayImages(pixels, [1, 3, 2], classes=list("abcd"))
