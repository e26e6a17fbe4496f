"""Data sets as people have them on disk: what opens, what is said, what is refused."""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import pytest
import torch

from hrrl_ext.data import CsvImages, load_images, named_files
from hrrl_ext.data.folders import ImageFiles
from hrrl_ext.data.resize import fit_picture

Image = pytest.importorskip("PIL.Image")


def picture(seed: int):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(root, *files):
    """Picture i in file i, as BMP for speed: the bytes decide, not the suffix."""
    for seed, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / name, "BMP")
    return root


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def opened(source, split="train", **options):
    """The set; its files relative to the source, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = load_images(source, split=split, image_size=6, **options)
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    files = [os.path.relpath(file, folder) for file in images.sources]
    return images, files, " | ".join(str(w.message) for w in said)


# --- split folders


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "Val", "TEST"),
     ("train", "dev", "Test"), ("seg_train", "seg_valid", "seg_test"), ("images train", "images val", "test-images")],
)  # fmt: skip
def test_names_of_split_folders(tmp_path, train, val, test):
    save(tmp_path, *(f"{split}/{c}/{split}.png" for split in (train, val, test) for c in "ab"))
    for split, folder in (("train", train), ("val", val), ("test", test)):
        images, files, said = opened(tmp_path, split)
        assert images.classes == ["a", "b"]
        assert files == [f"{folder}/a/{folder}.png", f"{folder}/b/{folder}.png"]
        renamed = {train, val, test} - {"train", "val", "test"}
        assert ("read are" in said) == bool(renamed)
        assert all(repr(name) in said for name in renamed)


def test_two_folders_of_one_split_are_refused(tmp_path):
    save(tmp_path, "train/a/0.png", "val/a/0.png", "validation/a/0.png")
    with pytest.raises(ValueError, match="'val', 'validation' are all the split val; keep one"):
        load_images(tmp_path, image_size=4)


@pytest.mark.parametrize(
    "classes", [("bus", "train"), ("bullet train", "test tube", "x"), ("toy train", "train set")]
)
def test_classes_whose_names_are_like_splits(tmp_path, classes):
    deep = ("test tube", "train set")  # a split folder holds folders, but not each that does is one
    save(tmp_path, *(f"{name}/more/0.png" if name in deep else f"{name}/0.png" for name in classes))
    assert opened(tmp_path)[0].classes == sorted(classes)


def test_other_folders_beside_the_splits_are_said(tmp_path):
    save(tmp_path, "train/a/0.png", "test/a/0.png", "extra/a/0.png", "__MACOSX/train/a/0.png")
    assert opened(tmp_path)[2] == f"{tmp_path}: left out are the folders 'extra'"


def test_validation_with_empty_and_absent_classes(tmp_path):
    save(tmp_path, "train/a/0.png", "train/b/0.png", "train/c/0.png", "val/c/0.png")
    (tmp_path / "val" / "a").mkdir()
    images, files, said = opened(tmp_path, "val")
    assert images.classes == ["a", "b", "c"]
    assert (files, images.target.tolist(), said) == (["val/c/0.png"], [2], "")


# --- tiny-imagenet and ImageNet


@pytest.fixture
def tiny(tmp_path):
    save(tmp_path, *(f"train/{n}/images/{n}_{i}.JPEG" for n in ("n01", "n02") for i in (0, 1)))
    save(tmp_path, *(f"val/images/val_{i}.JPEG" for i in range(3)), "test/images/test_0.JPEG")
    boxes = "\t0\t0\t62\t63\n"
    write(
        tmp_path / "val" / "val_annotations.txt",
        f"val_2.JPEG\tn02{boxes}val_0.JPEG\tn01{boxes}val_1.JPEG\tn02{boxes}",
    )
    for name in ("n01", "n02"):
        write(tmp_path / "train" / name / f"{name}_boxes.txt", "")
    return tmp_path


def test_tiny_imagenet_as_it_unpacks(tiny):
    images, files, said = opened(tiny)
    assert images.classes == ["n01", "n02"]
    assert images.target.tolist() == [0, 0, 1, 1]
    assert files[1] == "train/n01/images/n01_1.JPEG"
    assert "left out are other files, 2 x .txt" in said
    for split in ("val", "test"):
        images, files, said = opened(tiny, split)
        assert images.classes == ["n01", "n02"]
        assert files == ["val/images/val_2.JPEG", "val/images/val_0.JPEG", "val/images/val_1.JPEG"]
        assert images.target.tolist() == [1, 0, 1]
        assert torch.equal(images[0][0], fit_picture(picture(2), 6))
        assert ("have no classes, so val is taken for test" in said) == (split == "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no image is listed"),
        ("val_0.JPEG\tn03\t0\n", r"val_annotations\.txt, line 1: unknown class 'n03'"),
        (
            "val_0.JPEG\tn01\nval_1.JPEG n01\n",
            "line 2: expected a file and its class, with a tab between",
        ),
        ("val_0.JPEG\tn01\n../x.JPEG\tn01\n", "line 2: .* stay below it"),
    ],
)
def test_damaged_annotations(tiny, text, message):
    write(tiny / "val" / "val_annotations.txt", text)
    with pytest.raises(ValueError, match=message):
        opened(tiny, "val")


@pytest.mark.parametrize("place", ["", "val"])
def test_imagenet_of_kaggle(tmp_path, place):
    save(
        tmp_path,
        "train/n01/n01_1.JPEG",
        "train/n02/n02_1.JPEG",
        "val/ILSVRC_1.JPEG",
        "val/ILSVRC_2.JPEG",
    )
    save(tmp_path, "test/ILSVRC_1.JPEG")
    write(
        tmp_path / place / "LOC_val_solution.csv",
        "ImageId,PredictionString\nILSVRC_2,n01 1 2 3 4 n01 5 6 7 8 \nILSVRC_1,n02 1 2 3 4\n",
    )
    write(tmp_path / "LOC_train_solution.csv", "ImageId,PredictionString\nn01_1,n01 1 2 3 4\n")
    assert opened(tmp_path)[1] == ["train/n01/n01_1.JPEG", "train/n02/n02_1.JPEG"]
    images, files, _ = opened(tmp_path, "test")
    assert files == ["val/ILSVRC_2.JPEG", "val/ILSVRC_1.JPEG"]
    assert (images.classes, images.target.tolist()) == (["n01", "n02"], [0, 1])


def test_a_flat_val_without_its_classes_says_what_helps(tmp_path):
    save(tmp_path, "train/n01/0.JPEG", "val/ILSVRC_1.JPEG")
    with pytest.raises(
        FileNotFoundError,
        match=r"val: images without class folders, .* neither .*val_annotations\.txt nor .*"
        r"LOC_val_solution\.csv; move them .* torchvision:ImageNet",
    ):
        load_images(tmp_path, split="val", image_size=4)


# --- tables


def rows_of(kind: str, header: list[str], *rows: tuple[object, ...]) -> str:
    if kind == "jsonl":
        return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    sign = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
    return "".join(sign.join(map(str, row)) + "\n" for row in (header, *rows))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "semicolon"])
def test_tables_of_every_kind(tmp_path, kind):
    save(tmp_path, "a.png", "b c.png")
    suffix = "csv" if kind == "semicolon" else kind
    text = rows_of(
        kind, ["file_name", "label", "place"], ("b c.png", 10, "sea"), ("a.png", 9, "land")
    )
    path = write(tmp_path / f"list.{suffix}", "\ufeff" + text)  # Excel begins a file so
    images, files, said = opened(path)
    assert isinstance(images, CsvImages)
    assert (images.classes, images.target.tolist()) == (["9", "10"], [1, 0])
    assert (files, said) == (["b c.png", "a.png"], "")
    assert images.columns["place"].tolist() == ["sea", "land"]
    assert opened(f"{path}:label=place")[0].classes == ["land", "sea"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not valid JSON"),
        ("[1]", "line 2: expected an object, got list"),
        ("null", "line 2: expected an object, got NoneType"),
        ('{"image": "a.png"}', "line 2: keys 'image', the first has 'image', 'label'"),
        ('{"image": "a.png", "label": null}', "line 2: no class in column 'label'"),
        ("\xff\xfe", "line 2: not valid JSON"),
    ],
)
def test_json_lines_that_are_none(tmp_path, line, message):
    save(tmp_path, "a.png")
    content = b'{"image": "a.png", "label": 1}\n' + line.encode("latin-1") + b"\n"
    (tmp_path / "list.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "list.jsonl", image_size=4)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_hugging_face_metadata_in_the_split_folders(tmp_path, kind):
    save(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    header = ["file_name", "label"]
    write(
        tmp_path / f"train/metadata.{kind}",
        rows_of(kind, header, ("a.png", "cat"), ("b.png", "ant")),
    )
    write(tmp_path / f"test/metadata.{kind}", rows_of(kind, header, ("c.png", "cat")))
    images, files, said = opened(tmp_path)
    assert (images.classes, images.target.tolist()) == (["ant", "cat"], [1, 0])
    assert files == ["train/a.png", "train/b.png"]
    assert f"read as metadata.{kind} says" in said
    images, files, _ = opened(tmp_path, "test")
    assert (images.classes, images.target.tolist()) == (["ant", "cat"], [1])
    write(tmp_path / f"test/metadata.{kind}", rows_of(kind, header, ("c.png", "dog")))
    with pytest.raises(ValueError, match="class 'dog' is none of 'ant', 'cat'"):
        opened(tmp_path, "test")


def test_hugging_face_metadata_in_the_root(tmp_path):
    save(tmp_path, "train/a.png", "valid/b.png", "test/c.png")
    rows = ("train/a.png", "x"), ("valid/b.png", "y"), ("test/c.png", "x")
    write(tmp_path / "metadata.csv", rows_of("csv", ["file_name", "label"], *rows))
    for split, row in (("train", 0), ("val", 1), ("test", 2)):
        images, files, said = opened(tmp_path, split)
        assert files == [rows[row][0]]
        assert images.classes == ["x", "y"]
        assert "the folders that its files lie in, 'test', 'train', 'valid', are the splits" in said
    assert len(opened(f"{tmp_path}/metadata.csv:split=")[1]) == 3
    write(tmp_path / "metadata.csv", rows_of("csv", ["file_name", "label"], rows[0]))
    assert opened(tmp_path, "test")[1:] == (
        ["train/a.png"],
        f"{tmp_path}: read as metadata.csv says, not by its folders",
    )


def test_metadata_of_other_things_leave_folders_what_they_are(tmp_path):
    save(tmp_path, "a/0.png", "b/0.png")
    write(tmp_path / "metadata.csv", "file_name,text\na/0.png,a caption\n")
    images, _, said = opened(tmp_path)
    assert images.classes == ["a", "b"]
    assert "left out are other files, 1 x .csv, such as 'metadata.csv'" in said


def test_waterbirds_folder_is_its_metadata(tmp_path):
    save(tmp_path, "001.A/a.png", "002.B/b.png")
    write(
        tmp_path / "metadata.csv",
        "img_id,img_filename,y,split\n1,001.A/a.png,1,0\n2,002.B/b.png,0,1\n",
    )
    images, files, _ = opened(tmp_path)
    assert (images.classes, files, images.target.tolist()) == (["0", "1"], ["001.A/a.png"], [1])


# --- names as people write them


@pytest.mark.parametrize("column", ["id", "image_id", "id_code", "Image"])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_ids_without_suffix(tmp_path, column, folder):
    save(tmp_path, f"{folder}000c03.JPG", f"{folder}0002.b.jpg", f"{folder}17.png")
    path = write(tmp_path / "labels.csv", f"{column},breed\n0002.b,pug\n000c03,boxer\n17,pug\n")
    images, files, said = opened(f"{path}:label=breed")
    assert files == [f"{folder}0002.b.jpg", f"{folder}000c03.JPG", f"{folder}17.png"]
    assert images.classes == ["boxer", "pug"]
    assert said == (
        f"{path}, line 2: '0002.b' and all others are read from {tmp_path / folder} with the suffixes they have"
    )


def test_names_with_suffix_from_the_one_folder_below(tmp_path):
    save(tmp_path, "train/a.png", "train/b.png", "other/z.png")
    path = write(tmp_path / "list.csv", "filename,label,split\na.png,x,train\nb.png,y,id_val\n")
    _, files, said = opened(path)
    assert files == ["train/a.png"]
    assert "all others are read from" in said and "suffixes" not in said
    assert "'id_val' are in none of train, val and test; split='all' has them" in said
    assert len(opened(path, "all")[1]) == 2


def test_names_that_are_in_several_folders_are_not_guessed(tmp_path):
    save(tmp_path, "large/a.png", "small/a.png")
    path = write(tmp_path / "list.csv", "image,label\na.png,x\n")
    with pytest.raises(
        ValueError,
        match=r"line 2: 'a.png' is in 'large', 'small' of .*; give the right one as root",
    ):
        load_images(path, image_size=4)
    assert opened(path, root=tmp_path / "small")[1] == ["small/a.png"]
    save(tmp_path, "a.png")  # beside the list: as it says
    assert opened(path)[1:] == (["a.png"], "")
    write(path, "id,label\na,x\n")
    assert opened(path)[1] == ["a.png"]


def test_two_files_of_one_id_are_not_guessed(tmp_path):
    save(tmp_path, "1.png", "2.png", "2.jpg")
    path = write(tmp_path / "list.csv", "id,label\n1,x\n2,y\n")
    with pytest.raises(ValueError, match=r"line 3: several images in .* are called '2'"):
        opened(path)


def test_an_id_that_is_not_there(tmp_path):
    save(tmp_path, "1.png", "deep/2.png")
    for ids, line in (("3", 2), ("1\n2", 3)):  # a file elsewhere than the first is none
        path = write(tmp_path / "list.csv", "id,label\n" + "".join(f"{i},x\n" for i in ids.split()))
        with pytest.raises(FileNotFoundError, match=f"line {line}: no file "):
            opened(path)


@pytest.mark.parametrize("name", ["../1", "/etc/1", "a/../../1", "C:1"])
def test_ids_that_lead_out(tmp_path, name, monkeypatch):
    """Nor is a folder looked into that they lead to."""
    look = named_files.files_in

    def inside(folder):
        assert (tmp_path / "list") in (folder, *folder.parents) and ".." not in folder.parts
        return look(folder)

    monkeypatch.setattr(named_files, "files_in", inside)
    save(tmp_path, "1.png", "list/2.png")
    path = write(tmp_path / "list" / "list.csv", f"id,label\n2,x\n{name},x\n")
    with pytest.raises(ValueError, match=r"line 3: .* stay below it"):
        opened(path)
    write(path, f"id,label\n{name},x\n")
    with pytest.raises(ValueError, match=r"line 2: .* stay below it"):
        opened(path)


# --- WILDS

CAMELYON = """,patient,node,x_coord,y_coord,tumor,slide,center,split
0,004,4,3328,21792,1,0,0,0
1,004,4,3200,22272,0,0,0,1
2,020,4,1,2,1,10,1,0
3,040,1,3,4,0,20,2,0
4,060,0,5,6,0,30,3,0
5,040,1,7,8,1,20,2,1
"""
_PATCH = "patches/patient_{0}_node_{1}/patch_patient_{0}_node_{1}_x_{2}_y_{3}.png"


@pytest.fixture
def camelyon(tmp_path):
    rows = [line.split(",") for line in CAMELYON.splitlines()[1:]]
    save(tmp_path, *(_PATCH.format(*row[1:5]) for row in rows))
    return write(tmp_path / "metadata.csv", CAMELYON)


def test_camelyon17_never_trains_on_the_test_hospital(camelyon):
    for split, rows in (("train", [0, 4]), ("val", [2]), ("test", [3, 5]), ("all", range(6))):
        images, _, said = opened(camelyon, split)
        assert [row for row in range(6) if str(row) in images.columns[""]] == list(rows)
        assert images.classes == ["0", "1"]
        assert images.target.tolist() == [[1, 0, 1, 0, 0, 1][row] for row in rows]
        assert "hospital (center) is the split: 1 is val, 2 is test, and 1 images" in said
        assert torch.equal(images[0][0], fit_picture(picture(rows[0]), 6))
    assert opened(camelyon.parent, "test")[1] == opened(camelyon, "test")[1]  # the folder
    assert sorted(set(opened(camelyon)[0].columns["center"])) == ["0", "3"]


def test_camelyon17_with_columns_of_ones_own(camelyon):
    """A column of files changes nothing of the hospitals; a split that is asked for by name does."""
    lines = CAMELYON.splitlines()
    named = [lines[0] + ",path"] + [
        f"{row},{_PATCH.format(*row.split(',')[1:5])}" for row in lines[1:]
    ]
    write(camelyon, "\n".join(named) + "\n")
    assert len(opened(camelyon)[1]) == 2
    assert len(opened(f"{camelyon}:split=split")[1]) == 4
    write(camelyon, CAMELYON.replace(",0,0,1\n", ",0,0,7\n"))
    with pytest.raises(ValueError, match="line 3: split must be 0 or 1, got '7'"):
        opened(camelyon)


# --- images without classes


def test_files_are_all_that_is_below(tmp_path):
    names = ["2019/b.png", "2019/may/a.png", "c.png", "z.jpg"]
    save(tmp_path, *names, ".hidden/d.png")
    write(tmp_path / "notes.txt", "")
    with pytest.warns(
        UserWarning, match=r"4 images are taken; left out are other files, 1 x \.txt"
    ):
        images = load_images(f"files:{tmp_path}", split="test", image_size=6)
    assert isinstance(images, ImageFiles)
    assert [os.path.relpath(file, tmp_path) for file in images.sources] == names
    assert images.classes == ["image"] and images.target.tolist() == [0] * 4
    torch.testing.assert_close(images[2][0], fit_picture(picture(2), 6))
    assert load_images(f"files:{tmp_path}:decode=reduced", image_size=6).name.endswith(
        "decode=reduced"
    )
    (tmp_path / "empty").mkdir()
    for name, message in (("2020", "no such folder"), ("empty", "no image in it or below it")):
        with pytest.raises(FileNotFoundError, match=message):
            load_images(f"files:{tmp_path / name}", image_size=6)


def test_files_of_a_split(tmp_path):
    save(tmp_path, "Training/a.png", "Training/x/b.png", "valid/c.png")
    for split, count in (("train", 2), ("val", 1), ("test", 1), ("all", 3)):
        assert len(load_images(f"files:{tmp_path}", split=split, image_size=6)) == count
    (tmp_path / "valid").rename(tmp_path / "more")
    with pytest.raises(ValueError, match="no folder of split 'val', only 'train'"):
        load_images(f"files:{tmp_path}", split="val", image_size=6)
