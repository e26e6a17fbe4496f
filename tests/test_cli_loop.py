"""The loop's settings, as they are written in a shell and in YAML, by every command that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import run

from hrrl_ext.models import resnet18
from hrrl_ext.pretrained import save_pretrained

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import command_parser

BASE = [
    "--data", "digits", "--concepts", "classes", "--batch_size", "128", "--crop_padding", "1", "--device", "cpu",
    "--progress", "plain",
]  # fmt: skip
# A setting, its words in a shell, its line of YAML.
SETTINGS: list[tuple[str, Any, list[str], str]] = [
    ("optimizer", "adamw", ["--optimizer", "adamw"], "optimizer: adamw"),
    ("optimizer", "torch.optim.NAdam", ["--optimizer=torch.optim.NAdam"], "optimizer: torch.optim.NAdam"),
    ("optimizer_options", {"nesterov": True}, ["--optimizer_options", '{"nesterov": true}'], "optimizer_options: {nesterov: true}"),
    ("optimizer_options", {"nesterov": True}, ["--optimizer_options.nesterov", "true"], "optimizer_options:\n  nesterov: true"),
    ("optimizer_options", {"betas": [0.9, 0.95]}, ["--optimizer_options", "{betas: [0.9, 0.95]}"], "optimizer_options: {betas: [0.9, 0.95]}"),
    ("optimizer_options", {"betas": [0.9, 0.95]}, ["--optimizer_options.betas=[0.9, 0.95]"], "optimizer_options:\n  betas: [0.9, 0.95]"),
    ("optimizer_options", {"eps": 1e-6, "amsgrad": True}, ["--optimizer_options.eps", "1e-6", "--optimizer_options.amsgrad", "true"], "optimizer_options:\n  eps: 1e-6\n  amsgrad: true"),
    ("schedule", "cosine", ["--schedule", "cosine"], "schedule: cosine"),
    ("milestones", [3, 5], ["--milestones", "[3, 5]"], "milestones: [3, 5]"),
    ("warmup", "500 steps", ["--warmup", "500 steps"], "warmup: 500 steps"),
    ("warmup", 5, ["--warmup", "5"], "warmup: 5"),
    ("warmup", "5 epochs", ["--warmup=5 epochs"], "warmup: '5 epochs'"),
    ("decay_norms_and_biases", False, ["--decay_norms_and_biases", "false"], "decay_norms_and_biases: false"),
    ("clip_norm", 1.0, ["--clip_norm", "1"], "clip_norm: 1"),
    ("clip_norm", None, ["--clip_norm", "null"], "clip_norm: null"),
    ("ema", 0.999, ["--ema", "0.999"], "ema: 0.999"),
    ("evaluate_every", "200 steps", ["--evaluate_every", "200 steps"], "evaluate_every: 200 steps"),
    ("evaluate_every", 2, ["--evaluate_every", "2"], "evaluate_every: 2"),
    ("patience", 3, ["--patience", "3"], "patience: 3"),
    ("max_steps", 1000, ["--max_steps", "1000"], "max_steps: 1000"),
    ("max_minutes", 90.0, ["--max_minutes", "90"], "max_minutes: 90"),
    ("max_minutes", 0.5, ["--max_minutes", ".5"], "max_minutes: 0.5"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = {"model": "resnet18", "classes": ["a", "b"], "image_size": 8, "width": 2}
    save_pretrained(resnet18(2, stem="small", width=2), folder, config)
    return folder


def words(command: str, model: Path) -> list[str]:
    return [str(model), *BASE] if command == "finetune" else ["--width", "2", *BASE]


@pytest.mark.parametrize("command", ["train", "finetune"])
@pytest.mark.parametrize(("name", "value", "shell", "yaml"), SETTINGS)
def test_a_setting_as_it_is_written(
    command: str, name: str, value: Any, shell: list[str], yaml: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same from both, and from what --print_config prints of it."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml + "\n")
    given = ["model", *BASE] if command == "finetune" else BASE
    for option in (shell, ["--config", str(config)]):
        read = command_parser(command).parse([*given, "--out", "x", *option])
        read_value = read.as_dict()[name]
        assert (read_value, type(read_value)) == (value, type(value))
        status, printed, _ = run(capsys, command, *given, "--out", "x", *option, "--print_config")
        assert status == 0
        (tmp_path / "printed.yaml").write_text(printed)
        status, again, stderr = run(
            capsys, command, "--config", tmp_path / "printed.yaml", "--print_config"
        )
        assert (status, again) == (0, printed), stderr


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_all_of_them_reach_the_loop(
    command: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "optimizer": "adamw", "optimizer_options": {"betas": [0.9, 0.95]}, "schedule": "cosine",
        "warmup": "4 steps", "decay_norms_and_biases": False, "clip_norm": 1.0, "ema": 0.9,
        "evaluate_every": "4 steps", "patience": 50, "max_steps": 13, "lr": 0.01,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    out = tmp_path / "run"
    status, stdout, stderr = run(
        capsys, command, *words(command, model), "--validation", "digits", "--config",
        tmp_path / "config.yaml", "--out", out,
    )  # fmt: skip
    assert (status, stdout) == (0, f"saved {out}\n"), stderr
    there = json.loads((out / "config.json").read_text())["training"]
    assert {name: there[name] for name in settings} == settings
    within = (out / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in within] == [4, 8, 12]
    last = json.loads((out / "results.json").read_text())["last"]
    assert last["step"] == 13
    assert last["lr"] == pytest.approx(0.01 * 0.0301537, rel=1e-4)  # (1 + cos(8π/9))/2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--warmup", "5 minutes"], "warmup must be a whole number of epochs"),
        (["--warmup", "2.5"], "warmup must be a whole number of epochs"),
        (["--evaluate_every", "0"], "evaluate_every must be at least 1"),
        (["--ema", "1"], "ema must lie between 0 and 1"),
        (["--max_minutes", "0"], "max_minutes must be positive"),
        (["--optimizer", "adm"], "'adm' is not known; did you mean 'adam'?"),
        (["--optimizer_options.nestrov", "true"], "did you mean 'nesterov'?"),
        (["--optimizer_options", "nesterov"], "optimizer_options"),
        (["--schedule", "cosin"], "schedule"),
    ],
)
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_wrong_setting_is_a_line(
    command: str, option: list[str], message: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "x"
    status, _, stderr = run(capsys, command, *words(command, model), "--out", out, *option)
    assert status in (1, 2)
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_limit_in_minutes_is_no_error(
    command: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped before its first epoch is over, and continued to its end."""
    out = tmp_path / "run"
    given = [command, *words(command, model), "--epochs", "1", "--out", out]
    status, stdout, stderr = run(capsys, *given, "--max_minutes", "1e-6")
    assert status == 0, stderr
    stopped, saved = stdout.splitlines()
    assert stopped == f"stopped by max_minutes: saved in {out}; continue it with resume"
    assert saved == f"saved {out}"
    assert not (out / "results.json").exists()
    status, stdout, stderr = run(capsys, *given, "--resume")
    assert (status, stdout) == (0, f"saved {out}\n"), stderr
    assert (out / "results.json").is_file()
