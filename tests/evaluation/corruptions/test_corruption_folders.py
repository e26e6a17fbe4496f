"""Folders of ImageNet-C and CIFAR-10-C: pixels as stored, written whole, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages
from hrrl_ext.evaluation.corruptions import (
    CORRUPTIONS,
    corrupt,
    corrupted,
    folders,
    open_corruptions,
    write_corruptions,
)

N, SIDE = 6, 8
KINDS = ("gaussian_noise", "fog")


def clean(dtype=torch.uint8) -> ArrayImages:
    images = torch.randint(0, 256, (N, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8) if dtype == torch.uint8 else images.to(dtype) / 255
    return ArrayImages(images, [0, 1, 2] * 2, name="toys")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_is_written_is_read(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(folders, "_BATCH", 4)
    write_corruptions(clean(dtype), tmp_path, kinds=KINDS, seed=3)
    sets = open_corruptions(tmp_path)
    assert list(sets) == list(KINDS)  # in the published order
    for kind in KINDS:
        assert np.load(tmp_path / f"{kind}.npy").shape == (5 * N, SIDE, SIDE, 3)
        for severity, images in enumerate(sets[kind], 1):
            pixels, target = images.__getitems__([5, 0, -2])
            expected = corrupted(clean(), kind, severity, seed=3).__getitems__([5, 0, -2])
            assert torch.equal(pixels, expected[0]) and torch.equal(target, expected[1])
            assert images.name == f"{kind} {severity}"
    assert np.load(tmp_path / "labels.npy").tolist() == [0, 1, 2] * 2 * 5


def test_a_file_that_is_there_is_kept(tmp_path):
    write_corruptions(clean(), tmp_path, kinds=["fog"])
    written = (tmp_path / "fog.npy").stat().st_mtime_ns
    write_corruptions(clean(), tmp_path, kinds=KINDS)
    assert (tmp_path / "fog.npy").stat().st_mtime_ns == written
    assert set(open_corruptions(tmp_path)) == set(KINDS)


def test_an_interrupted_call_leaves_whole_files(tmp_path, monkeypatch):
    def broken(images, kind, severity, **settings):
        if kind == "fog" and len(images) > 1 and severity == 4:
            raise OSError("disk full")
        return corrupt(images, kind, severity, **settings)

    monkeypatch.setattr(folders, "corrupt", broken)
    with pytest.raises(OSError, match="disk full"):
        write_corruptions(clean(), tmp_path, kinds=KINDS)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["gaussian_noise.npy", "labels.npy"]
    monkeypatch.undo()
    write_corruptions(clean(), tmp_path, kinds=KINDS)
    assert list(open_corruptions(tmp_path)) == list(KINDS)


def test_other_images_are_not_mixed_in(tmp_path):
    write_corruptions(clean(), tmp_path, kinds=["gaussian_noise"], seed=0)
    with pytest.raises(
        ValueError, match=r"gaussian_noise.npy holds other images, or the same with"
    ):
        write_corruptions(clean(), tmp_path, kinds=["fog", "gaussian_noise"], seed=1)
    with pytest.raises(ValueError, match="holds other images"):
        write_corruptions(clean().subset([0, 1]), tmp_path, kinds=["gaussian_noise"])
    relabelled = ArrayImages(clean().images, [0] * N)
    with pytest.raises(ValueError, match=r"labels.npy holds other labels"):
        write_corruptions(relabelled, tmp_path, kinds=["fog"])
    with pytest.raises(ValueError, match="did you mean 'fog'"):
        write_corruptions(clean(), tmp_path / "new", kinds=["fogg"])
    with pytest.raises(ValueError, match="has no images"):
        write_corruptions(clean().subset([]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def cifar_c(folder, labels, kind="snow") -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 256, (5 * N, SIDE, 10, 3), dtype=np.uint8)
    np.save(folder / f"{kind}.npy", array)
    np.save(folder / "labels.npy", np.asarray(labels, dtype=np.uint8))
    return array


@pytest.mark.parametrize("labels", [[0, 1, 2] * 2, [0, 1, 2] * 10], ids=["once", "repeated"])
def test_cifar_c(tmp_path, labels):
    array = cifar_c(tmp_path, labels)
    np.save(tmp_path / "a_new_kind.npy", array)
    sets = open_corruptions(tmp_path, classes=["a", "b", "c", "d"])
    assert list(sets) == ["snow", "a_new_kind"] and len(sets["snow"]) == 5
    third = sets["snow"][2]
    assert (len(third), third.image_shape, third.num_classes) == (N, (3, SIDE, 10), 4)
    pixels, target = third.__getitems__([4, 1])
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), array[[2 * N + 4, 2 * N + 1]])
    assert target.tolist() == [1, 1]
    part = third.subset([4, 1]).subset([1])
    assert torch.equal(part.__getitems__([0])[0], pixels[1:])
    assert part.target.tolist() == [1]
    small = third.resized(4)
    assert small.image_shape == (3, 4, 4)
    assert torch.equal(small[4][0], ArrayImages(pixels, [0, 0]).resized(4)[0][0])


def test_labels_without_images(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(3, int))
    with pytest.raises(FileNotFoundError, match=r"no corrupted images; expected kind/severity"):
        open_corruptions(tmp_path)


def test_arrays_that_do_not_fit(tmp_path):
    cifar_c(tmp_path, [0] * 7)
    with pytest.raises(ValueError, match=r"must have 6 or 30 labels, got \[7\]"):
        open_corruptions(tmp_path)["snow"]
    for shape, dtype in (
        ((9, 8, 8, 3), np.uint8),
        ((10, 3, 8, 8), np.uint8),
        ((10, 8, 8, 3), float),
    ):
        np.save(tmp_path / "snow.npy", np.zeros(shape, dtype))
        with pytest.raises(ValueError, match=r"must be \[5 N, H, W, 3\] uint8"):
            open_corruptions(tmp_path)["snow"]
    (tmp_path / "snow.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="no array of NumPy"):
        open_corruptions(tmp_path)["snow"]
    with pytest.raises(KeyError, match="'snwo' is not known; did you mean 'snow'"):
        open_corruptions(tmp_path)["snwo"]


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    cifar_c(tmp_path, [0] * N)
    np.save(tmp_path / "snow.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no array of NumPy"):
        open_corruptions(tmp_path)["snow"]


# --- ImageNet-C


def imagenet_c(folder, side=12, kinds=("fog",), severities=range(1, 6)) -> None:
    Image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for kind in kinds:
        for severity in severities:
            for name in ("n01", "n02"):
                place = folder / kind / str(severity) / name
                place.mkdir(parents=True)
                pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / "1.png")


@pytest.mark.parametrize("group", ["", "weather"])
def test_imagenet_c_is_not_resized(tmp_path, group):
    Image = pytest.importorskip("PIL.Image")
    imagenet_c(tmp_path / group, kinds=("fog", "snow"))
    sets = open_corruptions(tmp_path)
    assert list(sets) == ["snow", "fog"]  # the published order
    for severity, images in enumerate(sets["fog"], 1):
        assert images.image_shape == (3, 12, 12) and images.classes == ["n01", "n02"]
        pixels, target = images.__getitems__([1])
        stored = np.asarray(Image.open(tmp_path / group / "fog" / str(severity) / "n02" / "1.png"))
        assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), stored)
        assert target.tolist() == [1]
    assert sets["fog"] is sets["fog"]
    assert sets["fog"][0].subset([1]).resized(6)[0][0].shape == (3, 6, 6)


def test_imagenet_c_takes_the_classes_of_the_model(tmp_path):
    imagenet_c(tmp_path)
    images = open_corruptions(tmp_path, classes=["n00", "n01", "n02"])["fog"][0]
    assert images.target.tolist() == [1, 2]


def test_an_image_of_another_size(tmp_path):
    imagenet_c(tmp_path)
    from PIL import Image

    odd = tmp_path / "fog" / "3" / "n02" / "1.png"
    Image.new("RGB", (13, 12)).save(odd)
    images = open_corruptions(tmp_path)["fog"][2]
    with pytest.raises(OSError, match=r"n02/1.png: expected \(12, 12\) pixels .* got \(13, 12\)"):
        images.__getitems__([1])
    Image.new("RGB", (13, 12)).save(tmp_path / "fog" / "3" / "n01" / "1.png")
    images = open_corruptions(tmp_path)["fog"][2]
    assert images.image_shape == (3, 12, 13)
    assert images.__getitems__([0, 1])[0].shape == (2, 3, 12, 13)


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; expected kind/severity/class"):
        open_corruptions(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no corrupted images"):
        open_corruptions(tmp_path)
    imagenet_c(tmp_path, severities=[1, 2, 3])
    with pytest.raises(FileNotFoundError, match="fog/4: no such folder"):
        open_corruptions(tmp_path)["fog"]


def test_kinds_are_those_of_mce(tmp_path):
    imagenet_c(tmp_path, side=2, kinds=CORRUPTIONS[::-1], severities=[1])
    assert tuple(open_corruptions(tmp_path)) == CORRUPTIONS
