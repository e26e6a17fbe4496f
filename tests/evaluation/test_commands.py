"""hrrl evaluate and hrrl report as a user runs them: every kind of checkpoint, going on, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stand_ins
import torch
from test_cli import run
from test_evaluate import network

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.evaluation import Report, predict
from hrrl_ext.pretrained import save_pretrained
from hrrl_ext.training import load_model

CONFIG = {"model": "resnet18", "classes": [str(c) for c in range(10)], "image_size": 8, "width": 2}
FEW = [
    "--points",
    "60",
    "--attack_points",
    "10",
    "--corruption_points",
    "10",
    "--attacks",
    "linf:4/255",
]
WEIGHTS = ["--arch", "resnet18", "--width", "2"]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return stand_ins.install(monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a model saved alone, and files of weights of it in three layouts."""
    folder = tmp_path_factory.mktemp("models")
    HRRLTrainer(
        data=load_images("digits").subset(range(64)), concepts="classes", epochs=1, batch_size=32,
        width=2, crop_padding=1, flip=False, progress="off", out=folder / "run",
    ).fit()  # fmt: skip
    model = network()
    save_pretrained(model, folder / "alone", CONFIG)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("normalise")}
    torch.save(state, folder / "torchvision.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "wrapped.pt")
    return folder


def test_every_kind_of_checkpoint(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, stdout, stderr = run(
        capsys, "evaluate", models / "run", models / "alone", *WEIGHTS, "--weights",
        models / "torchvision.pt", models / "wrapped.pt", "--data", "digits", "--train_data", "digits",
        *FEW, "--out", out,
    )  # fmt: skip
    assert status == 0, stderr
    assert stdout.endswith(f"saved {out / 'report.html'}, and a report.json of each model\n")
    names = ["run", "alone", "torchvision.pt", "wrapped.pt"]
    reports = {name: Report.from_json(out / name) for name in names}
    for name, report in reports.items():
        assert report.name == name
        assert f"{name}: digits-test, 60 images" in stdout
        assert f"{name}  7/7  attack linf:4/255" in stderr
    alone, *others = (reports[name].accuracy for name in names[1:])
    for other in others:  # the same weights
        assert {**other, "seconds": 0} == {**alone, "seconds": 0}
    assert alone["train_weighted"] is not None
    correct = predict(load_model(models / "run"), load_images("digits", split="test")).correct
    everything = Report.from_json(out / "run")
    assert everything.accuracy["count"] == 60 < len(correct)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Evaluation of run, alone, torchvision.pt, wrapped.pt" in page

    status, stdout, stderr = run(
        capsys, "report", out / "alone", out / "run", "--out", tmp_path / "two.html"
    )
    assert (status, stderr) == (0, "")
    assert "Evaluation of alone, run" in (tmp_path / "two.html").read_text(encoding="utf-8")
    status, stdout, _ = run(capsys, "report", out, "--out", tmp_path / "all.html")
    assert stdout.count("digits-test, 60 images") == 4


def test_the_test_split_with_concepts_from_a_file(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.json").write_text(
        json.dumps({str(c): "round" if c in (0, 6, 8, 9) else "other" for c in range(10)})
    )
    status, stdout, stderr = run(
        capsys, "evaluate", models / "alone", "--data", "digits", "--attacks", "none",
        "--corruptions", "none", "--concepts", tmp_path / "shapes.json", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, stderr
    report = Report.from_json(tmp_path / "out" / "alone")
    assert {c["name"] for c in report.accuracy["concepts"]} == {"round", "other"}
    images = load_images("digits", split="test")
    assert report.accuracy["correct"] == int(predict(network(), images).correct.sum())
    assert report.warnings == []
    assert "warning" not in stdout


def test_it_goes_on(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["evaluate", models / "run", models / "alone", "--data", "digits", *FEW, "--out", out]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        import sys

        patch.setattr(sys.modules["hrrl_ext.evaluation.attacks"], "evaluate_attack", interrupt)
        status, _, stderr = run(capsys, *command)
    assert status == 130
    assert stderr.endswith("hrrl evaluate: interrupted\n")
    assert not (out / "report.html").exists()
    status, _, stderr = run(capsys, "report", out, "--out", tmp_path / "x.html")
    assert status == 1
    assert "hrrl evaluate --resume goes on with it" in stderr
    status, _, stderr = run(capsys, *command)
    assert status == 1
    assert "already holds an evaluation" in stderr
    corrupted_before = len(calls)
    calls.clear()
    status, _, stderr = run(capsys, *command, "--resume")
    assert status == 0, stderr
    assert len(calls) == 1 + corrupted_before + 1  # one attack here, and all of the other model
    assert (out / "report.html").exists()


def test_attacks_are_asked_for(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[str]
) -> None:
    """None, though the preset has some and searches for radii; or the search alone."""
    few = ["--data", "digits", "--points", "10", "--corruptions", "none", "--steps", "0"]
    for number, (options, expected) in enumerate([
        ("--preset full --attacks none", []),
        ("--preset full --attacks none --max_epsilon l2", ["max l2"]),
        ("--max_epsilon none --attacks linf:4/255 --quick_attacks false", ["linf:4/255"]),
    ]):  # fmt: skip
        out = tmp_path / str(number)
        words = ["evaluate", models / "alone", *few, *options.split(), "--out", out]
        status, _, stderr = run(capsys, *words)
        assert status == 0, stderr
        assert calls == expected
        calls.clear()
    assert Report.from_json(out / "alone").about["quick_attacks"] is False


def test_names_tell_paths_apart() -> None:
    from hrrl_ext.cli.evaluation import _names

    assert _names([Path("a/x"), Path("b/x")]) == ["a-x", "b-x"]
    assert _names([Path("/a/x/best"), Path("/a/y/best"), Path("/w.pt")])[:2] == ["x-best", "y-best"]
    assert _names([Path("runs/hrrl-0.5"), Path("w.pt")]) == ["hrrl-0.5", "w.pt"]
    assert _names([Path("a/x"), Path("a/b/x"), Path("c/y")]) == ["a-x", "b-x", "c-y"]


def test_errors_are_one_line(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    alone, digits = str(models / "alone"), ["--data", "digits", "--out", "x"]
    two = load_images("digits", split="test")
    import numpy as np

    rows = (two.target < 2).nonzero().flatten()
    named = {
        "image": two.images[rows].permute(0, 2, 3, 1).numpy(),
        "label": two.target[rows].numpy(),
    }
    np.savez(tmp_path / "two.npz", **named)
    np.savez(tmp_path / "other.npz", **named, class_names=["0", "one"])
    for arguments, status, message in [
        (["evaluate", "/no/run", *digits], 1, "/no/run holds no model and no run"),
        (["evaluate", *digits], 1, "give at least one MODEL, or --arch and --weights"),
        (["evaluate", alone, alone, *digits], 1, "the same is given twice"),
        (["evaluate", alone, "--weights", "w.pt", *digits], 1, "weights and arch go together"),
        (["evaluate", alone, "--data", "other.npz", "--out", "x"], 1, "data has 2 classes (0, one), "),
        (["evaluate", alone, *digits, "--classes", "none.txt"], 1, "classes: none.txt does not exist"),
        (["evaluate", alone, *digits, "--preset", "quik"], 1, "preset 'quik' is not known; did you mean 'quick'?"),
        (["evaluate", alone, *digits, "--attacks", "linf"], 1, "NORM:RADIUS"),
        (["evaluate", alone, *digits, "--corruptions", "darkr"], 1, "did you mean 'darker'"),
        (["evaluate", alone, *digits, "--atacks", "linf:1"], 2, "did you mean '--attacks'"),
        (["evaluate", alone, "--out", "x"], 2, "data"),
        (["evaluate", "--arch", "resnet18", "--weights", str(models / "wrapped.pt"), *digits], 1,
         "is no state dict of resnet18 of width 64"),
        (["evaluate", *WEIGHTS, "--weights", str(models / "wrapped.pt"), "--data", "two.npz", "--out", "x"], 1,
         "wrapped.pt has 10 classes, expected 2; give data of the classes"),
        (["report", "nothing", "--out", "x.html"], 1, "nothing holds no report.json"),
    ]:  # fmt: skip
        got, stdout, stderr = run(capsys, *arguments)
        assert got == status, (arguments, stderr)
        assert any(m in stderr for m in message.split("|")), (arguments, stderr)
        assert stderr.count("\n") == 1, stderr
        assert "Traceback" not in stdout + stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.npz", "two.npz"]


def test_classes_of_other_names_are_a_warning(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    digits = load_images("digits", split="test").subset(range(30))
    np.savez(
        tmp_path / "named.npz", image=digits.images.permute(0, 2, 3, 1).numpy(),
        label=digits.target.numpy(), class_names=[f"digit {c}" for c in range(10)],
    )  # fmt: skip
    status, _, stderr = run(
        capsys, "evaluate", models / "alone", "--data", tmp_path / "named.npz", "--attacks", "none",
        "--corruptions", "none", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, stderr
    assert "10 classes (digit 0, digit 1, digit 2, ...)" in stderr
    assert "they are taken for the same" in stderr
