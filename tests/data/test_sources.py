"""load_images: the digits, dispatch by kind of source, image sizes, and every refusal."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages, load_images

GREY = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)


def test_digits():
    images = load_images("digits", split="all")
    assert len(images) == 1797
    assert images.image_shape == (3, 8, 8)
    assert images.classes == [str(digit) for digit in range(10)]
    assert images.concept_map is None
    first = images[0][0][0]  # a zero, whose first row is 0 0 5 13 9 1 0 0 of 16
    assert first[0].tolist() == [round(v * 255 / 16) for v in (0, 0, 5, 13, 9, 1, 0, 0)]
    assert images.target[:5].tolist() == [0, 1, 2, 3, 4]


def test_digits_split_is_a_stratified_partition():
    train, test, everything = (load_images("digits", split=s) for s in ("train", "test", "all"))
    assert (len(train), len(test)) == (1347, 450)
    assert sorted(keys(train) + keys(test)) == sorted(keys(everything))
    share = test.target.bincount() / everything.target.bincount()
    # Rounding to whole images moves a share by at most half of one of 174 or more (float32).
    assert ((share - 0.25).abs() <= 0.5 / 174 + 1e-6).all()


def test_digits_split_is_fixed():
    test = load_images("digits", split="test")
    digest = hashlib.sha256(",".join(map(str, test.target.tolist())).encode()).hexdigest()
    assert digest == TEST_LABELS_SHA256


TEST_LABELS_SHA256 = "13699f5e7fd6872431672eef4f7f78419da934c2c9a8a78bf1f025b298aba3cc"


def keys(images) -> list[bytes]:
    return [image.numpy().tobytes() + bytes([target]) for image, target in images]


def test_digits_have_no_validation_split():
    with pytest.raises(ValueError, match="splits train, test and all"):
        load_images("digits", split="val")


def test_arrays_in_a_tuple():
    images = load_images((GREY, [1, 0]))
    assert isinstance(images, ArrayImages)
    assert images.target.tolist() == [1, 0]
    assert load_images((torch.from_numpy(GREY), torch.tensor([1, 0]))).image_shape == (3, 4, 6)


def test_an_image_set_passes_through():
    images = load_images((GREY, [1, 0]))
    assert load_images(images) is images
    assert load_images(images, image_size=3).image_shape == (3, 3, 3)


def test_image_size():
    assert load_images("digits", image_size=12).image_shape == (3, 12, 12)
    assert load_images((GREY, [1, 0]), image_size=4).image_shape == (3, 4, 4)  # 4 x 6 is cropped
    square = load_images("digits")
    assert load_images(square, image_size=8) is square
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        load_images("digits", image_size=0)


@pytest.mark.parametrize("source", ["digit", "/nowhere/x.npz", "/nowhere/folder"])
def test_missing_source_lists_the_layouts(source):
    with pytest.raises(
        FileNotFoundError, match=r'does not exist; give "digits".*\(\.npz\).*folder'
    ):
        load_images(source)


def test_a_file_that_is_no_archive(tmp_path):
    path = tmp_path / "images.zip"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"images\.zip is no \.npz archive; give"):
        load_images(path)


@pytest.mark.parametrize("source", [[], (), 7, None, (GREY,), [1, 2], [GREY.tolist(), [1, 0]]])
def test_other_types(source):
    with pytest.raises(TypeError, match=r'images: cannot open this .*give "digits"'):
        load_images(source)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split must be one of train, .* got 'dev'"):
        load_images("digits", split="dev")


def test_root_is_for_torchvision():
    with pytest.raises(ValueError, match="root goes with"):
        load_images("digits", root="data")


def test_import_leaves_the_optional_packages_alone():
    code = "import sys, hrrl_ext.data; print([m for m in sys.argv[1:] if m in sys.modules])"
    optional = ["sklearn", "PIL", "torchvision", "matplotlib"]
    run = subprocess.run([sys.executable, "-c", code, *optional], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
