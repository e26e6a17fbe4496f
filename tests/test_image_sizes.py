"""What a run was trained on is recorded whole, height and width, and every later command takes it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import run
from torch import nn

from hrrl_ext import HRRLTrainer, URRLTrainer
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.data.resize import ImageSize, sides, size_of
from hrrl_ext.models import ConvNet, ResNet18, build_model
from hrrl_ext.retrieval import build_joint_embedding, load_joint_embedding, save_joint_embedding
from hrrl_ext.retrieval.words import Words
from hrrl_ext.transfer import finetune, load_features

HEIGHT, WIDTH = 6, 10


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw where matplotlib is, which takes most of their time."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """Sizes of the images that a convnet was shown."""
    sizes: set[tuple[int, ...]] = set()
    forward = nn.Sequential.forward

    def watched(model: nn.Sequential, x: Any) -> Any:
        if isinstance(model, ConvNet):
            sizes.add(tuple(x.shape[2:]))
        return forward(model, x)

    monkeypatch.setattr(nn.Sequential, "forward", watched)
    return sizes


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wide.npz and square.npz, and a run on the first."""
    folder = tmp_path_factory.mktemp("sizes")
    label = np.arange(24) % 3
    np.savez(folder / "wide.npz", image=pixels(HEIGHT, WIDTH), label=label)
    np.savez(folder / "square.npz", image=pixels(8, 8), label=label)
    HRRLTrainer(
        "convnet", data=str(folder / "wide.npz"), validation=str(folder / "wide.npz"), concepts="classes",
        tau=0.0, lam=None, epochs=1, width=2, batch_size=12, out=folder / "run", device="cpu", progress="off",
    ).fit()  # fmt: skip
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


FAST = ["--epochs", "1", "--batch_size", "12", "--progress", "off", "--device", "cpu"]
COMMANDS: dict[str, Callable[[Path, Path, Path], list[str | Path]]] = {
    "cluster": lambda m, d, out: ["cluster", m, "--data", d, "--clusters", "2", "--rounds", "1", "--out", out],
    "variance": lambda m, d, out: ["variance", m, "--data", d, "--batch_size", "4", "--num_batches", "2"],
    "evaluate": lambda m, d, out: [
        "evaluate", m, "--data", d, "--corruptions", "none", "--attacks", "linf:1/255", "--attack_points", "2",
        "--steps", "0", "--out", out,
    ],
    "extract": lambda m, d, out: ["extract", "--model", m, "--data", d, "--out", out.with_suffix(".npz")],
    "finetune": lambda m, d, out: ["finetune", m, "--data", d, "--concepts", "classes", *FAST, "--out", out],
}  # fmt: skip


def test_a_run_records_height_and_width(at: Path) -> None:
    assert config_of(at / "run")["image_size"] == [HEIGHT, WIDTH]
    assert config_of(at / "run" / "best")["image_size"] == [HEIGHT, WIDTH]


