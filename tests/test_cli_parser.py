"""How the program reads its words, and what it knows of its own options."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from test_cli import run

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import _COMMANDS, command_parser
from hrrl_ext.cli.yaml_files import check_yaml
from hrrl_ext.spec import Reader


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_every_option_in_the_help_is_known(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """So our record of the options is whole, whatever jsonargparse adds by itself."""
    status, stdout, _ = run(capsys, command, "--help")
    shown = re.findall(r"(?:^  |^  -\w, |, )(--[\w+]+)", stdout, flags=re.MULTILINE)
    assert status == 0 and "--help" in shown
    assert {option.removesuffix("+") for option in shown} == set(command_parser(command).options)


def test_a_positional_may_be_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """hrrl finetune may go without MODEL; one on the command line counts where it is the last."""
    (tmp_path / "config.yaml").write_text("model: there\n")
    given = ["--data", "digits", "--out", "x"]
    config = ["--config", str(tmp_path / "config.yaml")]
    for words, model in [
        ([*given], None), (["here", *given], "here"), ([*given, *config], "there"),
        ([*given, *config, "here"], "here"), (["here", *given, *config], "there"),
    ]:  # fmt: skip
        assert command_parser("finetune").parse(words).model == model


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--epo", "3"], {"epochs": 3}),
        (["--epochs=3", "--flip=false"], {"epochs": 3, "flip": False}),
        (["--resized_crop", "0.08", "--crop_of", "picture"], {"resized_crop": 0.08, "crop_of": "picture"}),
        (["--milestones+", "3", "--milestones+=5"], {"milestones": [3, 5]}),
        (["--optimizer_options.eps", "1", "--optimizer_options.betas", "[0, 0.5]"],
         {"optimizer_options": {"eps": 1, "betas": [0, 0.5]}}),
    ],
)  # fmt: skip
def test_ways_to_write_an_option(words: list[str], values: dict[str, object]) -> None:
    read = command_parser("train").parse(["--data", "digits", "--out", "x", *words]).as_dict()
    assert {name: read[name] for name in values} == values


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_a_value_of_the_wrong_kind_is_told_in_words(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For every option that is a number or one of a few words, on the command line and in a file."""
    parser = command_parser(command)
    for name, reader in parser._readers.items():
        if _reads(reader, "@@"):
            continue
        config = tmp_path / "config.yaml"
        config.write_text(f"{name}: '@@'\n")
        for words, where in [([f"--{name}", "@@"], f"--{name}"), (["--config", str(config)], name)]:
            if words[0] not in parser.options:
                continue
            with pytest.raises(SystemExit) as stopped:
                parser.parse(words)
            message = capsys.readouterr().err
            assert stopped.value.code == 2 and message.count("\n") == 1
            assert where in message and "'@@'" in message and "<class" not in message, message


def _reads(reader: Reader, text: str) -> bool:
    try:
        reader.read(text)
    except (ValueError, KeyError):
        return False
    return True


def aliases(kind: str, levels: int) -> str:
    """A few lines that stand for 9 ** levels values, under one option."""
    lines = [
        "milestones:",
        "- &a0 " + ("{k0: 1}" if kind == "merged" else f"[{', '.join('1' * 9)}]"),
    ]
    for i in range(1, levels):
        below = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(
            f"- &a{i} " + (f"{{k{i}: 1, <<: [{below}]}}" if kind == "merged" else f"[{below}]")
        )
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("train", aliases("lists", 12), "unfolds to more than 100,000 values by its aliases"),
        ("study", aliases("lists", 12), "unfolds to more than 100,000 values by its aliases"),
        ("train", aliases("merged", 12), "unfolds to more than 100,000 values by its aliases"),
        ("train", "milestones: &a [1, *a]", "unfolds to more than 100,000 values by its aliases"),
        ("train", "milestones: " + "[" * 500 + "]" * 500, "is nested too deeply"),
        ("study", "\udcff", "is not text in UTF-8"),
        ("study", "[", "is not valid YAML"),
    ],
    ids=["lists", "of a study", "merged", "within itself", "deep", "no text", "no YAML"],
)
def test_yaml_is_no_longer_than_it_looks(
    command: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However deep the process lets Python call itself, which libraries change."""
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    words = ["train", "--config"] if command == "train" else ["study", "--out", "x"]
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(10 * limit)
        status, _, stderr = run(capsys, *words, str(file))
    finally:
        sys.setrecursionlimit(limit)
    assert status in (1, 2)
    assert f"error: {file} {message}" in stderr and len(stderr) < 400


def test_aliases_that_unfold_to_little_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("milestones: [&few 3, *few, 5]\n")
    (tmp_path / "d.yaml").write_text(aliases("lists", 5))  # 9 + 81 + ... + 9^5: about 66,000
    check_yaml(tmp_path / "d.yaml")
    words = ["--data", "digits", "--out", "x", "--config", str(tmp_path / "c.yaml")]
    assert command_parser("train").parse(words).milestones == [3, 3, 5]
