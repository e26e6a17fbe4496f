"""How a command line is read: jsonargparse, behind a record of our own of what each command takes.

jsonargparse says in words alone what it did not know, so names are looked up here first, those on the
command line and those in a YAML file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import jsonargparse

from ..spec import SIZE, Reader, nearest, read_value, reader_of
from .yaml_files import check_yaml, read_yaml


class CommandParser:
    """Of one command. Wrong usage is a line on stderr, with the nearest known name, and status 2."""

    def __init__(self, program: str, description: str) -> None:
        self._parser = _Parser(prog=program, description=description, allow_abbrev=True)
        self.options = ["--help"]
        self._positionals: list[str] = []
        self._readers: dict[str, Reader] = {}
        self._left_out: list[str] = []

    def add_argument(self, *names: str, **settings: Any) -> None:
        action = self._parser.add_argument(*names, **settings)
        if action.option_strings:
            self.options += action.option_strings  # more than the names, for a pair of yes and no
            self._read_by(action.dest, settings.get("type"))
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
        names = self._parser.add_class_arguments(of, skip={*skip, "image_size"})
        self.options += [f"--{name}" for name in names]
        hints = get_type_hints(of)
        for name in names:
            self._read_by(name, hints[name])
        if "image_size" in hints.keys() - {*skip}:
            self.add_image_size("their own if not given")

    def add_image_size(self, otherwise: str) -> None:
        """--image_size, which is one number or two."""
        self.add_argument(
            "--image_size",
            type=_image_size,
            metavar="PIXELS",
            help=f"side that images are resized to, or HEIGHTxWIDTH; {otherwise}",
        )
        self._readers["image_size"] = SIZE

    def _read_by(self, name: str, kind: Any) -> None:
        with suppress(KeyError):  # jsonargparse alone reads what is not a word, such as a list
            self._readers[name] = reader_of(kind, floats=Reader("a number", float))

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
        self._parser.wrong_value = lambda: self._wrong_value(words)
        self._parser.configs = [
            value for name, value in _options(words) if name == "--config" and value
        ]
        args = self._parser.parse_args(words)
        if self._left_out:
            given = self._parser.parse_args(words, defaults=False)
            for name in self._left_out:
                if name not in given:
                    args.pop(name)
        return args

    def _check_keys(self, config: Path) -> None:
        try:
            check_yaml(config)
        except OSError:
            pass  # jsonargparse says why
        except ValueError as error:
            self._parser.error(str(error))
        known = [option.removeprefix("--") for option in self.options] + self._positionals
        for key in _content(config):
            if key.partition(".")[0].removesuffix("+") not in known:
                self._parser.error(f"{config}: there is no option {nearest([key], known)}")

    def _wrong_value(self, words: Sequence[str]) -> str | None:
        """The first of the given values that is not of its option's type, in words."""
        for option, value in _options(words):
            if option == "--config" and value is not None:
                if (why := _no_yaml(Path(value))) is not None:
                    return why
                given = {
                    f"{value}: {name}": (name, str(x)) for name, x in _content(Path(value)).items()
                }
            else:
                given = {option: (option.removeprefix("--"), str(value))}
            for where, (name, text) in given.items():
                if name in self._readers and text not in ("null", "None"):
                    try:
                        read_value(where, text, self._readers[name])
                    except ValueError as error:
                        return str(error)
        return None


def _image_size(value: Any) -> Any:
    """As a word; YAML also has numbers and lists."""
    return SIZE.read(value) if isinstance(value, str) else value


def _content(config: Path) -> dict[str, Any]:
    """Of a YAML file; nothing of one that cannot be read: jsonargparse reads it again, and says why."""
    try:
        content = read_yaml(config)
    except Exception:  # of any kind
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _no_yaml(config: Path) -> str | None:
    """Why a file that is there cannot be read, by its name, which jsonargparse leaves out."""
    try:
        content = read_yaml(config)
    except OSError:
        return None
    except Exception as error:  # of any kind
        return str(error) if str(config) in str(error) else f"{config} is not valid YAML: {error}"
    if isinstance(content, dict):
        return None
    return f"{config} must hold settings, each as name: value, got {str(content)[:40]!r}"


class _Parser(jsonargparse.ArgumentParser):
    wrong_value: Callable[[], str | None] = staticmethod(lambda: None)
    configs: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """``message`` is jsonargparse's, which names a type as Python does, and no file."""
        where = "".join(f"with {config}: " for config in self.configs)
        wrong_usage(self.prog, self.wrong_value() or where + message)


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
