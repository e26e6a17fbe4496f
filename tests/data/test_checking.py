"""A broken folder, in which a fault of every kind is planted once: all are found, and nothing else is."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hrrl_ext.data import (
    ArrayImages,
    CheckReport,
    FolderImages,
    check,
    load_images,
    read_check,
    without,
)
from hrrl_ext.data.check_report import KINDS
from hrrl_ext.data.folders import DecodedImages
from hrrl_ext.data.looking import STOPS
from hrrl_ext.data.same import same_images

Image = pytest.importorskip("PIL.Image")
NOISE = np.random.default_rng(0)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def noise(height: int = 40, width: int = 40):
    return Image.fromarray(NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8))


def clean(root: Path) -> Path:
    """Two splits of two classes; the formats and modes that are usual, and nothing to be told."""
    for split, images in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for at in range(images):
                noise().save(folder / f"{at}.png")
        noise().convert("L").save(root / split / "cat" / "grey.png")
        noise().save(root / split / "dog" / "colour.jpg")
        noise().convert("P").save(root / split / "dog" / "still.gif")
        noise().convert("RGBA").save(root / split / "dog" / "clear.png")
    return root


# What is planted in train/cat, and where it is found: kind → names. Of a pair both are named.
PLANTED: dict[str, list[str]] = {
    "empty": ["cat/empty.png"],
    "damaged": ["cat/cut.png", "cat/header.jpg"],
    "no image": ["cat/words.jpg"],
    "deep": ["cat/deep.png"],
    "channels": ["cat/lab.tif"],
    "refused": ["cat/leads-nowhere.png", "cat/pipe.png"],
    "contradicting": ["cat/either.png", "dog/either.bmp"],
    "leaked": ["cat/leaked.png", "../test/cat/0.png"],
    "repeated": ["cat/zz-again.png"],
    "constant": ["cat/black.png"],
    "small": ["cat/small.png"],
    "long": ["cat/long.png"],
    "animated": ["cat/animated.gif"],
    "turned": ["cat/turned.jpg"],
    "converted": ["cat/print.jpg"],
    "case": ["cat/Case.png", "cat/case.png"],
    "empty class": ["bird"],
    "small class": ["Dog"],
    "class case": ["dog"],
}
LEFT_OUT = {*STOPS, "contradicting", "repeated"}


def broken(root: Path) -> Path:
    clean(root)
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    (cat / "empty.png").touch()
    whole = (cat / "0.png").read_bytes()
    (cat / "cut.png").write_bytes(whole[: len(whole) // 2])
    noise().save(cat / "header.jpg")
    (cat / "header.jpg").write_bytes((cat / "header.jpg").read_bytes()[:20])
    (cat / "words.jpg").write_text("not found")
    deep = NOISE.integers(0, 2**16, (40, 40), dtype=np.uint16)
    Image.fromarray(deep).save(cat / "deep.png")
    noise().convert("LAB").save(cat / "lab.tif")
    (cat / "leads-nowhere.png").symlink_to(root / "nowhere.png")
    os.mkfifo(cat / "pipe.png")
    either = noise()
    either.save(cat / "either.png")
    either.save(dog / "either.bmp")  # the same pixels in other bytes
    shutil.copy(root / "test" / "cat" / "0.png", cat / "leaked.png")
    shutil.copy(cat / "1.png", cat / "zz-again.png")
    Image.new("RGB", (40, 40)).save(cat / "black.png")
    noise(31, 40).save(cat / "small.png")
    noise(40, 161).save(cat / "long.png")
    noise().save(cat / "animated.gif", save_all=True, append_images=[noise()])
    noise().save(cat / "turned.jpg", exif=TURNED)
    noise().convert("CMYK").save(cat / "print.jpg")
    noise().save(cat / "Case.png")
    noise().save(cat / "case.png")
    (root / "train" / "bird").mkdir()
    (root / "train" / "Dog").mkdir()
    noise().save(root / "train" / "Dog" / "only.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {"clean": clean(root / "clean"), "broken": broken(root / "broken")}


@pytest.fixture(scope="module")
def found(folders) -> CheckReport:
    return check(folders["broken"], min_images=2, num_workers=2)


def names(report: CheckReport, kind: str, root: Path) -> list[str]:
    train = root / "train"
    return [
        os.path.relpath(f.image, train) if f.image else f.class_name
        for f in report.findings(kind)
        if f.image or f.part == str(train)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_found_and_nothing_else(found, folders, kind):
    assert sorted(names(found, kind, folders["broken"])) == sorted(PLANTED[kind])


def test_the_page_has_every_kind():
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]*) \|", page.partition("### Before a long run")[2], re.MULTILINE)
    assert re.findall(r"`([^`]+)`", " ".join(cells))[: len(KINDS)] == [
        *STOPS, "contradicting", "leaked", "repeated", "constant", "small", "long", "animated",
        "turned", "converted", "case", "class case", "empty class", "small class",
    ]  # fmt: skip


def test_a_clean_folder_is_clean(folders):
    report = check(folders["clean"], min_images=2)
    assert report.clean and not report.counts and not list(report.findings())
    assert str(report).endswith("\nnothing was found")
    train = report.to_dict()["parts"][0]
    assert [part.name for part in report.parts] == [
        str(folders["clean"] / split) for split in ("train", "test")
    ]
    assert train["formats"] == {"PNG": 8, "GIF": 1, "JPEG": 1}
    assert train["modes"] == {"RGB": 7, "L": 1, "P": 1, "RGBA": 1}
    assert train["classes"] == {"cat": 4, "dog": 6} and train["ratio"] == 1.5
    assert train["width"] == train["height"] == [40] * 7


def test_reasons_say_where_the_other_one_is(found, folders):
    root = folders["broken"]
    why = {(f.kind, os.path.basename(f.image)): f.why for f in found.findings()}
    train, test = root / "train", root / "test"
    assert why["leaked", "leaked.png"] == f"as {test / 'cat' / '0.png'}, 'cat' of {test}"
    assert why["leaked", "0.png"] == f"as {train / 'cat' / 'leaked.png'}, 'cat' of {train}"
    assert why["contradicting", "either.bmp"].endswith(f"either.png, 'cat' of {train}")
    assert why["repeated", "zz-again.png"].endswith(f"{'1.png'}, 'cat' of {train}")
    assert why["case", "Case.png"].endswith(f"case.png, 'cat' of {train}")
    assert why["small", "small.png"] == "40 x 31 pixels"
    assert why["converted", "print.jpg"] == "CMYK"
    assert "pipe" in why["refused", "pipe.png"]
    assert why["damaged", "header.jpg"] == "its header is cut off or damaged"


def test_what_opens_no_training_is_told(found, folders, tmp_path, capsys):
    """An empty class folder is refused when the source is opened; all else is found all the same."""
    assert [bool(part.refused) for part in found.parts] == [True, False]
    assert "'bird' holds no image" in found.parts[0].refused and not found.clean
    assert found.stopping == sum(len(PLANTED[kind]) for kind in STOPS)


def test_copies_are_left_out_where_one_is_enough(tmp_path):
    """Of a class the first stays, of the parts the last, of a contradiction within a part none."""
    x = torch.arange(3 * 3 * 4 * 4).to(torch.uint8).view(3, 3, 4, 4)
    train = ArrayImages(x[[0, 0, 1, 1, 2]], [0, 0, 0, 1, 1], name="train")
    test = ArrayImages(x[[2, 2]], [1, 0], name="test")
    report = check(train, test, min_images=0)
    left = {(f.part, f.image) for f in report.findings() if f.leave_out}
    assert left == {
        *(("train", f"image {row}") for row in (1, 2, 3, 4)),
        ("test", "image 0"),
        ("test", "image 1"),
    }
    assert report.counts == {"contradicting": 5, "leaked": 3, "repeated": 1}
    assert report.clean


def test_pictures_and_arrays_are_compared(tmp_path):
    """A file shows what an array holds: one of the two is in the wrong part."""
    picture = noise()
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "0.png")
    pixels = np.array(picture)
    changed = pixels.copy()
    changed[39, 39, 2] ^= 1
    array = ArrayImages(np.stack([changed, pixels]), [0, 0], classes=["a"], name="array")
    report = check(tmp_path, array, min_images=0)
    assert [f.image for f in report.findings("leaked")] == [
        str(tmp_path / "a" / "0.png"), "image 1",
    ]  # fmt: skip


def test_splits_of_one_length_are_told_by_their_images():
    """Of a table `sources` are the numbers of rows."""

    class Rows(DecodedImages):
        def __init__(self, pictures, target):
            super().__init__(
                range(len(pictures)), target, image_size=40, classes=["a", "b"], name="x"
            )
            self.pictures = pictures

        def _open(self, source):
            if self.pictures[source] is None:
                raise OSError("cannot decode")
            return self.pictures[source]

    pictures = [noise(), None, noise()]
    one, other = Rows(pictures, [0, 1, 1]), Rows([noise(), None, noise()], [0, 1, 1])
    assert same_images(one, Rows(pictures, [0, 1, 1])) and not same_images(one, other)
    assert not same_images(one, Rows(pictures, [0, 1, 0]))
    assert not same_images(one, Rows(pictures[:2], [0, 1]))


def test_what_applies_to_arrays(tmp_path):
    x = NOISE.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    x[1] = 7
    x[4] = x[2]
    file, train = tmp_path / "both.npz", {"x_train": x, "y_train": [0, 0, 1, 0, 1]}
    np.savez(file, **train, x_test=x[[2, 3, 0]], y_test=[1, 2, 0])
    with pytest.raises(ValueError, match="label 2"):
        check(file, splits=["train", "test"])
    np.savez(file, **train, x_test=x[[2, 3, 0]], y_test=[1, 1, 0])
    report = check(file, min_images=1)
    assert [part.name for part in report.parts] == ["both train", "both test"]
    assert report.counts == {"contradicting": 2, "leaked": 7, "repeated": 1, "constant": 1}
    assert [f.image for f in report.findings("contradicting")] == ["image 3", "image 1"]
    report.write_list(tmp_path / "faults.csv")
    source = f"{file}:leave_out={tmp_path / 'faults.csv'}"
    assert load_images(source, split="train").left_out == [f"image {i}" for i in (0, 2, 3, 4)]
    assert len(load_images(source, split="test")) == 3  # what is measured on stays whole
    floats = ArrayImages(torch.rand(3, 1, 4, 4), [0, 0, 0])
    assert not check(floats, min_images=0).counts


# --- the list


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list_leaves_out_what_it_says(found, folders, tmp_path, kind):
    train = folders["broken"] / "train"
    (tmp_path / "there").symlink_to(folders["broken"])
    file = tmp_path / f"faults.{kind}"
    found.write_list(file)
    shutil.copytree(train, tmp_path / "train", ignore=shutil.ignore_patterns("bird", "pipe.png"), symlinks=True)  # fmt: skip
    with pytest.raises(ValueError, match="'bird' holds no image"):
        load_images(f"{train}:leave_out={file}", image_size=8)
    listed = file.read_text()
    file.write_text(listed.replace(str(train), str(tmp_path / "train")))
    whole = load_images(tmp_path / "train", image_size=8)
    rest = load_images(f"{tmp_path / 'train'}:leave_out={file}", image_size=8)
    left = [os.path.relpath(name, tmp_path / "train") for name in rest.left_out]
    expected = {name for kind in LEFT_OUT for name in PLANTED[kind]} | {"cat/leaked.png"}
    assert sorted(left) == sorted(expected - {"cat/pipe.png"})
    assert len(rest) == len(whole) - len(left) and rest.classes == whole.classes
    rest.__getitems__(range(len(rest)))  # all can be read
    assert check(rest, min_images=0).clean


def test_other_lists(folders, tmp_path, monkeypatch):
    """Names in the lines of a text, paths from here on, a column of one's own decision, and none at all."""
    monkeypatch.chdir(folders["clean"])
    images = FolderImages("train", image_size=8)
    (tmp_path / "names.txt").write_text(
        "train/cat/0.png\n\ntrain/dog/../dog/1.png\ntrain/other.png\n"
    )
    rest = without(images, tmp_path / "names.txt")
    assert rest.left_out == ["train/cat/0.png", "train/dog/1.png"] and len(rest) == len(images) - 2
    (tmp_path / "own.csv").write_text("image,leave_out\ntrain/cat/0.png,no\ntrain/cat/1.png,yes\n")
    assert without(images, tmp_path / "own.csv").left_out == ["train/cat/1.png"]
    check("train", min_images=0).write_list(tmp_path / "none.csv")
    check("train", min_images=0).write_list(tmp_path / "none.jsonl")
    for file in ("none.csv", "none.jsonl"):
        assert without(images, tmp_path / file) is images
    (tmp_path / "gone.txt").write_text("moved/0.png\n")
    with pytest.warns(UserWarning, match="'moved/0.png' do not exist; files are named from"):
        assert without(images, tmp_path / "gone.txt") is images
    (tmp_path / "all.txt").write_text("\n".join(images.sources))
    with pytest.raises(ValueError, match="leaves out all of 10 images"):
        without(images, tmp_path / "all.txt")
    (tmp_path / "bad.csv").write_text("image,leave_out\ntrain/cat/0.png,maybe\n")
    with pytest.raises(
        ValueError, match=r"bad.csv, line 2: leave_out must be yes or no, got 'maybe'"
    ):
        without(images, tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("name\n1\n")
    with pytest.raises(ValueError, match="has the columns 'name'; expected a table"):
        without(images, tmp_path / "bad.csv")
    with pytest.raises(FileNotFoundError, match=r"leave_out: .*no\.txt does not exist"):
        load_images(f"train:leave_out={tmp_path / 'no.txt'}", image_size=8)


def test_a_name_that_is_no_text_is_listed_too(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    name = os.fsdecode(b"\xff.png")
    (folder / name).touch()
    noise().save(folder / "0.png")
    report = check(tmp_path, min_images=0)
    for file in (tmp_path / "faults.csv", tmp_path / "faults.jsonl"):
        report.write_list(file)
        rest = load_images(f"{tmp_path}:leave_out={file}", image_size=8)
        assert rest.left_out == [str(folder / name)]
    with pytest.raises(ValueError, match=r"a list is a \.csv or a \.jsonl, got"):
        report.write_list(tmp_path / "faults.txt")


# --- the command


def test_the_command(folders, tmp_path, capsys, monkeypatch):
    pytest.importorskip("jsonargparse")
    from hrrl_ext.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        status = main(["data", "check", *map(str, words), "--min_images", "2"])
        told = capsys.readouterr()
        return status, told.out, told.err

    status, out, _ = run(folders["clean"], "--num_workers", 2, "--json", tmp_path / "clean.json")
    assert status == 0 and "\nnothing was found\n" in out
    assert read_check(tmp_path / "clean.json")["clean"] is True
    outputs = {name: tmp_path / name for name in ("faults.csv", "found.json")}
    words = ["--write_list", outputs["faults.csv"], "--json", outputs["found.json"]]
    status, out, err = run(folders["broken"], *words)
    assert status == 1
    assert "8 of 39 images cannot be read, and training refuses" in err, err
    assert f"stops  empty               1  {KINDS['empty']}: {folders['broken']}" in out
    told = read_check(outputs["found.json"])
    with outputs["faults.csv"].open(newline="") as file:
        listed = list(csv.DictReader(file))
    for kind, planted in PLANTED.items():
        of_train = 1 if kind in ("empty class", "small class", "class case") else len(planted)
        assert told["found"][kind]["count"] >= of_train
        assert sum(row["kind"] == kind for row in listed) == told["found"][kind]["count"]
    assert str(check(folders["broken"], min_images=2)) in out
    # Warnings alone are no error, and the list is what is to be left out.
    status, out, err = run(folders["broken"] / "test", folders["broken"] / "test")
    assert status == 0 and "warns  leaked" in out
    status, _, err = run(folders["clean"], "--write_list", "faults.txt")
    assert status == 1 and "--write_list must be a .csv or a .jsonl, got 'faults.txt'" in err
    assert run(folders["clean"], "--max_aspect", 0.5)[0] == 1


def test_interrupted_it_leaves_nothing(folders, tmp_path, capsys, monkeypatch):
    pytest.importorskip("jsonargparse")
    from hrrl_ext.cli import main
    from hrrl_ext.data import checking

    real, seen = checking.look_at, []

    def interrupted(images, row, limits):
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(images, row, limits)

    monkeypatch.setattr(checking, "look_at", interrupted)
    words = ["data", "check", str(folders["clean"]), "--write_list", str(tmp_path / "faults.csv")]
    assert main([*words, "--num_workers", "2"]) == 130
    assert capsys.readouterr().err.endswith("hrrl data check: interrupted\n")
    assert not list(tmp_path.iterdir()) and len(seen) < 16


def test_a_report_is_read_as_it_was_written(found, tmp_path):
    file = tmp_path / "found.json"
    told = found.to_dict()
    file.write_text(json.dumps(told))
    assert read_check(file) == told
    told["parts"][0]["classes"]["cat"] = "many"
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"parts\[0\].classes.cat must be a count, got 'many'"):
        read_check(file)


def test_contact_sheet(found, tmp_path, monkeypatch):
    """A row for each kind that was found of images, and for each class of each part."""
    pytest.importorskip("matplotlib")
    from hrrl_ext.plots import contact_sheet, plot_check

    sheets = []
    monkeypatch.setattr(contact_sheet, "plot_contact_sheet", lambda sheet, _: sheets.append(sheet))
    plot_check(found, tmp_path / "x.png")
    rows = dict(sheets[0])
    of_images = [kind for kind in found.counts if "class" not in kind]
    train, test = (part.name for part in found.parts)
    classes = [f"Dog: 1 in {train}", f"cat: 23 in {train}", f"dog: 7 in {train}"]
    classes += [f"cat: 3 in {test}", f"dog: 5 in {test}"]
    assert list(rows) == [f"{kind}: {found.counts[kind]}" for kind in of_images] + classes
    crosses, under = zip(*rows["damaged: 2"], strict=True)
    assert under[0].startswith("cut.png: ") and torch.equal(*crosses)
    assert all(not torch.equal(image, crosses[0]) for text in classes for image, _ in rows[text])
    monkeypatch.undo()
    pixels = torch.arange(24).float().view(2, 3, 2, 2) / 24
    whole = check(ArrayImages(pixels, [0, 1], name="$_"), min_images=0)
    assert Image.open(plot_check(whole, tmp_path / "arrays.png")).size[0] > 100


def test_progress_and_bad_arguments():
    told = []
    images = ArrayImages(NOISE.random((5, 4, 4, 3)), [0] * 5)
    check(images, progress=lambda done, of: told.append((done, of)))
    assert told == [(n, 5) for n in range(1, 6)]
    with pytest.raises(ValueError, match="no source is given"):
        check()
    with pytest.raises(ValueError, match="max_aspect at least 1, got 32, 10 and nan"):
        check(images, max_aspect=float("nan"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check("nowhere")


def test_trainings_leave_out_what_the_list_says(folders, tmp_path):
    """With it the run is that of a set without those images, and goes on without being told again."""
    from hrrl_ext import HRRLTrainer

    left = folders["clean"] / "train" / "cat" / "0.png"
    (tmp_path / "names.txt").write_text(str(left))
    source = f"{folders['clean']}:leave_out={tmp_path / 'names.txt'}"
    options = {
        "concepts": "classes", "image_size": 8, "epochs": 1, "batch_size": 4, "width": 2,
        "device": "cpu", "progress": "off",
    }  # fmt: skip
    run = HRRLTrainer("convnet", data=source, out=tmp_path / "run", **options)
    assert run.batches.images.left_out == [str(left)]
    run.fit()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["left_out"] == {"data": [str(left)]} and config["examples"] == 9
    with pytest.warns(UserWarning, match="1 of 10 images are left out, as when the run began"):
        HRRLTrainer("convnet", data=folders["clean"], out=tmp_path / "run", resume=True, **options)


def test_pairs_and_studies_do_so_too(folders, tmp_path):
    from hrrl_ext.retrieval import load_pairs, open_gallery_images
    from hrrl_ext.transfer.study.images import located

    folder = tmp_path / "pictures"
    shutil.copytree(folders["clean"] / "test" / "cat", folder)
    (tmp_path / "names.txt").write_text(str(folder / "0.png"))
    source = f"{folder}:leave_out={tmp_path / 'names.txt'}"
    gallery = open_gallery_images(source, image_size=8)
    assert [Path(p).name for p in gallery.sources] == ["1.png", "grey.png"]
    for file in list(folder.iterdir()):
        file.with_suffix(".txt").write_text(f"{file.stem}, once\n{file.stem}, twice\n")
    for pairs in (load_pairs(source, image_size=8), open_gallery_images(source, image_size=8)):
        assert pairs.left_out == [str(folder / "0.png")]
        assert pairs.captions == ["1, once", "1, twice", "grey, once", "grey, twice"]
        assert pairs.owner.tolist() == [0, 0, 1, 1]
    assert load_pairs(f"emoji:leave_out={tmp_path / 'names.txt'}").left_out == ()
    with pytest.raises(ValueError, match="leave_out is of images, and these are features"):
        load_pairs((np.zeros((1, 2)), ["one"])).without(tmp_path / "names.txt")
    assert located("pictures:leave_out=names.txt", str(tmp_path)) == source
    assert located("digits:leave_out=x.csv", "there") == "digits:leave_out=there/x.csv"
