"""The program ``hrrl``: the Python functions under the same names.

What a command does is imported when it runs, so that ``hrrl --help`` answers at once. Exit status: 0, 1
for an error (one line, with a way out; --debug shows the trace), 2 for wrong usage.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse

from . import clustering, evaluation, show, training, transfer

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_COMMANDS = (
    training.COMMANDS
    | transfer.COMMANDS
    | evaluation.COMMANDS
    | clustering.COMMANDS
    | show.COMMANDS
)


class _Parser(jsonargparse.ArgumentParser):
    """Usage errors in one line, with the nearest known option for one that is not known."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        commands = "|".join(_COMMANDS)
        message = re.sub(rf"\b(?:{commands})\.(\w+)", r"--\1", " ".join(message.split()))
        message += self._nearest(message)
        program = self.prog.replace(" [options]", "")
        print(f"{program}: error: {message}; see {program} --help", file=sys.stderr)
        raise SystemExit(2)

    def _nearest(self, message: str) -> str:
        """A hint at what was meant by an option, a key of a YAML file or a command not known."""
        if key := re.search(r"(?:Option|accept option) '([^']+)'", message):
            keys = [o[2:] for o in _options(self) + _options(*_with_config(self))]
            return _did_you_mean(key[1].partition(".")[0], keys)
        if choice := re.search(r"argument subcommand: invalid choice: '([^']+)'", message):
            return _did_you_mean(choice[1], list(_COMMANDS))
        options = _options(self)
        hints = (_did_you_mean(o, options) for o in re.findall(r"--[\w.-]+", message))
        return next((hint for hint in hints if hint), "")


def _options(*parsers: ArgumentParser) -> list[str]:
    return [
        option
        for parser in parsers
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _with_config(parser: ArgumentParser) -> list[ArgumentParser]:
    """The commands that read a YAML file: an unknown key in one is reported by the program."""
    commands = [a.choices for a in parser._actions if isinstance(a.choices, Mapping)]
    parsers = [p for choices in commands for p in choices.values()]
    return [p for p in parsers if "--config" in _options(p)]


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near and word not in known else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    command = args.subcommand
    if command is None:
        parser.print_help()
        return 2
    warnings.showwarning = _one_line_warning
    try:
        _COMMANDS[command][1](args[command])
    except KeyboardInterrupt:
        print(f"hrrl {command}: interrupted", file=sys.stderr)
        return 1
    except (
        ArithmeticError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if args.debug:
            raise
        print(f"hrrl {command}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog="hrrl", description="Hierarchically robust representation learning.")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    commands = parser.add_subcommands(required=False)
    for name, (add_arguments, run) in _COMMANDS.items():
        summary = (run.__doc__ or "").splitlines()[0]
        sub = _Parser(prog=f"hrrl {name}", description=summary)
        add_arguments(sub)
        commands.add_subcommand(name, sub, help=summary)
    return parser


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"hrrl: warning: {' '.join(str(message).split())}", file=sys.stderr)
