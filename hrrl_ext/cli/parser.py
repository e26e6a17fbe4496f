"""How a command line is read: jsonargparse, behind a record of our own of what each command takes.

jsonargparse says in words alone what it did not know, so names are looked up here first, those on the
command line and those in a YAML file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from ..spec import nearest


class CommandParser:
    """Of one command. Wrong usage is a line on stderr, with the nearest known name, and status 2."""

    def __init__(self, program: str, description: str) -> None:
        self._parser = _Parser(prog=program, description=description, allow_abbrev=True)
        self.options = ["--help"]
        self._positionals: list[str] = []
        self._left_out: list[str] = []

    def add_argument(self, *names: str, **settings: Any) -> None:
        action = self._parser.add_argument(*names, **settings)
        if action.option_strings:
            self.options += action.option_strings  # more than the names, for a pair of yes and no
        else:
            self._positionals.append(action.dest)

    def add_config(self) -> None:
        """--config FILE, and --print_config, which comes with it."""
        self.add_argument(
            "--config", action="config", help="YAML file with any of these options; the last counts"
        )
        self.options.append("--print_config")

    def add_class_arguments(self, of: type, *, skip: Collection[str] = ()) -> None:
        """An option for each field of a dataclass."""
        names = self._parser.add_class_arguments(of, skip=set(skip))
        self.options += [f"--{name}" for name in names]

    def set_defaults(self, **defaults: Any) -> None:
        self._parser.set_defaults(**defaults)

    def leave_out(self, *names: str) -> None:
        """Of what is parsed, where they are not given: their default is that of whoever takes them."""
        self._left_out += names

    def parse(self, words: Sequence[str]) -> jsonargparse.Namespace:
        for option, value in _options(words):
            if not _is_known(option, self.options):
                self._parser.error(f"there is no option {nearest([option], self.options)}")
            if option == "--config" and value is not None:
                self._check_keys(Path(value))
        args = self._parser.parse_args(words)
        if self._left_out:
            given = self._parser.parse_args(words, defaults=False)
            for name in self._left_out:
                if name not in given:
                    args.pop(name)
        return args

    def _check_keys(self, config: Path) -> None:
        known = [option.removeprefix("--") for option in self.options] + self._positionals
        try:
            content = jsonargparse.get_loader("yaml")(config.read_text(encoding="utf-8"))
        except Exception:  # of any kind: jsonargparse reads it again, and says what is wrong
            return
        for key in map(str, content if isinstance(content, dict) else ()):
            if key.partition(".")[0].removesuffix("+") not in known:
                self._parser.error(f"{config}: there is no option {nearest([key], known)}")


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        wrong_usage(self.prog, message)


class IfGiven(argparse.Action):
    """Of a positional that may be left out: its absence leaves what a YAML file says."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        if values is not None:
            setattr(namespace, self.dest, values)


def wrong_usage(program: str, message: str) -> NoReturn:
    text = " ".join(message.split())
    print(f"{program}: error: {text}; see {program} --help", file=sys.stderr)
    raise SystemExit(2)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each long option, and what follows it."""
    for i, word in enumerate(words):
        if word == "--":
            return
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) else None
            yield option, value if equals else following


def _is_known(option: str, known: Collection[str]) -> bool:
    """--optimizer_options.nesterov and --milestones+ are options too, and a beginning will do."""
    name = option.partition(".")[0].removesuffix("+")
    return any(other.startswith(name) for other in known)
