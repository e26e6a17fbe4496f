"""The program hrrl as a user runs it: a whole path, one-line errors, exit statuses."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hrrl_ext.training import TrainingConfig

TRAIN = [
    "train", "--data", "digits", "--concepts", "classes", "--epochs", "1", "--width", "4",
    "--crop_padding", "1", "--batch_size", "128", "--lr", "0.05",
]  # fmt: skip


def program() -> Callable[[list[str]], int]:
    """Not imported with this module: who lacks the package that parses shall skip these tests alone."""
    pytest.importorskip("jsonargparse")
    from hrrl_ext.cli import main

    return main


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    try:
        status = program()([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_train_extract_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    status, stdout, stderr = run(
        capsys, *TRAIN, "--out", out, "--tau", "0.1", "--lam", "5", "--validation", "digits",
        "--progress", "plain",
    )  # fmt: skip
    assert status == 0, stderr
    assert stdout == f"saved {out}\n"
    assert stderr.startswith("epoch 1/1  loss ")
    assert json.loads((out / "config.json").read_text())["training"]["lam"] == 5.0
    assert json.loads((out / "results.json").read_text())["last"]["epoch"] == 1
    pictures = ["accuracy.png", "concept_accuracy.png", "error.png", "h.png", "loss.png", "q.png"]
    assert sorted(p.name for p in (out / "plots").iterdir()) == pictures
    status, stdout, _ = run(capsys, "plot", out, "--out", tmp_path / "plots")
    assert status == 0
    assert len(stdout.splitlines()) == 6
    for split in ("train", "test"):
        status, stdout, stderr = run(
            capsys, "extract", "--model", out, "--data", "digits", "--split", split,
            "--out", tmp_path / f"{split}.safetensors",
        )  # fmt: skip
        assert status == 0, stderr
    assert "450 features of 32 numbers" in stdout
    status, stdout, stderr = run(
        capsys, "probe", "--train", tmp_path / "train.safetensors", "--test",
        tmp_path / "test.safetensors", "--out", tmp_path / "result.json",
    )  # fmt: skip
    assert status == 0, stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"{result['accuracy']:.4f}" in stdout
    assert result["accuracy"] > 0.3
    assert result["n_test"] == 450

    status, _, stderr = run(capsys, *TRAIN, "--out", out, "--tau", "0.1", "--lam", "5")
    assert (status, stderr.count("\n")) == (1, 1)
    assert "already holds a run" in stderr
    status, stdout, _ = run(
        capsys, *TRAIN, "--out", out, "--tau", "0.1", "--lam", "5", "--validation", "digits", "--resume",
        "--progress", "off",
    )  # fmt: skip
    assert (status, stdout) == (0, f"saved {out}\n")


def test_levels_that_set_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is given keeps, also where it is the default, on the line or in a file."""
    config = tmp_path / "config.yaml"
    config.write_text("lam: 10.0\n")
    options = [*TRAIN, "--levels", "auto", "--progress", "off", "--max_steps", "2"]
    for name, more in (("all", []), ("tau", ["--tau", "0.03"]), ("lam", ["--config", config])):
        status, _, stderr = run(capsys, *options, "--out", tmp_path / name, *more)
        assert status == 0, stderr
        found = json.loads((tmp_path / name / "config.json").read_text())["training"]
        levels = [found[key] for key in ("tau", "adversary", "lam")]
        assert (
            levels
            == {
                "all": ["theorem2", "chi_square", 1.0],
                "tau": [0.03, "chi_square", 1.0],
                "lam": ["theorem2", "hrrl", 10.0],
            }[name]
        )


