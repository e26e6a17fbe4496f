"""The program ``hrrl``: the Python functions under the same names.

What a command does is imported when it runs, so that ``hrrl --help`` answers at once. Exit status: 0, 1
for an error (one line, with a way out; --debug shows the trace), 2 for wrong usage, 130 for Ctrl-C, 141
where nobody reads what a command prints. One that writes a folder goes on without being read.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse

from .._output import StandardOutput, standard_streams
from .._signals import second_ends
from ..spec import nearest
from . import (
    checking,
    clustering,
    evaluation,
    linear,
    pretraining,
    retrieval,
    search,
    show,
    study,
    training,
    transfer,
    tuning,
)
from .options import GOES_ON
from .parser import CommandParser, wrong_usage

if TYPE_CHECKING:
    from jsonargparse import Namespace

_COMMANDS = (
    training.COMMANDS
    | tuning.COMMANDS
    | pretraining.COMMANDS
    | transfer.COMMANDS
    | evaluation.COMMANDS
    | study.COMMANDS
    | clustering.COMMANDS
    | checking.COMMANDS
    | linear.COMMANDS
    | retrieval.COMMANDS
    | search.COMMANDS
    | show.COMMANDS
)


# Under torchrun: what processes share, what the first does while the others wait, as it is not worth
# sharing; and else a process that is started alone.
_SHARED = (
    *("train", "pretrain", "train-retrieval", "finetune", "extract", "evaluate"),
    *("cluster", "variance", "embed", "tune"),  # which has its own word on it
)
_OF_THE_FIRST = ("probe", "evaluate-retrieval")


def main(argv: Sequence[str] | None = None) -> int:
    with standard_streams() as out, second_ends():
        out.ends = True
        status = _run(argv, out)
    if status == 1 and _processes() > 1:
        os._exit(1)  # an end in good order would wait for what is under way with the others
    return status


def _run(argv: Sequence[str] | None, out: StandardOutput) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    program = _Program()
    if not [word for word in words if word != "--debug"]:
        program.print_help()
        return 2
    given, unknown = program.parse_known_args(words)
    if unknown:
        program.error(
            f"there is no option {nearest(unknown, ['--debug', '--help'])} of all commands"
        )
    command, *rest = given.command
    if rest and f"{command} {rest[0]}" in _COMMANDS:  # of two words
        command, rest = f"{command} {rest[0]}", rest[1:]
    if command not in _COMMANDS:
        program.error(f"there is no command {nearest([command], _COMMANDS)}")
    args = command_parser(command).parse(rest)
    if getattr(args, "out", None) == "":
        wrong_usage(f"hrrl {command}", "--out is empty; name a file or folder to write to")
    out.ends = _COMMANDS[command][1] not in GOES_ON
    warnings.showwarning = _one_line_warning
    try:
        _on_all_processes(command, args)
    except KeyboardInterrupt:
        print(f"hrrl {command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (
        ArithmeticError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if given.debug:
            raise
        if not _said_elsewhere(error):
            print(f"hrrl {command}: error: {_whose()}{_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _on_all_processes(command: str, args: Namespace) -> None:
    """That torchrun has started, or on the one that there is."""
    run = _COMMANDS[command][1]
    if _processes() == 1:
        run(args)
        return
    if command not in (*_SHARED, *_OF_THE_FIRST):
        raise ValueError(f"{command} is work of one process; start it without torchrun")
    from ..processes import joined

    with joined(getattr(args, "device", "cpu") or "auto") as (processes, _):
        if not processes.main:
            warnings.simplefilter("ignore")
        if processes.main or command in _SHARED:
            run(args)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _whose() -> str:
    """Which process an error is of, where there are several."""
    return f"process {os.environ.get('RANK')} of {_processes()}: " if _processes() > 1 else ""


def _said_elsewhere(error: BaseException) -> bool:
    """Whether the process that it is of says it."""
    if _processes() == 1:
        return False
    from ..processes import ProcessFailedError

    return isinstance(error, ProcessFailedError)


class _Program(argparse.ArgumentParser):
    """What stands before the command; its own words are read by the parser of the command alone."""

    def __init__(self) -> None:
        super().__init__(
            prog="hrrl",
            description="Hierarchically robust representation learning.",
            epilog=_list_of_commands(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--debug", action="store_true", help="show the trace of an error")
        self.add_argument("command", metavar="COMMAND", nargs=argparse.PARSER, help="see below")

    def error(self, message: str) -> NoReturn:
        wrong_usage(self.prog, message)


def _list_of_commands() -> str:
    lines = ["commands (hrrl COMMAND --help explains one):"]
    for name in _COMMANDS:
        lines += textwrap.wrap(
            _summary(name),
            width=79,
            initial_indent=f"  {name:10} ",
            subsequent_indent=" " * 13,
        )
    return "\n".join(lines)


def command_parser(name: str) -> CommandParser:
    """What reads the words behind the name of a command."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = CommandParser(f"hrrl {name}", _summary(name))
    _COMMANDS[name][0](parser)
    return parser


def _summary(name: str) -> str:
    return (_COMMANDS[name][1].__doc__ or "").splitlines()[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"hrrl: warning: {' '.join(str(message).split())}", file=sys.stderr)
