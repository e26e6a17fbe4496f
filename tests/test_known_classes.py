"""Weights alone, stored corruptions, features and runs that go on: whose classes are counted otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import run

from hrrl_ext import HRRLTrainer, load_model
from hrrl_ext.data import ArrayImages, ConceptMap, load_images, with_classes
from hrrl_ext.evaluation import evaluate
from hrrl_ext.evaluation.corruptions import write_corruptions
from hrrl_ext.models import ConvNet
from hrrl_ext.pretrained import save_pretrained
from hrrl_ext.transfer import (
    Features,
    Target,
    extract_features,
    load_classes,
    load_features,
    save_features,
)

CLASSES = [str(c) for c in range(12)]
AS_TEXT = sorted(CLASSES)  # 0, 1, 10, 11, 2, ...
FAST: dict[str, Any] = {
    "concepts": "classes", "tau": 0.0, "lam": None, "batch_size": 24, "width": 2, "crop_padding": 0,
    "device": "cpu", "progress": "off",
}  # fmt: skip


def images(classes: list[str], **more: Any) -> ArrayImages:
    """48 grey images, each class of a level, the same for any order of the classes."""
    level = torch.arange(48) % 12 * 20 + 10
    x = level.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    target = [classes.index(str(i % 12)) for i in range(48)]
    return ArrayImages(x, target, classes=classes, name="images", **more)


def knowing(classes: list[str]) -> ConvNet:
    """A network that tells all the classes apart: of its features one is a level, whose nearest counts."""
    model = ConvNet(12, width=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for stage in (model.stage1, model.stage2, model.stage3):
            stage[0].weight[0, 0, 1, 1] = 1
            stage[1].weight.fill_(1)
        model.stage1[1].bias.fill_(5)  # above 0 for every level, so that relu lets it pass
        level = extract_features(model, images(classes).subset(range(12))).features[:, 0]
        order = [int(name) for name in classes]
        model.fc.weight[:, 0] = 2 * level[order]
        model.fc.bias.copy_(-level[order].square())
    return model


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz and fewer.npz, whose classes are counted as text; a model that counts them by value."""
    folder = tmp_path_factory.mktemp("classes")
    data = images(AS_TEXT)
    x, label = data.images.permute(0, 2, 3, 1).numpy(), data.target.numpy()
    np.savez(folder / "data.npz", image=x, label=label, class_names=AS_TEXT)
    some = label != AS_TEXT.index("3")
    names = [name for name in AS_TEXT if name != "3"]
    number = np.array([names.index(name) if name in names else -1 for name in AS_TEXT])
    np.savez(folder / "fewer.npz", image=x[some], label=number[label[some]], class_names=names)
    config = {"model": "convnet", "classes": CLASSES, "image_size": 8, "width": 2}
    save_pretrained(knowing(CLASSES), folder / "model", config)
    torch.save(knowing(AS_TEXT).state_dict(), folder / "as_text.pt")
    (folder / "as_text.txt").write_text("\n".join(AS_TEXT))
    return folder


ALONE = ["--arch", "convnet", "--width", "2", "--weights"]


def evaluated(
    capsys: pytest.CaptureFixture[str], out: Path, *words: str | Path
) -> tuple[dict[str, Any], str]:
    quick = ["--attacks", "none", "--corruptions", "none", "--steps", "0", "--out", out]
    status, _, stderr = run(capsys, "evaluate", *words, *quick)
    assert status == 0, stderr
    (report,) = out.glob("*/report.json")
    return json.loads(report.read_text()), stderr


