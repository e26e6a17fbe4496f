"""hrrl pretrain: options, a YAML file, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("jsonargparse")
from hrrl_ext import load_images, load_model
from hrrl_ext.cli import command_parser, main
from hrrl_ext.evaluation import Report, predict

SMALL = [
    "--data", "digits", "--validation", "digits", "--model", "convnet", "--width", "4", "--max_steps", "2",
    "--batch_size", "64", "--queue", "100", "--bank", "50", "--device", "cpu", "--progress", "off",
]  # fmt: skip

MEASURED = ["--data", "digits", "--attacks", "none", "--corruptions", "none", "--device", "cpu"]


def test_a_run_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "method: instdis\nviews: urrl\np: 0.25\nlr: 0.02\noptimizer_options: {nesterov: true}\n"
    )
    out = tmp_path / "run"
    assert main(["pretrain", "--config", str(config), *SMALL, "--out", str(out)]) == 0
    assert f"saved {out}" in capsys.readouterr().out
    settings = json.loads((out / "config.json").read_text())["training"]
    assert (settings["views"], settings["p"], settings["lr"]) == ("urrl", 0.25, 0.02)
    assert settings["method"] == "instdis"
    assert settings["epochs"] == 200 and settings["schedule"] == "cosine"
    assert load_model(out).fc.out_features == 10
    assert (out / "plots/accuracy.png").exists()
    assert main(["evaluate", str(out), *MEASURED, "--out", str(tmp_path / "report")]) == 0
    report = Report.from_json(tmp_path / "report/run")
    found = predict(load_model(out), load_images("digits", split="test")).correct
    assert report.accuracy["correct"] == int(found.sum())
    capsys.readouterr()
    assert main(["pretrain", *SMALL, "--out", str(out)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    resumed = ["pretrain", "--config", str(config), *SMALL, "--out", str(out), "--resume"]
    assert main(resumed) == 0
    assert main([*resumed, "--temperature", "0.5"]) == 1
    assert "temperature" in capsys.readouterr().err


def test_the_defaults_are_moco_s() -> None:
    read = command_parser("pretrain").parse(["--data", "digits", "--out", "x"])
    assert (read.views, read.queue, read.temperature, read.key_momentum) == (
        "urrl",
        65536,
        0.2,
        0.999,
    )
    assert read.lr is None and read.weight_decay == 1e-4 and read.norm_groups == 8
    given = ["--data", "photos", "--out", "x", "--crop_of", "picture"]
    assert read.crop_of == "image" and command_parser("pretrain").parse(given).crop_of == "picture"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--temprature", "1"], 2, "'--temprature' (did you mean '--temperature'?)"),
        (["--views", "augmx"], 2, "views"),
        (["--method", "simclr"], 2, "method"),
        (["--concepts", "classes"], 2, "there is no option '--concepts'"),
        (["--norm_groups", "40"], 1, "norm_groups=40 leave fewer than two images"),
    ],
)
def test_wrong_usage(
    words: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["pretrain", *SMALL, "--out", str(tmp_path / "x"), *words]
    if status == 2:
        with pytest.raises(SystemExit) as exit_:
            main(command)
        assert exit_.value.code == 2
    else:
        assert main(command) == status
    assert said in capsys.readouterr().err
