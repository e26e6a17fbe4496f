"""What a run leaves, and everything that it is handed to: fine-tuning, training, evaluation, plain networks."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_moco import DIGITS, OTHERS, SETTINGS
from torch import nn

import hrrl_ext
from hrrl_ext import HRRLTrainer, URRLTrainer, finetune, load_model
from hrrl_ext.models import build_model
from hrrl_ext.pretrained import from_pretrained, load_weights
from hrrl_ext.training import CheckpointError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[URRLTrainer, Path]:
    out = tmp_path_factory.mktemp("run") / "urrl"
    made = URRLTrainer("convnet", **SETTINGS, validation=OTHERS, out=out, ema=0.5)
    made.fit()
    return made, out


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def test_the_network_alone_is_what_is_opened(run: tuple[URRLTrainer, Path]) -> None:
    made, out = run
    backbone = made.encoder.backbone
    assert same(load_model(out), backbone)
    plain = build_model("convnet", num_classes=10, image_size=8, width=4)
    assert load_model(out, plain) is plain and same(plain, backbone)
    average = load_model(out, which="ema")
    assert made.loop.move.average is not None
    assert same(average, made.loop.move.average.module.backbone) and not same(average, backbone)
    best = max(made.history, key=lambda row: row["knn_accuracy"])
    assert json.loads((out / "best/config.json").read_text())["best"]["epoch"] == best["epoch"]
    assert (set(load_file(out / "best/model.safetensors"))) == set(plain.state_dict())
    assert same(load_model(out, which="best"), from_pretrained(out / "best"))


def test_a_result_is_the_network_and_its_average(run: tuple[URRLTrainer, Path]) -> None:
    made, _ = run
    result = made.fit()  # through: it trains no more
    assert result.model is made.encoder.backbone
    assert made.loop.move.average is not None
    assert result.ema is made.loop.move.average.module.backbone


def test_a_checkpoint_as_a_state_dict(run: tuple[URRLTrainer, Path]) -> None:
    made, out = run
    plain = build_model("convnet", num_classes=10, image_size=8, width=4)
    newest = sorted((out / "checkpoints").iterdir())[-1]
    assert load_weights(plain, newest / "model.safetensors").complete
    assert same(plain, made.encoder.backbone)
    other = build_model("convnet", num_classes=10, image_size=8, width=4)
    other.load_state_dict(load_file(out / "best/model.safetensors"))  # as anybody's loop does
    assert same(other, load_model(out, which="best"))


def test_it_is_fine_tuned(run: tuple[URRLTrainer, Path], tmp_path: Path) -> None:
    _, out = run
    common: dict[str, Any] = {
        "validation": OTHERS, "epochs": 1, "crop_padding": 1, "progress": "off", "device": "cpu", "lr": 1e-12,
    }  # fmt: skip
    for start, name in ((out, "a"), (load_model(out), "b")):
        result = finetune(start, DIGITS, method="similarity", out=tmp_path / name, **common)
        weights = zip(result.model.parameters(), load_model(out).parameters(), strict=True)
        assert all(torch.allclose(a, b) for a, b in list(weights)[:-2])
    assert load_model(tmp_path / "a").fc.out_features == 10


@pytest.mark.parametrize("folder", ["best", ""], ids=["best", "the run"])
def test_it_begins_a_run_of_hrrl_and_one_of_its_own(
    run: tuple[URRLTrainer, Path], folder: str
) -> None:
    """The last layer too: it is the probe's, of the same classes. Of the run itself it is the last state."""
    made, out = run
    common: dict[str, Any] = {"width": 4, "device": "cpu", "progress": "off"}
    begin = load_model(out, which=folder or "last")
    told = (
        contextlib.nullcontext() if folder else pytest.warns(match="behind 'backbone.'; 4 beside")
    )
    with told:
        hrrl = HRRLTrainer("convnet", data=DIGITS, concepts="classes", init=out / folder, **common)
        again = URRLTrainer("convnet", **SETTINGS, init=out / folder)
    assert same(hrrl.model, begin)
    assert same(again.encoder.backbone, begin)
    assert not same(again.encoder.head, made.encoder.head)


def test_it_is_evaluated(run: tuple[URRLTrainer, Path]) -> None:
    made, out = run
    report = hrrl_ext.evaluate(load_model(out), OTHERS, attacks=(), corruptions=("none",))
    measured = made.recipe.evaluate(made.encoder)
    assert report.accuracy["accuracy"] == pytest.approx(measured["accuracy"])


def test_a_checkpoint_of_another_network_is_refused(run: tuple[URRLTrainer, Path]) -> None:
    _, out = run
    other = build_model("convnet", num_classes=10, image_size=8, width=8)
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(CheckpointError, match="none of the checkpoints"),
    ):
        load_model(out, other)
    more = build_model("convnet", num_classes=10, image_size=8, width=4)
    more.register_buffer("extra", torch.zeros(1))
    with (
        pytest.warns(UserWarning, match=r"backbone has other tensors: backbone\.extra"),
        pytest.raises(CheckpointError),
    ):
        load_model(out, more)


def test_files_and_refusals(run: tuple[URRLTrainer, Path], tmp_path: Path) -> None:
    _, out = run
    config = json.loads((out / "config.json").read_text())
    assert config["part"] == "backbone" and config["model"] == "convnet"
    assert config["views"] == "Crops(padding=1, seed=0)"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "spread", "rank_me", "knn_accuracy", "accuracy"} <= rows[-1].keys()
    assert json.loads((out / "results.json").read_text())["selected_by"] == "knn_accuracy"
    with pytest.raises(FileExistsError):
        URRLTrainer("convnet", **SETTINGS, out=out)
    with pytest.raises(ValueError, match="temperature"):
        URRLTrainer(
            "convnet", **(SETTINGS | {"temperature": 0.3}), validation=OTHERS, out=out, resume=True, ema=0.5
        )  # fmt: skip
    given = {"validation": OTHERS.subset(range(9)), "out": out, "resume": True}
    with pytest.raises(ValueError, match=r"\(validation_examples, validation_labels, ema differ\)"):
        URRLTrainer("convnet", **(SETTINGS | given))
    with pytest.raises(ValueError, match="init begins a new run and resume continues one"):
        URRLTrainer("convnet", **SETTINGS, out=tmp_path, resume=True, init=out / "best")


def test_after_step_is_called(tmp_path: Path) -> None:
    seen: list[int] = []
    made = URRLTrainer(
        "convnet", **(SETTINGS | {"epochs": 1}), after_step=lambda one, step: seen.append(step)
    )
    made.fit()
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_images_without_labels(tmp_path: Path) -> None:
    """Loss, spread and RankMe are measured, nothing by a label; and it is fine-tuned as any other."""
    images = DIGITS.with_images(DIGITS.images, torch.zeros_like(DIGITS.target))
    images.classes = ["image"]
    settings = SETTINGS | {"data": images, "epochs": 1}
    row = URRLTrainer("convnet", **settings, out=tmp_path / "run").fit().last
    assert {"loss", "spread", "rank_me"} <= row.keys()
    assert not {"train_accuracy", "accuracy", "knn_accuracy"} & row.keys()
    assert load_model(tmp_path / "run").fc.out_features == 1
    with pytest.raises(
        ValueError, match=r"measured by the labels of data, and .* has one class alone"
    ):
        URRLTrainer("convnet", **settings, validation=OTHERS)