@pytest.mark.parametrize("model", ["run", "run/best"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_the_size_of_the_model(
    command: str, model: str, at: Path, tmp_path: Path, seen: set[tuple[int, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of images of that size without a word; others are resized, and that is said."""
    for data in ("wide", "square"):
        words = COMMANDS[command](at / model, at / f"{data}.npz", tmp_path / data)
        status, _, stderr = run(capsys, *words)
        assert status == 0, stderr
        said = f"{data}: images of 8 x 8 pixels are resized to 6 x 10, the size of {at / model}, and what"
        assert (said in stderr) == (data == "square")
    assert seen == {(HEIGHT, WIDTH)}
    status, _, stderr = run(
        capsys, *COMMANDS[command](at / model, at / "square.npz", tmp_path / "own"), "--image_size", "5x7"
    )  # fmt: skip
    assert status == 0, stderr
    assert "resized" not in stderr
    assert seen == {(HEIGHT, WIDTH), (5, 7)}


def test_what_a_command_writes(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, file, places in (
        ("cluster", "clusters.json", ["image_size"]),
        ("evaluate", "run/report.json", ["about", "image_size"]),
        ("finetune", "config.json", ["image_size"]),
    ):
        out = tmp_path / command
        assert run(capsys, *COMMANDS[command](at / "run", at / "wide.npz", out))[0] == 0
        found = json.loads((out / file).read_text())
        for place in places:
            found = found[place]
        assert found == [HEIGHT, WIDTH]


def test_features_are_those_of_the_model_at_its_size(
    at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, size in (("wide.npz", []), ("square.npz", ["--image_size", f"{HEIGHT}x{WIDTH}"])):
        words = ["extract", "--model", at / "run", "--data", at / data, "--out"]
        assert run(capsys, *words, tmp_path / "given.npz", *size)[0] == 0
        assert run(capsys, *words, tmp_path / "model.npz")[0] == 0
        given, of_model = (load_features(tmp_path / f"{n}.npz") for n in ("given", "model"))
        assert torch.equal(given.features, of_model.features)


def test_files_are_opened_at_the_size_of_the_model(
    at: Path, tmp_path: Path, seen: set[tuple[int, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the run began with them: --image_size 6x10, in YAML too."""
    image = pytest.importorskip("PIL.Image")
    for c in range(3):
        (tmp_path / "files" / str(c)).mkdir(parents=True)
        for i, x in enumerate(pixels(9, 11)[8 * c : 8 * c + 8]):
            image.fromarray(x).save(tmp_path / "files" / str(c) / f"{i}.png")
    yaml = tmp_path / "size.yaml"
    yaml.write_text("image_size: [6, 10]\n")
    for size in (["--image_size", "6x10"], ["--config", yaml]):
        out = tmp_path / str(size[0]).strip("-")
        status, _, stderr = run(
            capsys, "train", "--model", "convnet", "--width", "2", "--data", tmp_path / "files", "--concepts",
            "classes", "--tau", "0", "--lam", "null", *size, *FAST, "--out", out,
        )  # fmt: skip
        assert status == 0, stderr
        assert config_of(out)["image_size"] == [6, 10]
    for command in COMMANDS:
        status, _, stderr = run(
            capsys, *COMMANDS[command](out, tmp_path / "files", tmp_path / command)
        )
        assert status == 0, stderr
        assert "resized" not in stderr  # files have no size of their own
    assert seen == {(6, 10)}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("6x", "must be pixels: a side, such as 224, or height and width, such as 16x48, got '6x'"),
        ("x", "or height and width, such as 16x48, got 'x'"),
        ("0", "image_size must be at least 1, got 0"),
        ("4x0", r"image_size must be at least 1, got [4, 0]"),
    ],
)
@pytest.mark.parametrize("command", ["cluster", "train"])
def test_a_size_that_is_none(
    command: str, size: str, message: str, at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    words = COMMANDS["cluster"](at / "run", at / "wide.npz", tmp_path / "x")
    if command == "train":
        words = ["train", "--data", at / "wide.npz", "--out", tmp_path / "x"]
    status, _, stderr = run(capsys, *words, "--image_size", size)
    assert status in (1, 2)
    assert message in stderr
    assert stderr.count("\n") == 1


def test_finetuning_in_python(at: Path) -> None:
    """A folder's size; a module's images keep their own."""
    square = str(at / "square.npz")
    quick: dict[str, Any] = {"epochs": 1, "batch_size": 12, "device": "cpu", "progress": "off"}
    with pytest.warns(
        UserWarning, match="images of 8 x 8 pixels are resized to 6 x 10, the size of"
    ):
        finetune(at / "run", square, out=at / "tuned", **quick)
    assert config_of(at / "tuned")["image_size"] == [6, 10]
    finetune(ConvNet(3, width=2), square, out=at / "module", **quick)
    assert config_of(at / "module")["image_size"] == 8


def test_pretraining_and_joint_embeddings(at: Path, tmp_path: Path) -> None:
    URRLTrainer(
        "convnet", data=str(at / "wide.npz"), epochs=1, width=2, batch_size=12, dim=4, queue=24, norm_groups=1,
        out=tmp_path / "pretrained", device="cpu", progress="off",
    ).fit()  # fmt: skip
    assert config_of(tmp_path / "pretrained")["image_size"] == [HEIGHT, WIDTH]
    size = [HEIGHT, WIDTH]
    words = Words.of(["a cat"], min_count=1)
    model = build_joint_embedding(
        "convnet", words, image_size=size, width=2, word_dim=2, text_width=4, dim=3
    )
    save_joint_embedding(model, tmp_path / "joint")
    assert load_joint_embedding(tmp_path / "joint").built_as["image_size"] == size


@pytest.mark.parametrize(
    ("size", "stem"),
    [(64, 3), ([64, 200], 3), ((200, 64), 3), (65, 7), ([65, 200], 7)],
)
def test_the_stem_is_that_of_the_shorter_side(size: ImageSize, stem: int) -> None:
    model = build_model("resnet18", num_classes=2, image_size=size, width=1)
    assert isinstance(model, ResNet18)
    assert model.conv1.kernel_size == (stem, stem)


def test_sizes() -> None:
    assert [size_of((3, 5, 5)), size_of((5, 7))] == [5, [5, 7]]
    assert [sides(5), sides((5, 7)), sides([7, 5])] == [(5, 5), (5, 7), (7, 5)]
    for wrong in (5.0, True, "5", (5,), (5, 7, 3), (5, 7.0), (True, 5), None):
        with pytest.raises(
            TypeError, match=r"side of a square in pixels, or \(height, width\), got"
        ):
            sides(wrong)
    images = ArrayImages(pixels(4, 4), [0] * 24)
    assert load_images(images, image_size=(2, 3)).image_shape == (3, 2, 3)
