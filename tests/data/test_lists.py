"""Images named in lists: columns, splits, concepts by column, and names that try to lead out."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import CsvImages, ProductImages, load_images, resolve_concepts
from hrrl_ext.data.columns import column_concepts
from hrrl_ext.data.concept_files import match_classes
from hrrl_ext.data.resize import fit_picture
from hrrl_ext.spec import repeated

Image = pytest.importorskip("PIL.Image")

# The columns of WILDS' and group_DRO's Waterbirds.
WATERBIRDS = """img_id,img_filename,y,split,place,place_filename
1,001.A/a.png,0,0,0,/b/bamboo_forest/1.jpg
2,001.A/b.png,1,1,1,/o/ocean/2.jpg
3,"002.B/c, d.png",1,0,0,/b/bamboo_forest/3.jpg
4,002.B/e.png,0,2,1,/o/ocean/4.jpg
5,002.B/f.png,0,0,1,/o/ocean/5.jpg
"""
PRODUCTS = """image_id class_id super_class_id path
1 1 1 bicycle_final/1_0.png
2 1 1 bicycle_final/1_1.png
3 10 2 chair_final/10 a.png
4 2 1 bicycle_final/2_0.png
"""


def picture(seed: int):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(folder, *names):
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name)


@pytest.fixture
def waterbirds(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text(WATERBIRDS)
    save(tmp_path, "001.A/a.png", "001.A/b.png", "002.B/c, d.png", "002.B/e.png", "002.B/f.png")
    return path


@pytest.fixture
def products(tmp_path):
    path = tmp_path / "Ebay_train.txt"
    path.write_text(PRODUCTS)
    bicycle, chair = "bicycle_final/", "chair_final/10 a.png"
    save(tmp_path, bicycle + "1_0.png", bicycle + "1_1.png", chair, bicycle + "2_0.png")
    return path


def written(folder, text: str):
    (folder / "list.csv").write_text(text)
    return folder / "list.csv"


def test_waterbirds_opens_as_it_comes(waterbirds):
    train = load_images(waterbirds, image_size=6)
    assert isinstance(train, CsvImages)
    assert train.classes == ["0", "1"]
    assert train.target.tolist() == [0, 1, 0]
    for row, seed in enumerate([0, 2, 4]):
        assert torch.equal(train[row][0], fit_picture(picture(seed), 6))
    assert load_images(waterbirds, split="val", image_size=6).target.tolist() == [1]
    assert load_images(waterbirds, split="test", image_size=6).target.tolist() == [0]
    assert len(load_images(waterbirds, split="all", image_size=6)) == 5


def test_classes_are_those_of_the_whole_file(waterbirds):
    assert load_images(waterbirds, split="test", image_size=6).num_classes == 2


def test_test_falls_back_to_val(waterbirds):
    waterbirds.write_text(WATERBIRDS.replace(",0,2,1,", ",0,1,1,"))
    test = load_images(waterbirds, split="test", image_size=6)
    assert test.target.tolist() == [1, 0]
    waterbirds.write_text(WATERBIRDS.replace(",0,2,1,", ",0,0,1,").replace(",1,1,1,", ",1,0,1,"))
    with pytest.raises(ValueError, match="no image of split 'test', only 'train'"):
        load_images(waterbirds, split="test", image_size=6)


def test_any_column_is_the_concept(waterbirds):
    train = load_images(waterbirds, image_size=6)
    concept, names = resolve_concepts("column:place", train)
    assert (concept.tolist(), names) == ([0, 0, 1], ["0", "1"])
    concept, names = resolve_concepts("column:y+place", train)
    assert names == ["y=0 place=0", "y=0 place=1", "y=1 place=0"]
    assert concept.tolist() == [0, 2, 1]
    everything = load_images(waterbirds, split="all", image_size=6)
    part = everything.subset([4, 1, -2])
    assert resolve_concepts("column:img_id", part)[1] == ["2", "4", "5"]  # numbers, by value
    assert part.columns["place_filename"].tolist()[0] == "/o/ocean/5.jpg"


def test_concepts_of_other_images_have_the_same_ids(waterbirds):
    train = load_images(waterbirds, image_size=6)
    test = load_images(waterbirds, split="test", image_size=6)
    _, names = resolve_concepts("column:place", train)
    assert column_concepts("column:place", test.columns, test.name, names)[0].tolist() == [1]
    with pytest.raises(ValueError, match=r"values 'y=0 place=1', which the training images do not"):
        column_concepts("column:y+place", test.columns, test.name, ["y=1 place=1"])


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("column:plaze", r"no column 'plaze' \(did you mean 'place'\?\) .*it has 'img_id', 'y'"),
        ("column:", "no column ''"),
        ("column:img_filename", "no column 'img_filename'"),  # a concept per image is a slip
    ],
)
def test_unknown_columns(waterbirds, concepts, message):
    with pytest.raises(ValueError, match=message):
        resolve_concepts(concepts, load_images(waterbirds, image_size=6))


def test_columns_of_images_without_any():
    with pytest.raises(ValueError, match="has no columns; column:NAME goes with"):
        resolve_concepts("column:place", load_images("digits"))


def test_an_empty_concept(waterbirds):
    waterbirds.write_text(WATERBIRDS.replace("0,0,1,/o", "0,0,,/o"))
    with pytest.raises(ValueError, match=r"column 'place' .* is empty for image 2"):
        resolve_concepts("column:place", load_images(waterbirds, image_size=6))


def test_columns_named_by_the_user(tmp_path):
    save(tmp_path / "pictures", "a.png", "b.png")
    path = written(tmp_path, "photo,label,kind,fold\na.png,x,dog,test\nb.png,y,cat,train\n")
    source = f"{path}:image=photo,label=kind,split=fold"
    images = load_images(source, split="test", image_size=4, root=tmp_path / "pictures")
    assert images.classes == ["cat", "dog"]
    assert images.target.tolist() == [1]
    direct = CsvImages(
        path, image_size=4, image_column="photo", label_column="kind", root=tmp_path / "pictures"
    )
    assert direct.target.tolist() == [1, 0]
    with pytest.raises(
        ValueError, match=r"image column: none found; name it, of the columns 'photo'"
    ):
        load_images(path, image_size=4)
    with pytest.raises(ValueError, match="image column 'foto' is not known; did you mean 'photo'"):
        load_images(f"{path}:image=foto", image_size=4)
    with pytest.raises(
        ValueError,
        match="setting 'size' is not known; known are 'image', 'label', 'split'; expected a metadata CSV",
    ):
        load_images(f"{path}:size=3", image_size=4)


def test_a_list_without_splits_is_one_set(tmp_path):
    save(tmp_path, "a.png")
    path = written(tmp_path, "image,label,split\na.png,x,fold7\n")
    with pytest.raises(ValueError, match=r"line 2: unknown split 'fold7'.*split= without a name"):
        load_images(path, image_size=4)
    for split in ("train", "val", "test", "all"):
        assert len(load_images(f"{path}:split=", split=split, image_size=4)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no image is listed"),
        ("image,label\n", "no image is listed"),
        ("image,label,label\na.png,x,y\n", "column 'label' comes twice"),
        ("image,label,class\na.png,x,y\n", "label column: 'label', 'class' may all be it"),
        ("image,label\na.png,x\na.png\n", "line 3: 1 values, the header has 2"),
        ("image,label\na.png,x\n\na.png,\n", "line 4: no class in column 'label'"),
        ('image,label\na.png,"x\n', "line 2: unexpected end of data"),
    ],
)
def test_other_layouts_name_the_line(tmp_path, text, message):
    save(tmp_path, "a.png")
    with pytest.raises(ValueError, match=message):
        load_images(written(tmp_path, text), image_size=4)


def test_a_list_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none\.csv does not exist; expected a metadata CSV"
    ):
        load_images(tmp_path / "none.csv", image_size=4)
    (tmp_path / "list.csv").write_bytes(b"image,label\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match=r"list\.csv, line"):
        load_images(tmp_path / "list.csv", image_size=4)
    with pytest.raises(ValueError, match="give image_size"):
        load_images(tmp_path / "list.csv")


OUTSIDE = ["../secret.png", "a/../../secret.png", "/etc/passwd", "C:\\secret.png", "..\\secret.png",
           "\\\\server\\share\\x.png", "//server/x.png", "C:secret.png", "a\0.png"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out(tmp_path, name):
    save(tmp_path, "secret.png", "list/a/good.png")
    path = written(tmp_path / "list", f"image,label\na/good.png,0\n{name},1\n")
    with pytest.raises(ValueError, match=r"list\.csv, line 3: .*(stay below it|NUL)"):
        load_images(path, image_size=4)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_that_lead_out(tmp_path, link):
    save(tmp_path, "outside/secret.png", "list/a.png")
    target = tmp_path / "outside"
    name = "x/secret.png" if link == "folder" else "x.png"
    os.symlink(
        target if link == "folder" else target / "secret.png",
        tmp_path / "list" / name[:5].split("/")[0],
    )
    path = written(tmp_path / "list", f"image,label\na.png,0\n{name},1\n")
    with pytest.raises(ValueError, match=r"line 3: '.*' leads through a link out of .*as root"):
        load_images(path, image_size=4)


def test_links_inside_and_a_linked_root(tmp_path):
    save(tmp_path, "list/a/b.png")
    os.symlink(tmp_path / "list" / "a" / "b.png", tmp_path / "list" / "c.png")
    written(tmp_path / "list", "image,label\nc.png,0\n")
    os.symlink(tmp_path / "list", tmp_path / "linked")
    images = load_images(tmp_path / "linked" / "list.csv", image_size=6)
    assert torch.equal(images[0][0], fit_picture(picture(0), 6))


def test_files_that_are_missing_or_none(tmp_path):
    save(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "round.png", tmp_path / "round.png")
    for name in ("none.png", "none/a.png", "a.png/b.png", "round.png"):
        with pytest.raises(FileNotFoundError, match="line 2: no file '"):
            load_images(written(tmp_path, f"image,label\n{name},1\n"), image_size=4)
    os.mkdir(tmp_path / "folder")
    for name in ("pipe.png", "folder"):
        with pytest.raises(ValueError, match=r"line 2: '.*' is no regular file"):
            load_images(written(tmp_path, f"image,label\n{name},1\n"), image_size=4)
    for name in ("", "."):
        with pytest.raises(ValueError, match=r"line 2: '.*' must be relative to"):
            load_images(written(tmp_path, f"image,label\n{name},1\n"), image_size=4)


def test_products(products):
    images = load_images(products, image_size=6)
    assert isinstance(images, ProductImages)
    assert images.classes == ["1", "2", "10"]
    assert images.target.tolist() == [0, 0, 2, 1]
    concept, names = resolve_concepts(None, images)
    assert (concept.tolist(), names) == ([0, 0, 1, 0], ["bicycle", "chair"])
    assert torch.equal(images[2][0], fit_picture(picture(2), 6))
    assert len(load_images(products, split="test", image_size=6)) == 4  # a file is one set


def test_super_classes_as_classes(products):
    images = load_images(f"{products}:label=super_class_id", image_size=6)
    assert images.classes == ["bicycle", "chair"]
    assert images.target.tolist() == [0, 0, 1, 0]
    assert images.concept_map is None
    with pytest.raises(ValueError, match="label must be class_id or super_class_id, got 'path'"):
        load_images(f"{products}:label=path", image_size=6)
    with pytest.raises(
        ValueError, match="setting 'split' is not known; known is 'label'; expected lines headed"
    ):
        load_images(f"{products}:split=x", image_size=6)


def test_super_classes_without_folders_of_their_own_are_numbers(products):
    products.write_text(PRODUCTS.replace("2 1 1 bicycle_final/1_1", "2 1 1 chair_final/10 a"))
    (products.parent / "chair_final" / "10 a.png.png").write_bytes(b"")
    assert resolve_concepts(None, load_images(products, image_size=6))[1] == ["1", "2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_id class_id", "id class", "expected lines headed 'image_id class_id"),
        ("3 10 2 chair", "3 x 2 chair", "line 4: expected three numbers and a path"),
        ("2 1 1 bic", "2 1 2 bic", "line 3: class 1 is in super-class 2, before it was in 1"),
        ("bicycle_final/1_1", "../1_1", "line 3: .* stay below it"),
    ],
)
def test_damaged_products(products, old, new, message):
    products.write_text(PRODUCTS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_images(products, image_size=6)


def test_training_on_a_list(waterbirds, tmp_path):
    """Validation concepts are those of training, though another selection of them occurs."""
    result = HRRLTrainer(
        data=f"{waterbirds}:label=y", validation=waterbirds, concepts="column:place", image_size=8,
        epochs=1, batch_size=3, width=4, tau=0.01, lam=10.0, device="cpu", progress="off",
        crop_padding=1,
    ).fit()  # fmt: skip
    assert list(result.last["concept_accuracy"]) == ["0", "1"]
    assert result.last["concept_accuracy"]["0"] is None  # the only test image has place 1
    assert result.last["concept_accuracy"]["1"] is not None


def test_no_two_combinations_of_values_share_a_name():
    """Among them pairs that "a=" and " b=" alone, or quotes without escaping, would not tell apart."""
    values = ["1", "1 b=2", "2", "2 b=3", "3", '"1"', '"1" b="2"', '1"', "\\", '"', "=", " ", "é ü"]
    pairs = [(x, y) for x in values for y in values]
    columns = {
        name: np.array(cells, dtype=object)
        for name, cells in zip("ab", zip(*pairs, strict=True), strict=True)
    }
    concept, names = column_concepts("column:a+b", columns, "list")
    assert len(set(names)) == len(names) == len(concept.unique()) == len(pairs)
    assert {"a=1 b=é ü", 'a="1 b=2" b=3', 'a=1 b="2 b=3"'} <= set(names)


def test_names_that_come_twice_are_found_in_one_pass(tmp_path):
    """By the work and not by the clock: each name is looked at a few times, however many there are."""
    looks = 0

    class Name(str):
        def __hash__(self):
            nonlocal looks
            looks += 1
            return str.__hash__(self)

        def __eq__(self, other):
            nonlocal looks
            looks += 1
            return str.__eq__(self, other)

    names = [Name(f"c{i % 9_990}") for i in range(10_000)]
    assert repeated(names) == [f"c{i}" for i in range(10)]
    assert looks < 10 * len(names)
    classes, looks = names[:9_990], 0
    assert match_classes(dict.fromkeys(classes, "k"), classes) == ["k"] * len(classes)
    assert looks < 20 * len(classes)
    (tmp_path / "m.csv").write_text("image,label,x,x\n1.png,a,0,1\n")
    with pytest.raises(ValueError, match="column 'x' comes twice"):
        load_images(tmp_path / "m.csv", image_size=6)