def test_weights_alone(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the data, and that is said; by a file of names; by the names that lie with them."""
    data = ["--data", at / "data.npz"]
    said = "weights alone name no classes; they are taken in the order of the data, '0', '1', '10'"
    ways: list[tuple[list[str | Path], bool]] = [
        ([at / "model"], False),
        ([*ALONE, at / "as_text.pt"], True),
        ([*ALONE, at / "as_text.pt", "--classes", at / "as_text.txt"], False),
        ([*ALONE, at / "model" / "model.safetensors"], False),
        ([*ALONE, at / "model"], False),
    ]
    for number, (words, is_said) in enumerate(ways):
        report, stderr = evaluated(capsys, tmp_path / str(number), *words, *data)
        assert report["accuracy"]["accuracy"] == 1
        assert (said in stderr) == is_said


def test_some_of_the_classes(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a test folder that lacks one: the logits are still twelve. Classes of the report are the data's."""
    data = ["--data", at / "fewer.npz"]
    ways: list[list[str | Path]] = [
        [at / "model"],
        [*ALONE, at / "as_text.pt", "--classes", at / "as_text.txt"],
    ]
    found = [
        evaluated(capsys, tmp_path / str(number), *words, *data)[0]
        for number, words in enumerate(ways)
    ]
    for report in found:
        assert report["accuracy"]["accuracy"] == 1
        assert {c["name"] for c in report["accuracy"]["concepts"]} == {*CLASSES} - {"3"}
    status, _, stderr = run(
        capsys, "evaluate", *ALONE, at / "as_text.pt", *data, "--out", tmp_path / "x"
    )
    assert status == 1
    assert "has 12 classes, expected 11" in stderr
    assert "or the names of all of them, in their order" in stderr


@pytest.mark.parametrize("order", [CLASSES, AS_TEXT])
def test_stored_corruptions(order: list[str], tmp_path: Path) -> None:
    """Their labels count as the data do, and are matched with them; their size becomes the data's."""
    data = images(order)
    write_corruptions(data.resized(12), tmp_path, kinds=["pixelate"])  # leaves a level as it is
    with pytest.warns(UserWarning, match="corrupted images of 12 x 12 pixels are resized to 8 x 8"):
        report = evaluate(
            knowing(CLASSES), data, classes=CLASSES, attacks=[], corruptions=["pixelate"], steps=[0.0],
            corruption_folder=tmp_path,
        )  # fmt: skip
    assert report.corruptions is not None
    accuracies = [s["accuracy"] for s in report.corruptions["kinds"][0]["severities"]]
    assert [report.accuracy["accuracy"], *accuracies] == [1] * 6


def test_training_images_are_counted_by_name() -> None:
    """N_k of classes in another order, and of one that the data lack."""
    fewer = images(AS_TEXT).subset([i for i in range(48) if i % 12 != 3])
    data = with_classes(fewer, [name for name in AS_TEXT if name != "3"])
    train = images(CLASSES).subset([i for i in range(48) for _ in range(1 + i % 12)])
    report = evaluate(
        knowing(CLASSES),
        data,
        classes=CLASSES,
        train=train,
        attacks=[],
        corruptions=[],
        steps=[0.0],
    )
    count = {c["name"]: c["train_count"] for c in report.accuracy["concepts"]}
    assert count == {name: 4 * (1 + int(name)) for name in CLASSES if name != "3"}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_probe(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features of three classes, one-hot; those of the test file are two of them, counted otherwise."""
    eye = torch.eye(3).repeat(4, 1)
    train, test = tmp_path / f"train{suffix}", tmp_path / f"test{suffix}"
    save_features(train, Features(eye, torch.arange(12) % 3), classes=["cat", "dog", "eel"])
    seen = torch.tensor([2, 1, 2, 1])  # eel, dog
    save_features(test, Features(eye[seen], torch.tensor([1, 0, 1, 0])), classes=["dog", "eel"])
    assert load_classes(test) == ["dog", "eel"]
    assert torch.equal(load_features(test).labels, torch.tensor([1, 0, 1, 0]))
    words = ["probe", "--train", train, "--test", test, "--method", "knn", "--k", "1"]
    status, stdout, stderr = run(capsys, *words)
    assert status == 0, stderr
    assert "accuracy               1.0000" in stdout
    save_features(test, Features(eye[seen], torch.tensor([1, 0, 1, 0])), classes=["dog", "fox"])
    status, _, stderr = run(capsys, *words)
    assert status == 1
    assert "'fox' is none of those of" in stderr
    save_features(test, Features(eye[seen], seen))  # without names: by their numbers
    assert load_classes(test) is None
    assert "accuracy               1.0000" in run(capsys, *words)[1]


def test_extraction_keeps_the_names(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".npz", ".safetensors"):
        out = tmp_path / f"features{suffix}"
        words = ["extract", "--model", at / "model", "--data", at / "fewer.npz", "--out", out]
        assert run(capsys, *words)[0] == 0
        assert load_classes(out) == [name for name in AS_TEXT if name != "3"]
        assert set(load_features(out).labels.tolist()) == set(range(11))
        assert len(load_features(out).features) == 44


def test_targets_of_transfer() -> None:
    target = Target("task", images(CLASSES), images(AS_TEXT))
    assert target.test.classes == CLASSES
    assert torch.equal(target.test.target, target.train.target)


def test_a_run_goes_on_with_its_own_order(tmp_path: Path) -> None:
    """As of data whose classes were counted as text, before the library sorted numbers by value."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    settings = FAST | {"epochs": 2, "validation": images(CLASSES)}
    HRRLTrainer("convnet", data=images(AS_TEXT), out=whole, **settings).fit()
    HRRLTrainer("convnet", data=images(AS_TEXT), out=parted, **settings).fit(until=1)
    settings["validation"] = images(AS_TEXT)
    HRRLTrainer("convnet", data=images(CLASSES), out=parted, resume=True, **settings).fit()
    ours, theirs = (load_model(out).state_dict() for out in (parted, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((parted / "config.json").read_text())["classes"] == AS_TEXT
    rows = [
        [json.loads(line)["accuracy"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (parted, whole)
    ]
    assert rows[0] == rows[1]
    newest = max((whole / "checkpoints").iterdir())
    for init in (newest, newest / "model.safetensors"):  # the run that it is of says the order
        begun = HRRLTrainer("convnet", data=images(CLASSES), init=init, **FAST, epochs=1)
        assert begun.images.classes == AS_TEXT


def test_concepts_by_the_numbers_of_the_data(at: Path) -> None:
    """Who writes a map by index counts as the data do, whatever the weights that training begins with."""
    of_class = ["low" if int(name) < 6 else "high" for name in AS_TEXT]
    trainer = HRRLTrainer(
        "convnet", data=images(AS_TEXT), init=at / "model", epochs=1,
        **FAST | {"concepts": ConceptMap.from_names(of_class)},
    )  # fmt: skip
    assert trainer.images.classes == CLASSES
    names = [trainer.concept_names[k] for k in trainer.batches.concept.tolist()]
    assert names == ["low" if i % 12 < 6 else "high" for i in range(48)]
    weights = load_file(at / "model" / "model.safetensors")
    assert torch.equal(trainer.model.state_dict()["fc.weight"].cpu(), weights["fc.weight"])


def test_the_folder_of_a_run_knows_them(at: Path) -> None:
    """In Python: the same data under either order give the same labels."""
    data = with_classes(load_images(str(at / "data.npz")), CLASSES)
    assert torch.equal(data.target, images(CLASSES).target)
