"""hrrl extract of any layer, hrrl probe by neighbours and concepts, hrrl finetune from every start."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import run

from hrrl_ext import HRRLTrainer, load_model
from hrrl_ext.transfer import load_features

FAST = [
    "--data", "digits", "--epochs", "2", "--batch_size", "128", "--crop_padding", "1", "--device", "cpu",
    "--progress", "off",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("source") / "run"
    HRRLTrainer(
        data="digits", validation="digits", concepts="classes", tau=0.0, lam=None, epochs=1, width=4,
        batch_size=128, lr=0.05, crop_padding=1, out=out, device="cpu", progress="off",
    ).fit()  # fmt: skip
    return out


def test_from_a_run_to_a_finetuned_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = [source, *FAST, "--method", "l2sp:alpha=0.1", "--validation", "digits", "--out", out]
    status, stdout, stderr = run(capsys, "finetune", *options)
    assert (status, stdout) == (0, f"saved {out}\n"), stderr
    named = ("--classifier", "fc", "--data", "digits", "--out", tmp_path / "named.npz")
    assert run(capsys, "extract", "--model", source, *named)[0] == 0
    status, _, stderr = run(capsys, "extract", "--model", source, *named, "--layer", "layer1")
    assert status == 1 and "give one of the two" in stderr
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.001])
    assert (out / "plots" / "error.png").is_file()
    assert load_model(out).fc.out_features == 10
    config = json.loads((out / "config.json").read_text())
    assert config["penalty"] == "L2SP(alpha=0.1, beta=0.01, classifier='fc')"
    assert config["training"]["weight_decay"] == 0


def test_from_a_bare_state_dict(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(load_model(source).state_dict(), weights)
    bare = ["--arch", "resnet18", "--weights", weights, "--width", "4"]
    status, _, stderr = run(capsys, "finetune", *bare, *FAST, "--out", tmp_path / "bare")
    assert status == 0, stderr
    status, _, stderr = run(capsys, "finetune", source, *FAST, "--out", tmp_path / "run")
    assert status == 0, stderr
    ours, theirs = (load_model(tmp_path / name).state_dict() for name in ("bare", "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    options = ["--data", "digits", "--split", "test", "--layer", "layer2"]
    for model, out in ((bare, "bare.npz"), (["--model", source], "run.safetensors")):
        status, stdout, stderr = run(capsys, "extract", *model, *options, "--out", tmp_path / out)
        assert (status, stdout) == (0, f"saved {tmp_path / out}: 450 features of 8 numbers\n"), (
            stderr
        )
    npz, safetensors = (load_features(tmp_path / f) for f in ("bare.npz", "run.safetensors"))
    assert torch.equal(npz.features, safetensors.features)


def test_one_of_several_networks_in_a_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever weights are taken: --part of --weights, --init_part of --init."""
    one = load_model(source).state_dict()
    other = {name: value.flip(0) if value.ndim else value for name, value in one.items()}
    file = tmp_path / "two.pt"
    torch.save({"one": one, "other": other}, file)
    torch.save(other, tmp_path / "other.pt")
    bare = ["--arch", "resnet18", "--width", "4", "--data", "digits", "--split", "test"]
    status, _, stderr = run(
        capsys, "extract", *bare, "--weights", file, "--out", tmp_path / "x.npz"
    )
    assert status == 1 and "fit the model equally ('one'; 'other')" in stderr
    assert "--part or --init_part" in stderr
    for name, weights in (("part", [file, "--part", "other"]), ("alone", [tmp_path / "other.pt"])):
        run(capsys, "extract", *bare, "--weights", *weights, "--out", tmp_path / f"{name}.npz")
    part, alone = (load_features(tmp_path / f"{n}.npz").features for n in ("part", "alone"))
    assert torch.equal(part, alone)
    settings: dict[str, Any] = {
        "data": "digits", "concepts": "classes", "width": 4, "device": "cpu", "progress": "off",
    }  # fmt: skip
    begun = HRRLTrainer(init=file, init_part="other", **settings)
    assert torch.equal(begun.model.conv1.weight, other["conv1.weight"])
    with pytest.raises(ValueError, match="says which weights of init; give init"):
        HRRLTrainer(init_part="other", **settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data digits --concepts classes --out x --init_part ema", "init_part='ema' says which"),
        ("pretrain --data digits --views moco --out x --init_part ema", "init_part='ema' says which"),
        ("train-retrieval --data emoji --out x --init_part ema", "init_part='ema' says which"),
        ("extract --model RUN --data digits --out x --part ema", "part 'ema' is one of a file of --weights"),
        ("finetune RUN --data digits --out x --part ema", "part 'ema' is one of a file of --weights"),
        ("evaluate RUN --data digits --out x --part ema", "part 'ema' is one of a file of --weights"),
    ],
)  # fmt: skip
def test_a_part_of_nothing(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, _, stderr = run(capsys, *words.split())
    assert (status, message in stderr) == (1, True), stderr


def test_neighbours_and_concepts(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        out = tmp_path / f"{split}.npz"
        run(
            capsys, "extract", "--model", source, "--data", "digits", "--split", split, "--out", out
        )
    (tmp_path / "concepts.json").write_text(
        json.dumps({str(c): "round" if c in (0, 6, 8, 9) else "other" for c in range(10)})
    )
    probe = ["probe", "--train", tmp_path / "train.npz", "--test", tmp_path / "test.npz"]
    status, stdout, stderr = run(
        capsys, *probe, "--method", "knn", "--k", "5", "--concepts", tmp_path / "concepts.json",
        "--out", tmp_path / "result.json",
    )  # fmt: skip
    assert status == 0, stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["k"] == 5
    assert result["worst_concept_accuracy"] == min(result["concept_accuracy"].values())
    assert f"concept_accuracy/round {result['concept_accuracy']['round']:.4f}" in stdout
    streamed = (*probe, "--solver", "streamed", "--device", "cpu")
    accuracies = []
    for svm in (probe, streamed):
        status, stdout, stderr = run(capsys, *svm, "--C", "1")
        accuracies.append(re.findall(r"^accuracy +(\S+)", stdout))
        assert (status, "fit 1 of 1, C = 1" in stderr) == (0, svm is streamed)
    assert accuracies[0] == accuracies[1] != []
    sgd = (
        *probe, "--method", "sgd", "--lr", "3", "--epochs", "20", "--normalise", "none", "--momentum",
        "0.8", "--milestones", "10", "15",
    )  # fmt: skip
    status, stdout, _ = run(capsys, *sgd)
    assert status == 0 and re.search(r"lr +3.0000\nepochs +20\nloss +\d", stdout)
    status, _, stderr = run(capsys, *probe, "--k", "5")
    assert (status, stderr.count("\n")) == (1, 1)
    assert "svm's setting 'k' is not known" in stderr
    for option, value in (("solver", "streamed"), ("device", "cpu"), ("max_iter", "9")):
        status, _, stderr = run(capsys, *probe, "--method", "sgd", f"--{option}", value)
        assert status == 1 and f"sgd's setting '{option}' is not known" in stderr
    status, _, stderr = run(capsys, *probe, "--C", "1", "--max_iter", "1")
    assert status == 0 and "did not converge in 1 iterations" in stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["/no/run", "--out", "x"], 1, "/no/run holds no model"),
        (["--out", "x"], 1, "give the folder of a run or a model, or --arch and --weights"),
        (["RUN", "--arch", "resnet18", "--out", "x"], 1, "give the folder of a run or a model, or"),
        (["--arch", "resnet18", "--out", "x"], 1, "--arch and --weights"),
        (
            ["--arch", "resnet18", "--weights", "WEIGHTS", "--out", "x"],
            1,
            "is no state dict of resnet18",
        ),
        (["--arch", "resnet81", "--weights", "WEIGHTS", "--out", "x"], 1, "resnet18"),
        (
            ["RUN", "--method", "l2", "--out", "x"],
            1,
            "method 'l2' is not known; did you mean 'l2sp'?",
        ),
        (
            ["RUN", "--method", "similarity:w=1", "--out", "x"],
            1,
            "setting 'w' is not known",
        ),
        (["RUN", "--lr", "0", "--out", "x"], 1, "lr must be positive, got 0.0"),
        (["RUN", "--lr", "fast", "--out", "x"], 2, "lr"),
        (["RUN", "--image_size", "80", "--out", "x"], 1, "was built for images of 8 pixels"),
        (["RUN", "--methd", "plain", "--out", "x"], 2, "did you mean '--method'"),
        (["RUN", "--out", "x", "--resume"], 1, "x holds no run"),
        (["RUN", "--classifier", "x"], 2, "out"),
    ],
)
def test_errors_are_one_line(
    source: Path, arguments: list[str], status: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"RUN": source, "WEIGHTS": source / "best" / "model.safetensors"}
    given = [names.get(argument, argument) for argument in arguments]
    got, stdout, stderr = run(capsys, "finetune", *given, "--data", "digits")
    assert got == status, stderr
    assert message in stderr
    assert stderr.count("\n") == 1
    assert "Traceback" not in stdout + stderr
    assert list(tmp_path.iterdir()) == []
