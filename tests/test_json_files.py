"""Every JSON file that is read again: a field of a wrong type, or one that is gone, names file and field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_cli import run

from hrrl_ext.clustering.folder import ClusterFolder
from hrrl_ext.clustering.recorder import read_recording
from hrrl_ext.evaluation.folder import EvaluationFolder
from hrrl_ext.models import ConvNet
from hrrl_ext.plots import read_history
from hrrl_ext.pretrained import from_pretrained, save_pretrained
from hrrl_ext.retrieval.gallery import Gallery
from hrrl_ext.transfer import load_classes
from hrrl_ext.transfer.study.parts import Parts
from hrrl_ext.transfer.study.trials import NEEDED
from hrrl_ext.transfer.table import _read

SHARE = {"correct": 3, "count": 4, "accuracy": 0.75, "low": 0.3, "high": 0.9}


class File(NamedTuple):
    """What is in it, who reads it, and what of it is read: without these it is refused, or may be gone."""

    value: dict[str, Any]
    read: Callable[[Path], Any]
    needed: tuple[str, ...]
    lines: bool = False


def measured(file: Path) -> Any:
    """What an earlier start has measured, which is not measured again."""

    def never() -> dict[str, Any]:
        raise AssertionError

    return EvaluationFolder(file.parents[1]).parts({"perturbation curve": never}, None)


def embeddings(file: Path) -> Any:
    about = np.frombuffer(file.read_bytes(), np.uint8)
    np.savez(file.with_suffix(".npz"), image=np.eye(2), caption=np.eye(2), about=about)
    found = Gallery.load(file.with_suffix(".npz"))
    return found.find_images(torch.eye(2)), found.find_captions(torch.eye(2))


def class_names(file: Path) -> Any:
    header = {
        "__metadata__": {"class_names": json.dumps(json.loads(file.read_text()).get("class_names"))}
    }
    text = json.dumps(header).encode()
    file.with_suffix(".safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return load_classes(file.with_suffix(".safetensors"))


FILES = {
    "config.json": File(
        {"model": "convnet", "classes": ["a", "b"], "image_size": [8, 8], "width": 2, "channels": 3,
         "left_out": {"data": ["x.png"]}, "training": {"lr": 0.1}},
        lambda file: from_pretrained(file.parent),
        ("model", "classes", "image_size", "width"),
    ),
    "clusters.json": File(
        {"model": "runs/a", "weights": "f0", "data": "digits", "examples": 9, "clusters": 2, "parameters": ["fc"]},
        lambda file: ClusterFolder(file.parent).description(),
        ("data", "examples", "parameters"),
    ),
    "parts/perturbation-curve.json": File(
        {"points": [{"step": 0.5, **SHARE}], "seconds": 0.1}, measured, ("points", "seconds")
    ),
    "metrics.jsonl": File(
        {"epoch": 1, "loss": 0.5, "accuracy": 0.5, "q": {"a": 0.5}, "concept_accuracy": {"a": None}},
        read_history, ("epoch", "loss"), lines=True,
    ),
    "variance.jsonl": File(
        {"step": 1, "estimator": "SG-B", "average_variance": 0.5, "standard_error": None},
        read_recording, ("step", "estimator", "average_variance"), lines=True,
    ),
    "table.jsonl": File(
        {"variant": "HRRL", "seed": 0, "source": {"accuracy": 1}, "targets": {"a": 0.5}, "history": [{"epoch": 1}]},
        _read, ("variant", "seed", "source", "targets", "history"), lines=True,
    ),
    "training.json": File(
        {"of": {"seed": 0}, "images": 9, "accuracy": 0.5, "worst_concept_accuracy": None, "mu": 0.1,
         "concept_accuracy": {"a": 0.5}, "seconds_per_epoch": 1.0, "processor_seconds_per_epoch": None,
         "svm": {"accuracy": 0.5}, "by_epoch": {"1": 0.5}, "steps": {"0.1": 0.5}},
        lambda file: Parts(file.parent).read("training", needs=NEEDED), ("of", *NEEDED),
    ),
    "about.json": File(
        {"similarity": "cosine", "weights": None, "source": {}, "names": ["a", "b"], "captions": ["c", "d"]},
        embeddings, ("similarity",),
    ),
    "features.json": File({"class_names": ["a", "b"]}, class_names, ()),
}  # fmt: skip
WRONG: list[Any] = [None, True, -1, 1.5, math.nan, 10**400, "<b>", "", [], [[]], {}, {"<b>": "x"}]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def with_leaf(value: Any, at: tuple[Any, ...], leaf: Any) -> Any:
    if not at:
        return leaf
    changed = value.copy()
    changed[at[0]] = with_leaf(value[at[0]], at[1:], leaf)
    return changed


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[str, Any], str]:
    """Why it is not read; "" where all that reading is for went well. Any other error is one of ours."""
    save_pretrained(ConvNet(2, width=2), tmp_path, FILES["config.json"].value)
    (
        tmp_path / "digests.json"
    ).unlink()  # of an older version, or whose files are as somebody wrote them

    def refusal(name: str, value: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value) + "\n" * FILES[name].lines)
        try:
            FILES[name].read(path)
        except ValueError as error:
            why = str(error)
        else:
            return ""
        assert why.startswith((str(path.with_suffix("")), f"{tmp_path} ")), why
        assert "\n" not in why and len(why.replace(str(tmp_path), "")) < 250
        return why

    return refusal


@pytest.mark.parametrize("name", FILES)
def test_every_field_of_every_type(name: str, refusal: Callable[[str, Any], str]) -> None:
    value = FILES[name].value
    assert refusal(name, value) == ""
    wrong = 0
    for at in places(value):
        for bad in WRONG:
            why = refusal(name, with_leaf(value, at, bad))
            # A size or a width that is another one does not fit the weights, and that is said of the folder.
            assert not why or str(at[0]) in why or "does not fit the model" in why, (at, bad, why)
            wrong += bool(why)
    assert wrong > 5 * len(value)


@pytest.mark.parametrize("name", FILES)
def test_a_field_that_is_gone(name: str, refusal: Callable[[str, Any], str]) -> None:
    value = FILES[name].value
    for field in value:
        why = refusal(name, {k: v for k, v in value.items() if k != field})
        assert bool(why) == (field in FILES[name].needed), (field, why)
        assert not why or field in why
    others: list[Any] = [[], "text", 1, None]
    for other in others:
        assert name == "features.json" or refusal(name, other)
    assert refusal(name, value | {"a newer field": [1]}) == "" or name == "about.json"


def test_a_command_names_the_file_and_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = FILES["config.json"].value
    save_pretrained(ConvNet(2, width=2), tmp_path, value)
    (tmp_path / "digests.json").unlink()
    words = [
        "extract",
        "--model",
        str(tmp_path),
        "--data",
        "digits",
        "--out",
        str(tmp_path / "f.npz"),
    ]
    for broken, told in (
        ({k: v for k, v in value.items() if k != "classes"}, "classes is missing"),
        (value | {"classes": {"a": 0}}, "classes must be a list, got {'a': 0}"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        status, _, stderr = run(capsys, *words)
        assert status == 1
        assert (
            f"hrrl extract: error: {tmp_path / 'config.json'} is not as it was written: {told}"
            in stderr
        )
