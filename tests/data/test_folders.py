"""FolderImages and split folders, on small files written by the tests."""

from __future__ import annotations

import os
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch

from hrrl_ext._streams import Draws
from hrrl_ext.data import FolderImages, RandomResizedCrop, load_images
from hrrl_ext.data.folders import DecodedImages
from hrrl_ext.data.resize import fit_picture
from hrrl_ext.data.views import resized_crop

Image = pytest.importorskip("PIL.Image")


def picture(seed: int, height: int = 6, width: int = 8):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(root, files):
    """{"class/name.png": seed}"""
    for name, seed in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / name)
    return root


def test_classes_and_files_in_sorted_order(tmp_path):
    save(tmp_path, {"dog/b.png": 1, "dog/a.PNG": 0, "cat/z.bmp": 2, "10/x.png": 3, "9/x.tiff": 4})
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".cache").mkdir()
    images = FolderImages(tmp_path, image_size=6)
    assert images.classes == ["10", "9", "cat", "dog"]
    assert images.target.tolist() == [0, 1, 2, 3, 3]
    assert images.image_shape == (3, 6, 6)
    assert images.concept_map is None
    for i, seed in enumerate([3, 4, 2, 0, 1]):
        assert torch.equal(images[i][0], fit_picture(picture(seed), 6))


def names(images):
    return [os.path.relpath(source, images.name) for source in images.sources]


def test_folders_below_a_class_in_the_order_of_torchvision(tmp_path):
    """By the path of the folder, then by name, as torchvision's make_dataset has them."""
    files = ["a/x/2.png", "a/z.jfif", "a/x y/1.jpe", "a/b.png", "a/x/y/0.dib", "b/only/deep/3.pnm"]
    for seed, file in enumerate(files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / file, "PNG")  # the suffix decides whether, the bytes how
    images = FolderImages(tmp_path, image_size=6)
    expected = [
        os.path.relpath(os.path.join(at, name), tmp_path)
        for folder in ("a", "b")
        for at, _, found in sorted(os.walk(tmp_path / folder, followlinks=True))
        for name in sorted(found)
    ]
    assert names(images) == expected
    assert sorted(expected) == sorted(files)
    assert images.target.tolist() == [0] * 5 + [1]
    for i, file in enumerate(expected):
        assert torch.equal(images[i][0], fit_picture(picture(files.index(file)), 6))


@pytest.mark.parametrize(
    "clutter",
    [".hidden/x.png", "__MACOSX/x.png", "__MACOSX/a/._x.png", "a/.ipynb_checkpoints/x.png", "a/._x.png",
     "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store", ".git/y"],
)  # fmt: skip
def test_what_systems_leave_is_skipped_without_a_word(tmp_path, clutter):
    save(tmp_path, {"a/x.png": 0, "b/x.png": 1})
    (tmp_path / clutter).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / clutter).write_bytes(b"resource fork")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = FolderImages(tmp_path, image_size=4)
    assert images.classes == ["a", "b"]
    assert names(images) == ["a/x.png", "b/x.png"]


def test_what_is_left_out_is_said_once(tmp_path):
    save(tmp_path, {"a/x.png": 0, "b/deep/x.png": 1})
    for file in ("a/deep/1.heic", "a/2.HEIC", "b/notes.txt", "README", "a/3.npy"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.warns(UserWarning, match="left out") as said:
        FolderImages(tmp_path, image_size=4)
    (message,) = [str(w.message) for w in said]
    assert message == (
        f"{tmp_path}: 2 images are taken; left out are other files, 2 x .heic, 1 x without suffix, "
        "1 x .npy, 1 x .txt, such as 'README'"
    )


def test_images_beside_the_class_folders_are_said(tmp_path):
    save(tmp_path, {"a/x.png": 0, "b/x.png": 1, "stray.png": 2})
    with pytest.warns(
        UserWarning,
        match=r"2 images are taken; left out are images beside .*, 1, such as 'stray\.png'",
    ):
        FolderImages(tmp_path, image_size=4)


def test_a_class_of_other_files_says_what_there_is(tmp_path):
    save(tmp_path, {"a/x.png": 0})
    (tmp_path / "b").mkdir()
    for name in ("1.heic", "2.heic"):
        (tmp_path / "b" / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"class folder 'b' holds no image .* but 2 x \.heic; move"
    ):
        FolderImages(tmp_path, image_size=4)


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path, {"store/far/1.png": 0, "data/a/0.png": 1})
    os.symlink(tmp_path / "store", tmp_path / "data" / "a" / "linked")
    os.symlink(tmp_path / "data", tmp_path / "data" / "a" / "up")
    os.symlink(tmp_path / "data" / "a", tmp_path / "data" / "a" / "self")
    images = FolderImages(tmp_path / "data", image_size=4)
    assert names(images) == ["a/0.png", "a/linked/far/1.png"]