def test_tune_and_train_with_what_it_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*TRAIN[1:], "--images", "100", "--grid", "lam=30"]
    status, stdout, stderr = run(capsys, "tune", *options, "--out", tmp_path / "a b")
    assert status == 0, stderr
    assert stdout.startswith("as given, epoch 1: average ")
    assert "| lam=30 | 1 | " in stdout
    *_, last = stdout.splitlines()
    assert last.startswith(f"hrrl train --config '{tmp_path}/a b/chosen.yaml' --data digits ")
    status, _, stderr = run(capsys, *shlex.split(last)[1:], "--progress", "off")
    assert status == 0, stderr
    found = json.loads((tmp_path / "a b/run/config.json").read_text())["training"]
    chosen = json.loads((tmp_path / "a b/chosen.yaml").read_text())
    assert {key: found[key] for key in chosen} == chosen
    assert (chosen["tau"], chosen["epochs"], chosen["width"]) == (0.0, 1, 4)
    status, again, _ = run(capsys, "tune", *options, "--out", tmp_path / "a b")
    assert (status, again) == (0, stdout[stdout.index("\n|") :])  # nothing is trained again
    status, _, stderr = run(capsys, "tune", *options, "--out", tmp_path / "b", "--patience", "3")
    assert status == 2 and "there is no option '--patience'" in stderr


def test_concepts_that_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a configuration file, whose text is one word of YAML, as on the command line."""
    config = tmp_path / "config.yaml"
    config.write_text("concepts: clusters:4,rounds=2\n")
    out = tmp_path / "run"
    options = [*TRAIN, "--out", out, "--lam", "20", "--progress", "off"]
    status, _, stderr = run(capsys, *options, "--config", config)
    assert status == 0, stderr
    row = json.loads((out / "metrics.jsonl").read_text())
    assert sum(row["concept_count"].values()) == 1347
    assert 1 < len(row["q"]) <= 4
    assert json.loads((out / "config.json").read_text())["concepts"] == "clusters:4,rounds=2"


def test_config_file_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: [digits]\nconcepts: classes\ntau: 0.5\nlam: null\nepochs: 7\n")
    status, stdout, _ = run(
        capsys, "train", "--config", config, "--out", "x", "--epochs", "2", "--print_config"
    )
    assert status == 0
    assert "tau: 0.5" in stdout
    assert "lam: null" in stdout
    assert "epochs: 2" in stdout


def test_the_printed_configuration_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--print_config shows every field of TrainingConfig, and reading it back gives the same."""
    status, first, _ = run(capsys, *TRAIN, "--out", "x", "--tau", "0.25", "--print_config")
    assert status == 0
    fields = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert fields | {"data", "out", "resume"} <= {
        line.partition(":")[0] for line in first.splitlines()
    }
    (tmp_path / "config.yaml").write_text(first)
    status, second, _ = run(capsys, "train", "--config", tmp_path / "config.yaml", "--print_config")
    assert (status, second) == (0, first)
    status, third, _ = run(
        capsys, "train", "--tau", "1", "--config", tmp_path / "config.yaml", "--lr", "2",
        "--print_config",
    )  # fmt: skip
    assert status == 0
    assert "tau: 0.25" in third  # as everywhere on a command line: the last word counts
    assert "lr: 2.0" in third


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taw: 0.5", "config.yaml: there is no option 'taw' (did you mean 'tau'?)"),
        ("batch-size: 3", "'batch-size' (did you mean 'batch_size'?)"),
        ("tensorbord: true", "did you mean 'tensorboard'"),
        ("tau: much", "tau"),
        ("milestones: {a: 1}", "milestones"),
        ("hello", "hello"),
        ("data: [digits", "is not valid YAML: while parsing"),
        (
            'concepts: !!python/object/apply:os.mkdir ["executed"]',
            "could not determine a constructor",
        ),
        (
            'tau: !!python/object/new:os.mkdir {args: ["executed"]}',
            "could not determine a constructor",
        ),
        ("concepts: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_a_bad_configuration_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """And a file that names functions runs none of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text + "\n")
    status, stdout, stderr = run(capsys, *TRAIN, "--out", "x", "--config", "config.yaml")
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_every_configuration_that_is_shipped_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    assert files
    for path in files:
        commands = {"finetune": ["finetune", "run"], "emoji": ["train-retrieval"]}
        command = commands.get(path.stem, ["train"])
        status, _, stderr = run(
            capsys, *command, "--config", path, "--data", "digits", "--out", "x", "--print_config"
        )
        assert status == 0, (path, stderr)


