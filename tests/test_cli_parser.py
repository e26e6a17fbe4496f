"""How the program reads its words, and what it knows of its own options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_cli import run

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import _COMMANDS, command_parser
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