def test_a_single_folder_of_folders_is_no_class(tmp_path):
    save(tmp_path, {"archive/cat/0.png": 0, "archive/dog/0.png": 1, "__MACOSX/cat/0.png": 2})
    message = r"one folder only, 'archive', which holds the folders 'cat', 'dog'; .* give .*archive"
    with pytest.raises(ValueError, match=message):
        FolderImages(tmp_path, image_size=4)
    save(tmp_path, {"archive/0.png": 3})
    assert len(FolderImages(tmp_path, image_size=4)) == 3  # a class with folders below it


def test_domains_are_taken_for_classes_with_a_word(tmp_path):
    save(tmp_path, {f"{d}/{c}/0.png": 0 for d in ("photo", "sketch") for c in ("cat", "dog")})
    with pytest.warns(
        UserWarning, match=r"'photo', 'sketch' are taken for classes.*'cat', 'dog'.*give "
    ):
        images = FolderImages(tmp_path, image_size=4)
    assert images.classes == ["photo", "sketch"]


def test_one_folder_of_the_same_name_in_each_class_is_no_domain(tmp_path):
    save(tmp_path, {"n01/images/0.png": 0, "n02/images/0.png": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FolderImages(tmp_path, image_size=4).classes == ["n01", "n02"]


def test_fetch_and_subset(tmp_path):
    images = FolderImages(save(tmp_path, {f"c/{i}.png": i for i in range(4)}), image_size=5)
    x, target = images.__getitems__([3, 1])
    assert x.shape == (2, 3, 5, 5)
    assert x.dtype == torch.uint8
    assert target.tolist() == [0, 0]
    part = images.subset([3, 1])
    assert isinstance(part, FolderImages)
    assert len(part) == 2
    assert torch.equal(part.__getitems__([0, 1])[0], x)
    assert len(images) == 4  # untouched
    assert images.__getitems__([])[0].shape == (0, 3, 5, 5)
    with pytest.raises(IndexError):
        part[2]


def test_parts_are_cut_out_of_whole_pictures(tmp_path):
    """By Pillow as torchvision does it, to the bit, and by our own filter, to a level; one by each draw."""
    shapes, crop = [(30, 90), (90, 30), (41, 40)], RandomResizedCrop((0.08, 1))
    (tmp_path / "c").mkdir()
    for seed, shape in enumerate(shapes):
        picture(seed, *shape).save(tmp_path / f"c/{seed}.png")
    images, rows = FolderImages(tmp_path, image_size=(6, 8)), [2, 0, 1, -3]
    draws = [Draws.of_images(torch.arange(4), 0, view) for view in (0, 1)]
    parts = images.parts(rows, draws, crop)
    assert parts.shape == (2, 4, 3, 6, 8) and parts.dtype == torch.uint8
    assert torch.equal(images.parts(rows, draws, crop), parts)  # draws are as they were
    for of_view, made in zip(draws, parts, strict=True):
        for place, row in enumerate(rows):
            whole = picture(row % 3, *shapes[row])
            box = crop.boxes(of_view[place : place + 1], *shapes[row])
            top, left, h, w, flip = box[0].int().tolist()
            cut = whole.crop((left, top, left + w, top + h))
            scaled = cut.resize((8, 6), Image.Resampling.BILINEAR)
            want = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)
            assert torch.equal(made[place], want.flip(2) if flip else want)
            pixels = torch.from_numpy(np.array(whole)).permute(2, 0, 1)[None]
            ours = resized_crop(pixels, box, (6, 8))[0]
            assert (ours.int() - made[place].int()).abs().max() <= 1
    assert images.parts(rows, draws, RandomResizedCrop(size=5)).shape == (2, 4, 3, 5, 5)


def test_parts_show_what_is_beside_the_middle(tmp_path):
    pixels = np.zeros((8, 48, 3), np.uint8)
    pixels[:, :12] = 255
    (tmp_path / "c").mkdir()
    Image.fromarray(pixels).save(tmp_path / "c/0.png")
    images = FolderImages(tmp_path, image_size=8)
    draws = Draws.of_images(torch.arange(40), 0)
    (parts,) = images.parts([0] * 40, [draws], RandomResizedCrop((0.08, 1)))
    assert not images[0][0].any()
    lit = (parts == 255).flatten(1).any(1)
    assert lit.any() and not lit.all()


def test_pickling_for_spawned_workers(tmp_path):
    images = FolderImages(save(tmp_path, {"c/0.png": 0}), image_size=5)
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again[0][0], images[0][0])


