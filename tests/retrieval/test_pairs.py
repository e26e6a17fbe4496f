"""Captions as others write them: what is read, and where it says that something is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hrrl_ext.data import load_images
from hrrl_ext.retrieval import Pairs, evaluate, load_pairs

Image = pytest.importorskip("PIL.Image")

CSV = """image,caption,group,split
a.png,A red fruit,fruit,train
a.png,"One apple, red",fruit,train
b.png,Ein grüner Apfel ☃,fruit,train
sub/c.png,A dog,dog,val
"""
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filename": name, "filepath": folder, "split": split,
            "sentences": [{"raw": f"{name} {i}.", "tokens": ["x"]} for i in range(many)],
        }
        for name, folder, split, many in (
            ("a.png", "", "train", 5), ("b.png", "", "restval", 6), ("c.png", "sub", "test", 1),
        )
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for level, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), 40 * level + 10, np.uint8)).save(tmp_path / name)
    return tmp_path


def write(path, text: str):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def json_lines() -> str:
    rows = [
        {"image": "a.png", "caption": ["A red fruit", "One apple, red"], "group": "fruit", "split": "train"},
        {"image": "b.png", "caption": "Ein grüner Apfel ☃", "group": "fruit", "split": "train"},
        {"image": "sub/c.png", "caption": "A dog", "group": "dog", "split": "val"},
    ]  # fmt: skip
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- tables


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables(folder, kind, end, mark) -> None:
    text = mark + (CSV if kind == "csv" else json_lines()).replace("\n", end)
    path = write(folder / f"pairs.{kind}", text)
    pairs = load_pairs(path, image_size=4)
    assert pairs.captions == ["A red fruit", "One apple, red", "Ein grüner Apfel ☃"]
    assert pairs.owner.tolist() == [0, 0, 1]
    assert pairs.image_group.tolist() == [0, 0] and pairs.caption_group.tolist() == [0, 0, 0]
    assert pairs.group_names == ["fruit"]
    assert pairs.captions_of(0) == ["A red fruit", "One apple, red"]
    assert len(pairs) == 3 and len(pairs.images) == 2
    images, _ = pairs.images.__getitems__([0, 1])
    assert images[:, 0, 0, 0].tolist() == [10, 50] and images.shape == (2, 3, 4, 4)
    every = load_pairs(path, image_size=4, split="all")
    assert every.group_names == ["fruit", "dog"] and every.image_group.tolist() == [0, 0, 1]
    assert load_pairs(path, image_size=4, split="validation").captions == ["A dog"]
    assert load_pairs(path, image_size=4, split="train+val").captions == every.captions


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_hugging_face(folder, kind) -> None:
    text = CSV.replace("image,caption", "file_name,text")
    if kind == "jsonl":
        text = json_lines().replace('"image"', '"file_name"').replace('"caption"', '"text"')
    pairs = load_pairs(write(folder / f"metadata.{kind}", text), image_size=4)
    assert pairs.captions == ["A red fruit", "One apple, red", "Ein grüner Apfel ☃"]
    if kind == "csv":  # a column of our own name is what it says
        path = write(folder / "both.csv", "file_name,image,caption,text\nx.png,a.png,A dog,other\n")
        assert load_pairs(path, image_size=4).captions == ["A dog"]


def test_a_split_that_is_not_there_is_never_another_one(folder) -> None:
    path = write(folder / "pairs.csv", CSV)
    with pytest.raises(ValueError, match=r"split 'test' is not known.* 'train', 'val', 'all'"):
        load_pairs(path, image_size=4, split="test")
    text = "image,caption\na.png,A\n"
    for split in ("train", "test"):  # no column of splits: one set
        assert load_pairs(write(path, text), image_size=4, split=split).captions == ["A"]


def test_names_stay_below_the_folder(folder) -> None:
    path = write(folder / "sub" / "pairs.csv", "image,caption\na.png,A\n")
    assert load_pairs(path, image_size=4, root=folder).captions == ["A"]
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv, line 2: no file 'a\.png'"):
        load_pairs(path, image_size=4)
    write(path, "image,caption\n../a.png,A\n")
    with pytest.raises(ValueError, match=r"pairs\.csv, line 2: '\.\./a\.png' must be relative"):
        load_pairs(path, image_size=4)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("csv", "image,words\na.png,A\n", "line 1: expected a header .* got 'image', 'words'"),
        ("csv", "", "line 1: expected a header .* got nothing"),
        ("csv", "image,caption\n", "holds no pairs"),
        ("csv", "image,caption\na.png,A, red\n", "line 2: expected 2 values, as in the header, got 3"),
        ("csv", "image,caption\na.png,A\na.png, \n", "line 3: caption is empty"),
        ("csv", "image,caption\na.png,b'A dog'\n", "line 2: caption is .*bytes that were written by str"),
        ("csv", 'image,caption\na.png,"A\n', "line 2"),
        ("csv", "image,caption,group\na.png,A,x\na.png,B,y\n", "line 3: the image is in group 'y', before it was in 'x'"),
        ("csv", "image,caption,group\na.png,A,\n", "line 2: group must be"),
        ("csv", "image,caption,split\na.png,A,\n", "line 2: split must be a name"),
        ("jsonl", '{"image": "a.png", "caption": "A"}\n{"image"\n', "line 2 is not valid JSON"),
        ("jsonl", "[1]\n", "line 1 must be an object .* got list"),
        ("jsonl", '{"image": "a.png"}\n', "line 1: expected a header .* got 'image'"),
        ("jsonl", '{"image": "a.png", "caption": []}\n', "line 1: the list of captions is empty"),
        ("jsonl", '{"image": 3, "caption": "A"}\n', "line 1: image must be a file's name, got 3"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(folder, kind, text, message) -> None:
    path = write(folder / f"pairs.{kind}", text)
    with pytest.raises(ValueError, match=rf"pairs\.{kind}.*{message}"):
        load_pairs(path, image_size=4)


def test_a_caption_that_is_no_text_is_named(folder) -> None:
    path = write(folder / "pairs.jsonl", '{"image": "a.png", "caption": 3}\n')
    with pytest.raises(TypeError, match=r"pairs\.jsonl, line 1: caption must be text, got int"):
        load_pairs(path, image_size=4)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_bytes_that_are_no_utf8_are_named_by_line(folder, kind) -> None:
    (folder / f"pairs.{kind}").write_bytes(b"image,caption\na.png,A\na.png,caf\xe9\n")
    with pytest.raises(ValueError, match="line 3 is not text in UTF-8"):
        load_pairs(folder / f"pairs.{kind}", image_size=4)


def test_image_files_need_a_size(folder) -> None:
    with pytest.raises(ValueError, match="give image_size"):
        load_pairs(write(folder / "pairs.csv", CSV))


# --- Karpathy's JSON


def test_karpathy(folder) -> None:
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps(KARPATHY))
    train = load_pairs(path, image_size=4)
    assert train.captions == [f"a.png {i}." for i in range(5)] and train.owner.tolist() == [0] * 5
    both = load_pairs(path, image_size=4, split="train+restval")
    assert torch.bincount(both.owner).tolist() == [5, 6]
    assert load_pairs(path, image_size=4, split="test").captions == ["c.png 0."]
    with pytest.raises(ValueError, match=r"split 'val' is not known"):
        load_pairs(path, image_size=4, split="val")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "got the keys 'images'"),
        ([{"split": "train"}], r"images\[0\]: no filename"),
        ([{"filename": "a.png", "split": "train", "sentences": []}], r"images\[0\]: no sentences"),
        ([{"filename": "a.png", "sentences": [{"tokens": []}]}], r'images\[0\]\.sentences\[0\]: no "raw"'),
    ],
)  # fmt: skip
def test_bad_karpathy(folder, images, message) -> None:
    (folder / "d.json").write_text(json.dumps({"images": images}))
    with pytest.raises(ValueError, match=rf"d\.json.*{message}"):
        load_pairs(folder / "d.json", image_size=4)


# --- precomputed features


def precomputed(folder, features, captions: str, split: str = "train"):
    np.save(folder / f"{split}_ims.npy", features)
    write(folder / f"{split}_caps.txt", captions)
    return folder


@pytest.mark.parametrize("each", [1, 3, 5])
@pytest.mark.parametrize("repeated", [False, True])
def test_captions_of_an_image_are_told_from_the_lengths(tmp_path, each, repeated) -> None:
    """A row for each image, or for each caption: the same pairs, and a perfect model is perfect."""
    features = np.eye(4, dtype=np.float64)
    lines = "".join(f"caption {i}\n" for i in range(4 * each))
    rows = np.repeat(features, each, axis=0) if repeated else features
    pairs = load_pairs(precomputed(tmp_path, rows, lines))
    assert torch.equal(pairs.images, torch.eye(4))
    assert pairs.owner.tolist() == [i // each for i in range(4 * each)]
    caption = pairs.images[pairs.owner]
    assert evaluate(pairs.images, caption, caption_group=pairs.owner).measures["rsum"] == 600


def test_uneven_captions_of_repeated_features(tmp_path) -> None:
    rows = np.float32([[1, 2], [3, 4], [3, 4], [3, 4], [1, 2]])
    pairs = load_pairs(precomputed(tmp_path, rows, "a\nb\nc\nd\ne\n"))
    assert pairs.owner.tolist() == [0, 1, 1, 1, 2]  # equal ones that do not stand together stay two


def test_lines_are_those_of_line_feeds(tmp_path) -> None:
    """A line separator of Unicode within a caption parts none; tokens are those of the string."""
    pairs = load_pairs(precomputed(tmp_path, np.eye(2), "ein\u2028Hund ☃\r\nzwei"))
    assert pairs.captions == ["ein\u2028Hund ☃", "zwei"]
    assert pairs.captions[0].split() == ["ein", "Hund", "☃"]


def test_splits_of_a_folder(tmp_path) -> None:
    precomputed(tmp_path, np.eye(2), "a\nb\n")
    precomputed(tmp_path, np.eye(2) * 2, "c\nd\ne\nf\n", "dev")
    assert load_pairs(tmp_path, split="val").captions == ["c", "d", "e", "f"]
    both = load_pairs(tmp_path, split="train+dev")
    assert both.owner.tolist() == [0, 1, 2, 2, 3, 3] and len(both.images) == 4
    with pytest.raises(ValueError, match=r"split 'test' is not known.*'dev', 'train', 'all'"):
        load_pairs(tmp_path, split="test")


def test_no_split_is_cut(tmp_path) -> None:
    """The public code takes the first 5,000 captions of dev, and says nothing."""
    pairs = load_pairs(precomputed(tmp_path, np.eye(1001, 2), "a\n" * 5005, "dev"), split="val")
    assert len(pairs) == 5005 and len(pairs.images) == 1001


@pytest.mark.parametrize(
    ("features", "captions", "message"),
    [
        (np.eye(2), "a\nb\nc\n", "expected as many lines as train_ims.npy has rows, 2, or a multiple .* got 3"),
        (np.eye(2), "a\n\n", "caps.txt, line 2 is empty"),
        (np.eye(2), "a\nb'a dog'\n", "caps.txt, line 2 is .*bytes"),
        (np.eye(2), 'a\nb"a dog\'s"\n', "caps.txt, line 2 is .*bytes"),
        (np.eye(2), "", "got 0"),
        (np.zeros((2, 2), int), "a\nb\n", r"expected floats \[N, D\], got \[2, 2\] int64"),
        (np.zeros(2), "a\nb\n", r"expected floats \[N, D\], got \[2\]"),
        (np.full((2, 2), np.nan), "a\nb\n", "features of image 0 are not finite"),
    ],
)  # fmt: skip
def test_bad_folders_of_features(tmp_path, features, captions, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(precomputed(tmp_path, features, captions))


def test_captions_that_are_missing(tmp_path) -> None:
    np.save(tmp_path / "train_ims.npy", np.eye(2))
    with pytest.raises(FileNotFoundError, match=r"train_caps\.txt does not exist"):
        load_pairs(tmp_path)


def test_pickled_features_are_refused(tmp_path) -> None:
    precomputed(tmp_path, np.array([[print]], dtype=object), "a\n")
    with pytest.raises(ValueError, match=r"train_ims\.npy is not an array of numbers"):
        load_pairs(tmp_path)


# --- a folder of images, arrays


def test_a_text_beside_each_image(folder) -> None:
    write(folder / "a.txt", "A red fruit\n\nAn apple\n")
    write(folder / "b.txt", "Green")
    with pytest.raises(FileNotFoundError, match=r"c\.png has no captions: expected .*c\.txt"):
        load_pairs(folder, image_size=4)
    write(folder / "sub" / "c.txt", "A dog\n")
    pairs = load_pairs(folder, image_size=4)
    assert pairs.captions == ["A red fruit", "An apple", "Green", "A dog"]
    assert pairs.owner.tolist() == [0, 0, 1, 2] and pairs.group_names is None
    (folder / ".cache").mkdir()
    for name in (".cache/d.png", "d.heic"):
        (folder / name).write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"3 images are taken; left out are other files, 1 x \.heic"
    ):
        assert len(load_pairs(folder, image_size=4).images) == 3
    (folder / "sub").rename(folder / "val")
    assert load_pairs(folder, image_size=4, split="val").captions == ["A dog"]
    write(folder / "val" / "c.txt", "\n")
    with pytest.raises(ValueError, match=r"c\.txt is empty"):
        load_pairs(folder, image_size=4, split="val")


def test_arrays_and_bytes() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    texts = [["a", b"caf\xc3\xa9"], "b", np.str_("c")]
    pairs = load_pairs((images, texts), image_size=4)
    assert pairs.captions == ["a", "café", "b", "c"] and pairs.owner.tolist() == [0, 0, 1, 2]
    assert pairs.images.image_shape == (3, 4, 4)
    assert load_pairs(pairs) is pairs
    features = load_pairs((np.eye(2), np.array([b"one", b"two"])))
    assert features.captions == ["one", "two"] and features.images.dtype == torch.float32
    assert len(load_pairs((load_images("digits").subset([0, 1]), ["five", "six"])).images) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_pairs((np.eye(3), ["a"])), ValueError, "3 images and 1 captions"),
        (lambda: load_pairs((np.eye(2), ["a", np.nan])), TypeError, "image 1 must have a text.* got nan"),
        (lambda: load_pairs((np.eye(1), [[]])), ValueError, "image 0 has no caption"),
        (lambda: load_pairs((np.eye(1), [b"\xff"])), ValueError, "caption 0 is not text in UTF-8"),
        (lambda: load_pairs((np.eye(1), [["a", None]])), TypeError, "caption 1 must be text, got NoneType"),
        (lambda: load_pairs((np.eye(1), ["b'a'"])), ValueError, "bytes that were written by str"),
        (lambda: load_pairs(3), TypeError, "cannot open this int; give \"emoji\""),
        (lambda: load_pairs("nowhere.csv"), FileNotFoundError, "nowhere.csv does not exist"),
        (lambda: Pairs(np.eye(2), ["a", "b"], [0, 2]), ValueError, r"owner must be in 0\.\.1, got 0\.\.2"),
        (lambda: Pairs(np.eye(2), ["a", "b"], [0.0, 1.0]), TypeError, "owner must be whole numbers"),
        (lambda: Pairs(np.eye(2), ["a", "b"], [0, 1], group=[1]), ValueError, r"group must have shape \[2\]"),
    ],
)  # fmt: skip
def test_bad_arrays(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


# --- the embedded set


def test_the_emoji_are_opened_by_name() -> None:
    from hrrl_ext.retrieval import load_emoji

    emoji = load_emoji("val")
    pairs = load_pairs("emoji", split="val")
    assert len(pairs.images) == len(emoji) and torch.equal(pairs.image_group, emoji.group)
    assert [pairs.captions_of(i) for i in range(len(emoji))] == emoji.texts
    assert torch.equal(pairs.images.images, emoji.images.images)
    assert load_pairs("emoji", split="test", image_size=16).images.image_shape == (3, 16, 16)
    with pytest.raises(ValueError, match="did you mean 'val'"):
        load_pairs("emoji", split="vall")
    with pytest.raises(ValueError, match="root goes with a file of names"):
        load_pairs("emoji", root="somewhere")
