"""Wherever a model of known classes meets labelled data, labels mean what they meant to the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import run

from hrrl_ext.data import load_images
from hrrl_ext.data.classes import require_same_classes
from hrrl_ext.models import resnet18
from hrrl_ext.pretrained import save_pretrained

DIGITS = [str(c) for c in range(10)]
TURNED = DIGITS[::-1]
RENAMED = [f"digit {c}" for c in DIGITS]
FEWER = DIGITS[:5]
OTHERS = {"turned": TURNED, "renamed": RENAMED, "fewer": FEWER}


# The function


def test_the_same_is_no_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_same_classes(DIGITS, tuple(DIGITS), of="a model")
        require_same_classes([], [], of="a model")
        require_same_classes(["a", "a"], ["a", "a"], of="a model")


@pytest.mark.parametrize(
    ("known", "found", "message"),
    [
        (["a"], [], r"photos has 0 classes \(\), a model 1 classes \(a\); give"),
        (["a", "b", "c", "d"], ["a"], r"photos has 1 .*, a model 4 classes \(a, b, c, \.\.\.\)"),
        (["a", "b"], ["b", "a"], "'b' is class 0 of photos and class 1 of a model"),
        (["a", "b", "c"], ["b", "x", "c"], "'b' is class 0 of photos and class 1 of a model"),
        (["0", "1", "2"], ["1", "2", "3"], "'1' is class 0 of photos and class 1 of a model"),
    ],
)
def test_a_label_that_would_mean_another_class(
    known: list[str], found: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        require_same_classes(known, found, of="a model", data="photos")


@pytest.mark.parametrize("found", [["a", "x"], ["x", "b"], ["x", "y"], ["A", "b"]])
def test_other_names_are_a_warning(found: list[str]) -> None:
    with pytest.warns(UserWarning, match="they are taken for the same, such as '[xA]'"):
        require_same_classes(["a", "b"], found, of="a model")


# Every command


def network(folder: Path, classes: list[str]) -> Path:
    model = resnet18(len(classes), stem="small", width=2)
    config = {"model": "resnet18", "classes": classes, "image_size": 8, "width": 2}
    save_pretrained(model, folder, config)
    return folder


def photos(file: Path, classes: list[str]) -> Path:
    digits = load_images("digits").subset(range(40))
    image = digits.images.permute(0, 2, 3, 1).numpy()
    np.savez(file, image=image, label=digits.target.numpy() % len(classes), class_names=classes)
    return file


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
    return train(photos(at / "data.npz", DIGITS), at / "out", "--validation", photos(at / "v.npz", names))  # fmt: skip


def finetune_validation(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", DIGITS), network(at / "model", FEWER)
    sets: list[str | Path] = ["--data", data, "--validation", photos(at / "v.npz", names)]
    return ["finetune", model, *sets, "--out", at / "out", *QUICK]


def init(at: Path, names: list[str]) -> list[str | Path]:
    return train(photos(at / "data.npz", names), at / "out", "--init", network(at / "m", DIGITS))


def finetune(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    return ["finetune", model, "--data", data, "--out", at / "out", *QUICK]


def extract(at: Path, names: list[str]) -> list[str | Path]:
    data, model = photos(at / "data.npz", names), network(at / "model", DIGITS)
    return ["extract", "--model", model, "--data", data, "--out", at / "out.npz"]


LOGITS = [cluster, variance, snapshot, evaluate, validation, finetune_validation]
"""Where the logits of the model are compared with the labels."""
ANY = [finetune, extract]
"""Where they are not: the last layer begins anew, or is left out."""


@pytest.mark.parametrize("case", [*LOGITS, init, *ANY])
def test_the_same_classes(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, stderr = run(capsys, *case(tmp_path, DIGITS))
    assert status == 0, stderr
    assert "warning" not in stderr


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("case", [*LOGITS, init])
def test_other_classes(
    case: Case, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, stderr = run(capsys, *case(tmp_path, OTHERS[other]))
    if other == "renamed":
        assert status == 0, stderr
        assert "they are taken for the same, such as 'digit 0' for '0'" in stderr
    elif other == "fewer" and case is init:  # its last layer is left out, and named
        assert status == 0, stderr
        assert "2 mismatched (fc.weight, fc.bias)" in stderr
    else:
        assert status == 1
        assert stderr.count("\n") == 1
        assert (
            "has 5 classes (0, 1, 2, ...)" if other == "fewer" else "'9' is class 0 of"
        ) in stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("case", ANY)
def test_classes_that_do_not_count(
    case: Case, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, stderr = run(capsys, *case(tmp_path, OTHERS[other]))
    assert status == 0, stderr
    assert "warning" not in stderr