def test_resized(tmp_path):
    images = FolderImages(save(tmp_path, {"c/0.png": 0}), image_size=5)
    assert torch.equal(images.resized(4)[0][0], fit_picture(picture(0), 4))
    assert images.image_shape == (3, 5, 5)
    with pytest.raises(ValueError, match="at least 1"):
        images.resized(0)


def test_an_unreadable_image_is_named(tmp_path):
    save(tmp_path, {"c/good.png": 0})
    (tmp_path / "c" / "text.png").write_text("no image")
    whole = (tmp_path / "c" / "good.png").read_bytes()
    (tmp_path / "c" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    images = FolderImages(tmp_path, image_size=4)
    images[0]
    with pytest.raises(OSError, match=r"cannot decode image .*text\.png"):
        images[1]
    with pytest.raises(OSError, match=r"cannot decode image .*truncated\.png"):
        images[2]
    with pytest.raises(OSError, match=r"cannot decode image .*truncated\.png"):
        images.parts([0, 2], [Draws.of_images(torch.arange(2), 0)], RandomResizedCrop())


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder; expected root/class/image\.png"):
        FolderImages(tmp_path / "none", image_size=4)
    with pytest.raises(FileNotFoundError, match="no class folders"):
        FolderImages(tmp_path, image_size=4)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no class folders; .*, got 'notes\.txt'"):
        FolderImages(tmp_path, image_size=4)
    save(tmp_path, {"1.png": 0})
    with pytest.raises(
        FileNotFoundError,
        match=r"no class folders, but images in itself, such as '1\.png'; .* metadata CSV .*; \"files:.*\" takes all",
    ):
        FolderImages(tmp_path, image_size=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="class folder 'empty' holds no image"):
        FolderImages(tmp_path, image_size=4)


def test_empty_folders_of_expected_classes(tmp_path):
    save(tmp_path, {"bee/0.png": 0})
    (tmp_path / "ant").mkdir()
    images = FolderImages(tmp_path, image_size=4, classes=["ant", "bee", "cow"])
    assert images.classes == ["ant", "bee", "cow"]
    assert images.target.tolist() == [1]
    (tmp_path / "bee" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="no image in any class folder"):
        FolderImages(tmp_path, image_size=4, classes=["ant", "bee", "cow"])


def test_without_pillow(tmp_path, monkeypatch):
    save(tmp_path, {"c/0.png": 0})
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'pip install "hrrl_ext\[images\]"'):
        FolderImages(tmp_path, image_size=4)


def test_split_folders_share_the_classes_of_train(tmp_path):
    save(tmp_path, {"train/ant/0.png": 0, "train/bee/0.png": 1, "val/bee/0.png": 2})
    train = load_images(tmp_path, image_size=4)
    assert train.classes == ["ant", "bee"]
    for split in ("val", "test"):  # test falls back to val
        held_out = load_images(tmp_path, split=split, image_size=4)
        assert held_out.classes == ["ant", "bee"]
        assert held_out.target.tolist() == [1]
    save(tmp_path, {"test/ant/0.png": 3})
    assert load_images(tmp_path, split="test", image_size=4).target.tolist() == [0]
    with pytest.raises(FileNotFoundError, match="no folder for split 'all', only 'train', 'val'"):
        load_images(tmp_path, split="all", image_size=4)


def test_a_class_unknown_to_train(tmp_path):
    save(tmp_path, {"train/ant/0.png": 0, "test/aunt/0.png": 1})
    with pytest.raises(ValueError, match=r"unknown class folder 'aunt' \(did you mean 'ant'\?\)"):
        load_images(tmp_path, split="test", image_size=4)


def test_held_out_folder_alone(tmp_path):
    save(tmp_path, {"val/ant/0.png": 0})
    assert load_images(tmp_path, split="test", image_size=4).classes == ["ant"]
    with pytest.raises(FileNotFoundError, match="no folder for split 'train'"):
        load_images(tmp_path, image_size=4)


def test_a_class_may_be_called_train(tmp_path):
    save(tmp_path, {"bus/0.png": 0, "train/0.png": 1})
    for split in ("train", "test"):  # one set: every split is the same
        images = load_images(tmp_path, split=split, image_size=4)
        assert images.classes == ["bus", "train"]
        assert len(images) == 2


def test_folder_needs_a_size(tmp_path):
    with pytest.raises(ValueError, match="give image_size"):
        load_images(save(tmp_path, {"c/0.png": 0}))


def test_folder_passes_through_and_changes_size(tmp_path):
    images = FolderImages(save(tmp_path, {"c/0.png": 0}), image_size=5)
    assert load_images(images) is images
    smaller = load_images(images, image_size=4)
    assert isinstance(smaller, DecodedImages)
    assert smaller[0][0].shape == (3, 4, 4)