def test_a_misspelt_key_is_found_in_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "good.yaml": "milestones+: 3\noptimizer_options: {nesterov: true}\n", "bad.yaml": "milestone: 3\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    files = ["--config", tmp_path / "good.yaml", f"--config={tmp_path / 'bad.yaml'}"]
    status, _, stderr = run(capsys, *TRAIN, "--out", "x", *files)
    assert status == 2
    assert f"{tmp_path / 'bad.yaml'}: there is no option 'milestone' (did you mean 'mile" in stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, ""),
        (["--debug"], 2, ""),
        (["--debgu", "info"], 2, "'--debgu' (did you mean '--debug'?)"),
        (["trian"], 2, "there is no command 'trian' (did you mean 'train'?)"),
        (
            [*TRAIN, "--out", "x", "--batch-size", "3"],
            2,
            "'--batch-size' (did you mean '--batch_size'?)",
        ),
        (["train", "--config", "/no/such.yaml"], 2, "/no/such.yaml"),
        (["plot", "/no/run", "--out", "x"], 1, "/no/run/metrics.jsonl does not exist"),
        (["plot", "--out", "x"], 2, "runs"),
        (["train"], 2, "data"),
        (
            [*TRAIN, "--out", "x", "--taw", "1"],
            2,
            "there is no option '--taw' (did you mean '--tau'?)",
        ),
        ([*TRAIN, "--out", "x", "--tau", "much"], 2, "tau"),
        ([*TRAIN, "--out", "x", "--epochs", "ten"], 2, "epochs"),
        ([*TRAIN, "--out", "x", "--tau", "-1"], 1, "tau must be finite and not negative, got -1.0"),
        ([*TRAIN, "--out", "x", "--lam", "0"], 1, "lam must be positive"),
        ([*TRAIN, "--out", "x", "--model", "resnet81"], 1, "resnet18"),
        (
            [*TRAIN, "--out", "x", "--concepts", "clusters:x"],
            1,
            "num_clusters must be a whole number, got 'x'",
        ),
        (
            [*TRAIN, "--out", "x", "--validation_concepts", "c.csv"],
            1,
            "concepts are of validation;",
        ),
        ([*TRAIN, "--out", "x", "--concepts", "clusters:4,evry=2"], 1, "did you mean 'every'?"),
        (["train", "--data", "/no/such.npz", "--out", "x"], 1, "/no/such.npz"),
        (["train", "--data", "digits", "--out", "x"], 1, 'give "classes"'),
        (["demo", "--seeds", "0", "--out", "x"], 1, "at least one seed"),
        (["extract", "--model", "/no/run", "--data", "digits", "--out", "x"], 1, "/no/run"),
        (["probe", "--train", "/no/a", "--test", "/no/b"], 1, "/no/a"),
        (
            ["cluster", "/no/run", "--data", "digits", "--clusters", "4"],
            1,
            "/no/run holds no model",
        ),
        (["cluster", "/no/run", "--data", "digits"], 2, "clusters"),
        (["cluster", "/no/run", "--data", "digits", "--clusters", "few"], 2, "clusters"),
        (["cluster", "--data", "digits", "--clusters", "4"], 2, "model"),
        (
            ["cluster", "x", "--data", "digits", "--clusters", "4", "--ruonds", "3"],
            2,
            "did you mean '--rounds'",
        ),
        (["variance", "/no/run", "--data", "digits"], 1, "/no/run holds no model"),
        (
            ["variance", "x", "--data", "digits", "--num-batches", "3"],
            2,
            "did you mean '--num_batches'",
        ),
        (
            ["probe", "--train", "a", "--test", "b", "--C", "big"],
            1,
            "C must be a number or 'search'",
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, stdout, stderr = run(capsys, *arguments)
    assert got == status, stderr
    assert message in stderr
    if message:
        assert stderr.count("\n") == 1
        assert "Traceback" not in stdout + stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_trace() -> None:
    with pytest.raises(FileNotFoundError):
        program()(["--debug", "extract", "--model", "/no/run", "--data", "digits", "--out", "x"])


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    status, stdout, _ = run(capsys, "info")
    assert status == 0
    for fact in ("hrrl_ext", "compiler", "torch_target", "cuda", "cpu_in_use"):
        assert f"\n{fact} " in "\n" + stdout


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hrrl_ext", "--help"], capture_output=True, text=True, check=True
    )
    assert "demo" in done.stdout
