"""Wherever a model of known classes meets labelled data, labels mean what they meant to the model."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import run
from torch import Tensor

from hrrl_ext.data import ArrayImages, ConceptMap, ImageSet, load_images, with_classes
from hrrl_ext.data.classes import read_classes, require_same_classes
from hrrl_ext.data.columns import sorted_names
from hrrl_ext.data.ids import Ids
from hrrl_ext.data.resize import ImageSize
from hrrl_ext.models import resnet18
from hrrl_ext.pretrained import save_pretrained

DIGITS = [str(c) for c in range(10)]
TURNED = DIGITS[::-1]
RENAMED = [f"digit {c}" for c in DIGITS]
FEWER = DIGITS[:5]
OTHERS = {"turned": TURNED, "renamed": RENAMED, "fewer": FEWER}


# Names in order


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (map(str, range(12)), [*map(str, range(12))]),
        (["10.0", "2.0", "0.0"], ["0.0", "2.0", "10.0"]),
        (["5", "-10", "-2", "+3"], ["-10", "-2", "+3", "5"]),
        (["1e3", "20", ".5"], [".5", "20", "1e3"]),
        (["02", "2", "1"], ["1", "02", "2"]),
        (["9" * 30 + "1", "9" * 30 + "0"], ["9" * 30 + "0", "9" * 30 + "1"]),  # beyond float64
        (["n10", "n2", "10"], ["10", "n10", "n2"]),
        (["nan", "inf", "1"], ["1", "inf", "nan"]),
        (["b", "a", "b"], ["a", "b"]),
        ([], []),
    ],
)
def test_numbers_are_sorted_by_value(names: Iterable[str], expected: list[str]) -> None:
    assert sorted_names(names) == expected


def test_folders_and_lists_agree(tmp_path: Path) -> None:
    """Twelve classes: as text "10" comes before "2"."""
    pytest.importorskip("PIL")
    rows = ["image,label"]
    for c in range(12):
        (tmp_path / "root" / str(c)).mkdir(parents=True)
        file = tmp_path / "root" / str(c) / "x.png"
        write_png(file, c)
        rows.append(f"root/{c}/x.png,{c}.0")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    folder, listed = (load_images(tmp_path / n, image_size=2) for n in ("root", "list.csv"))
    assert folder.classes == [str(c) for c in range(12)]
    assert listed.classes == [f"{c}.0" for c in range(12)]
    for images in (folder, listed):
        assert images[10][0][0, 0, 0] == images[10][1] == 10
    assert with_classes(listed, folder.classes).classes == folder.classes


def write_png(file: Path, level: int) -> None:
    from PIL import Image

    Image.fromarray(np.full((2, 2, 3), level, np.uint8)).save(file)


# The functions


def labelled(classes: list[str], target: list[int], **more: Any) -> ArrayImages:
    """Every image is of the level that its target is."""
    levels = torch.tensor(target, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return ArrayImages(levels, target, classes=classes, **more)


@pytest.mark.parametrize(
    ("found", "target", "known", "expected"),
    [
        (["a", "b"], [0, 1, 1], ["b", "a"], [1, 0, 0]),
        (["b", "d"], [0, 1], ["a", "b", "c", "d"], [1, 3]),
        (["a", "b", "x"], [1, 0], ["b", "a"], [0, 1]),  # no image is an x
        (["0", "1", "10", "2"], [0, 1, 2, 3], ["0", "1", "2", "10"], [0, 1, 3, 2]),
        (["0.0", "10.0"], [1, 0], ["0", "1", "10"], [2, 0]),
        (["7", "07"], [0, 1], ["07", "7"], [1, 0]),  # as they are written, where both stand
        (["b", "a"], [], ["a", "b"], []),
        (["a", "a", "b"], [0, 1, 2], ["a", "a", "b"], [0, 1, 2]),  # equal lists say enough
        (["a", "a", "b"], [2], ["b", "a"], [0]),
    ],
)
@pytest.mark.parametrize("kind", ["array", "other"])
def test_labels_are_matched_by_name(
    found: list[str], target: list[int], known: list[str], expected: list[int], kind: str
) -> None:
    images: ImageSet = labelled(found, target)
    if kind == "other":  # a set of the user's own, which gives its labels itself
        images = Own(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matched = with_classes(images, known)
    assert matched.classes == known
    assert matched.target.tolist() == expected
    assert images.classes == found
    assert images.target.tolist() == target
    rows = range(len(target))
    x, labels = matched.__getitems__(rows)
    assert labels.tolist() == expected
    assert x[:, 0, 0, 0].tolist() == target
    for other in (matched.subset(list(rows)[::-1]), matched.resized(3).subset(list(rows)[::-1])):
        assert other.classes == known
        assert other.__getitems__(rows)[1].tolist() == other.target.tolist() == expected[::-1]


class Own(ImageSet):
    def __init__(self, inner: ImageSet) -> None:
        super().__init__(
            inner.target, inner.image_shape, classes=inner.classes, concept_map=None, name="own"
        )
        self.inner = inner

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        return self.inner.__getitems__(indices)

    def subset(self, indices: Ids) -> ImageSet:
        return Own(self.inner.subset(indices))

    def resized(self, image_size: ImageSize) -> ImageSet:
        return Own(self.inner.resized(image_size))


@pytest.mark.parametrize(
    ("found", "target", "known", "message"),
    [
        (["cat", "dgo"], [0, 1], ["cat", "dog"], r"photos has 2 .*: 'dgo' \(did you mean 'dog'\?\) is none"),
        (["Cat", "dog"], [0, 1], ["cat", "dog"], "'Cat' .did you mean 'cat'.. is none of those of a model"),
        (["1", "2", "3"], [0, 1, 2], ["0", "1", "2"], "'3'.* is none of those of a model; name the classes"),
        (["x", "y"], [0, 1], ["a", "b"], r"photos has 2 classes \(x, y\), a model 2 classes \(a, b\): 'x' is"),
        (["0", "1"], [0, 1], ["a", "b", "c"], "'0' is none"),
        (["a", "b"], [0, 1], ["0", "1", "2"], "'a' is none"),
        (["b", "a"], [0, 1], ["a", "b", "a"], r"'a' stands 2 times among 3 classes \(a, b, a\)"),
        (["2", "2.0"], [0, 1], ["1", "2"], r"'2' and '2.0' are both '2' of 2 classes \(1, 2\)"),
    ],
)  # fmt: skip
def test_a_class_that_is_not_known(
    found: list[str], target: list[int], known: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with_classes(labelled(found, target), known, of="a model", data="photos")


@pytest.mark.parametrize(
    ("found", "known"), [(["0", "1"], ["cat", "dog"]), (["cat", "dog"], ["0", "1"])]
)
def test_classes_without_names_are_taken_in_order(found: list[str], known: list[str]) -> None:
    images = labelled(found, [1, 0])
    with pytest.warns(UserWarning, match=f"in their order, such as '{found[0]}' for '{known[0]}'"):
        assert with_classes(images, known) is images


def test_concepts_follow_their_classes() -> None:
    """Animal and vehicle; of a class that the data lack nothing is known, and none is asked."""
    concepts = ConceptMap.from_names(["animal", "vehicle", "animal", "furniture"])
    images = labelled(["cat", "car", "dog", "bed"], [0, 1, 2], concept_map=concepts)
    matched = with_classes(images, ["bus", "dog", "car", "cat"])
    assert matched.concept_map is not None
    assert matched.concept_map.names == ["animal", "vehicle"]  # no image is furniture
    assert matched.concept_map.concept(matched.target).tolist() == [0, 1, 0]
    assert images.concept_map == concepts


def test_two_models() -> None:
    """Their logits are compared place by place: the order counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_same_classes(DIGITS, tuple(DIGITS), of="a model")
        require_same_classes(["0", "1"], ["0.0", "1.0"], of="a model")
        require_same_classes(["a", "a"], ["a", "a"], of="a model")
    with pytest.warns(UserWarning, match="they are taken for the same"):
        require_same_classes(DIGITS, RENAMED, of="a model")
    for other in (TURNED, FEWER, ["x", *DIGITS[1:]]):
        with pytest.raises(ValueError, match=r"earlier has .* give models of the same classes"):
            require_same_classes(DIGITS, other, of="a model", data="earlier")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\ndog\n\n", ["cat", "dog"]),
        (" a b \r\nc", ["a b", "c"]),
        ("\ufeffcat", ["cat"]),
        ("", "classes.txt: expected the name"),
        ("a\n\nb", "classes.txt, line 2: expected the name of a class"),
        (None, "does not exist; expected a text file, the name of a class per line"),
    ],
)
def test_a_file_of_names(text: str | None, expected: list[str] | str, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    if isinstance(expected, list):
        assert read_classes(file) == expected
        return
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        read_classes(file)


# Every command


def network(folder: Path, classes: list[str]) -> Path:
    model = resnet18(len(classes), stem="small", width=2)
    config = {"model": "resnet18", "classes": classes, "image_size": 8, "width": 2}
    save_pretrained(model, folder, config)
    return folder


def photos(file: Path, classes: list[str], first: int = 0) -> Path:
    """The same digits under the same names, in the order of ``classes``; of FEWER those up to 4."""
    digits = load_images("digits").subset(range(first, first + 40))
    image = digits.images.permute(0, 2, 3, 1).numpy()
    label = digits.target.numpy() % len(classes)
    if classes == TURNED:
        label = 9 - label
    np.savez(file, image=image, label=label, class_names=classes)
    return file


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw where matplotlib is, which takes most of their time."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )


Case = Callable[[Path, list[str]], list[str | Path]]
QUICK = [
    "--epochs", "1", "--batch_size", "20", "--crop_padding", "0", "--progress", "off", "--concepts", "classes",
    "--tau", "0", "--lam", "null",
]  # fmt: skip


def train(data: Path, out: Path, *more: str | Path) -> list[str | Path]:
    return ["train", "--data", data, "--width", "2", "--out", out, *QUICK, *more]


def cluster(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    options = ["--clusters", "2", "--rounds", "1"]
    return ["cluster", model, "--data", data, *options, "--out", at / "out"]


def variance(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    return ["variance", model, "--data", data, "--batch_size", "4", "--num_batches", "2"]


def snapshot(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", names)
    options: list[str | Path] = ["--snapshot", network(at / "earlier", DIGITS), "--batch_size", "4"]
    return ["variance", model, "--data", data, *options, "--num_batches", "2"]


def evaluate(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    options = ["--attacks", "none", "--corruptions", "none", "--steps", "0"]
    return ["evaluate", model, "--data", data, *options, "--out", at / "out"]


def validation(at: Path, names: list[str]) -> list[str | Path]:
    return train(photos(at / "data.npz", DIGITS), at / "out", "--validation", photos(at / "v.npz", names, 40))  # fmt: skip


def finetune_validation(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", DIGITS), network(at / "model", FEWER)
    sets: list[str | Path] = ["--data", data, "--validation", photos(at / "v.npz", names, 40)]
    return ["finetune", model, *sets, "--out", at / "out", *QUICK]


def init(at: Path, names: list[str]) -> list[str | Path]:
    return train(photos(at / "data.npz", names), at / "out", "--init", network(at / "m", DIGITS))


def finetune(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    return ["finetune", model, "--data", data, "--out", at / "out", *QUICK]


def extract(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    return ["extract", "--model", model, "--data", data, "--out", at / "out.npz"]


LOGITS = [cluster, variance, evaluate, validation, finetune_validation]
"""Where the labels are matched to the logits of the model."""
ANY = [finetune, extract]
"""Where they are not: the last layer begins anew, or is left out."""


SAME: list[tuple[Case, str | None]] = [(case, None) for case in (snapshot, *ANY)]
SAME += [(case, other) for case in (*LOGITS, init) for other in ("turned", "fewer")]


@pytest.mark.parametrize(("case", "other"), SAME)
def test_the_same_classes(
    case: Case, other: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the same order, in another, or some of them."""
    status, _, stderr = run(capsys, *case(tmp_path, OTHERS[other] if other else DIGITS))
    assert status == 0, stderr
    if other == "fewer" and case is init:  # its last layer is left out, and named
        assert "2 mismatched (fc.weight, fc.bias)" in stderr
    else:
        assert "warning" not in stderr


@pytest.mark.parametrize("case", [cluster, evaluate, init])
def test_the_order_changes_nothing(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is measured, and what a run that begins with weights comes to."""
    found = []
    for names in (DIGITS, TURNED):
        torch.manual_seed(0)
        at = tmp_path / names[0]
        at.mkdir()
        assert run(capsys, *case(at, names))[0] == 0
        if case is cluster:
            found.append([row["objective"] for row in rows(at / "out" / "history.jsonl")])
        elif case is init:
            found.append([row["loss"] for row in rows(at / "out" / "metrics.jsonl")])
        else:
            report = json.loads((at / "out" / "model" / "report.json").read_text())
            found.append([report["accuracy"]["accuracy"], report["calibration"]["ece"]])
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # sums in another order


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("case", [*LOGITS, init, snapshot])
def test_other_names(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, stderr = run(capsys, *case(tmp_path, RENAMED))
    assert status == 0, stderr
    assert "they are taken for the same, in their order, such as " in stderr
    (tmp_path / "again").mkdir()
    status, _, stderr = run(capsys, *case(tmp_path / "again", [*DIGITS[:9], "ten"]))
    assert status == 1
    assert stderr.count("\n") == 1
    expected = (
        "give models of the same classes" if case is snapshot else "'ten' is none of those of"
    )
    assert expected in stderr
    assert not (tmp_path / "again" / "out").exists()


@pytest.mark.parametrize("other", ["turned", "fewer"])
def test_a_snapshot_with_other_logits(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, stderr = run(capsys, *snapshot(tmp_path, OTHERS[other]))
    assert (status, stderr.count("\n")) == (1, 1)
    assert "give models of the same classes, in the same order" in stderr


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("case", ANY)
def test_classes_that_do_not_count(
    case: Case, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, stderr = run(capsys, *case(tmp_path, OTHERS[other]))
    assert status == 0, stderr
    assert "warning" not in stderr
