"""Names and settings that people write: what is meant by one that is not known, and "name:key=value,...".

A specification is a name, and after a colon settings between commas: "similarity:w_sim=3,squared=true".
One setting may come first without its name: "clusters:10,every=5", "linf:8/255". Spaces around names,
values and commas do not count; a value may hold "=", but no comma.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_SHOWN = 5  # names listed in one message
_ALL = 40  # names that are all listed, where one is not known
_LIKE = 0.5  # of difflib: half of the letters in common

# --- names


def listed(names: Sequence[str]) -> str:
    """'cat', 'dog', ..."""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + _rest(len(names) - _SHOWN)


def repeated(names: Iterable[str]) -> list[str]:
    """Those that come more than once; one pass, as a table may have 10^5 columns."""
    return [name for name, times in Counter(names).items() if times > 1]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant, whatever its case; None where nothing is near."""
    return next(iter(_alike(name, known, 1, _LIKE)), None)


def nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    """'dgo' (did you mean 'dog'?), ...; the name alone where nothing is near."""
    known = list(known)
    shown = []
    for name in unknown[:_SHOWN]:
        match = closest(name, known)
        shown.append(repr(name) if match is None else f"{name!r} (did you mean {match!r}?)")
    return ", ".join(shown) + _rest(len(unknown) - _SHOWN)


def not_known(name: object, known: Iterable[str]) -> str:
    """'resnet19' is not known; did you mean 'resnet18'? known are 'resnet18', ...

    Of very many names those that are most like it.
    """
    known = list(dict.fromkeys(known))
    if not known:
        return f"{name!r} is not known; there are none"
    match = closest(str(name), known)
    hint = "" if match is None else f" did you mean {match!r}?"
    shown = known if len(known) <= _ALL else _alike(str(name), known, _SHOWN, 0.0)
    names = ", ".join(map(repr, shown)) + _rest(len(known) - len(shown))
    return f"{name!r} is not known;{hint} known {'is' if len(known) == 1 else 'are'} {names}"


def _alike(name: str, known: Iterable[str], count: int, cutoff: float) -> list[str]:
    folded: dict[str, str] = {}
    for other in known:
        folded.setdefault(other.casefold(), other)
    return [folded[f] for f in difflib.get_close_matches(name.casefold(), folded, count, cutoff)]


def _rest(more: int) -> str:
    return f" and {more} more" if more > 0 else ""


# --- values


def plain(value: Any) -> Any:
    """``value``, in which scalars of NumPy and torch are Python's own."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def make_plain(settings: object) -> None:
    """The same of each field of a dataclass, also of a frozen one."""
    for field in fields(settings):  # type: ignore[arg-type]
        object.__setattr__(settings, field.name, plain(getattr(settings, field.name)))


# --- specifications


@dataclass(frozen=True)
class Reader:
    """What a setting may be: ``expected`` in words, and ``read``, which raises ValueError or KeyError."""

    expected: str
    read: Callable[[str], Any]
    words: tuple[str, ...] = ()
    """all that it may be, where these are few"""


_UNSIGNED = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_NUMBER = re.compile(rf"([+-]?{_UNSIGNED})(?:/({_UNSIGNED}))?", re.ASCII | re.IGNORECASE)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise ValueError
    return int(text)


def _number(text: str) -> float:
    if not (found := _NUMBER.fullmatch(text)):
        raise ValueError
    divisor = float(found[2] or 1)
    value = float(found[1]) / divisor if divisor else math.inf
    if not math.isfinite(value):
        raise ValueError
    return value


def _size(text: str) -> int | list[int]:
    if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", text, re.ASCII)):
        raise ValueError
    return int(found[1]) if found[2] is None else [int(found[1]), int(found[2])]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split("+")]
    if not all(names):
        raise ValueError
    return names


WHOLE = Reader("a whole number", _whole)
NUMBER = Reader("a finite number or fraction, such as 0.5, 1e-3 or 8/255", _number)
TRUTH = Reader("true or false", lambda text: {"true": True, "false": False}[text.lower()])
TEXT = Reader("text", str)
SIZE = Reader("pixels: a side, such as 224, or height and width, such as 16x48", _size)
NAMES = Reader('names joined by "+"', _names)
_OF_TYPE: dict[Any, Reader] = {
    int: WHOLE,
    bool: TRUTH,
    str: TEXT,
    Sequence[str]: NAMES,
}


def readers_of(settings: type) -> dict[str, Reader]:
    """A reader for each field of a dataclass, by its type. One that may be None is written by leaving it
    out."""
    hints = get_type_hints(settings)
    return {field.name: reader_of(hints[field.name]) for field in fields(settings)}


def reader_of(kind: Any, *, floats: Reader = NUMBER) -> Reader:
    """Of a type, as annotations have it; KeyError for one that is not written in a word."""
    if kind is float:
        return floats
    if get_origin(kind) in (Union, UnionType):
        return _any_of([reader_of(k, floats=floats) for k in get_args(kind) if k is not NoneType])
    if get_origin(kind) is Literal:
        of_word = {str(word): word for word in get_args(kind)}
        words = tuple(of_word)
        expected = repr(words[0]) if len(words) == 1 else f"one of {', '.join(words)}"
        return Reader(expected, of_word.__getitem__, words)
    return _OF_TYPE[kind]


def _any_of(readers: Sequence[Reader]) -> Reader:
    if len(readers) == 1:
        return readers[0]

    def read(text: str) -> Any:
        for reader in readers:
            with suppress(ValueError, KeyError):
                return reader.read(text)
        raise ValueError

    return Reader(", or ".join(reader.expected for reader in readers), read)


def written(value: object) -> str:
    """A value as its reader takes it."""
    return "+".join(value) if isinstance(value, tuple | list) else str(value).lower()


def split_spec(text: str, *, suffixes: Sequence[str] = ()) -> tuple[str, str | None]:
    """The name, and the settings behind its colon; None where there is no colon.

    With ``suffixes`` the name is a file's, which may hold colons itself (C:/data/meta.csv): it ends
    in one of them, and only what begins with NAME= behind the colon after it is settings.
    """
    if not suffixes:
        name, colon, settings = text.partition(":")
        return name.strip(), settings if colon else None
    ends = "|".join(map(re.escape, suffixes))
    found = re.fullmatch(rf"(.+?(?:{ends})):(\s*\w+\s*=.*)", text, re.IGNORECASE | re.DOTALL)
    return (found[1], found[2]) if found else (text, None)


def read_settings(
    where: str,
    text: str | None,
    readers: Mapping[str, Reader],
    *,
    first: str | None = None,
    form: str = "",
) -> dict[str, Any]:
    """The settings in ``text``, which stands behind the colon of a specification.

    Args:
        where: what messages begin with, such as "method 'l2sp:alpha=much'".
        text: None where there is no colon.
        readers: of every setting there is, by name.
        first: the one that must come first, without its name.
        form: how the whole is written, which messages end with.

    Raises ValueError, in one line: a setting that is not known, is given twice, has no value or none that
    can be read, or is empty; ``first`` is missing.
    """
    settings: dict[str, Any] = {}
    try:
        if first is not None and text is None:
            raise ValueError(f"{first} is missing")
        for number, part in enumerate([] if text is None else text.split(",")):
            if first is not None and number == 0:
                name, value = first, part.strip()
            else:
                name, value = _named(part, readers, first)
            if name in settings:
                raise ValueError(f"{name} is given twice")
            settings[name] = read_value(name, value, readers[name])
    except ValueError as error:
        raise ValueError(f"{where}: {error}" + (f"; expected {form}" if form else "")) from None
    return settings


def _named(part: str, readers: Mapping[str, Reader], first: str | None) -> tuple[str, str]:
    name, equals, value = (text.strip() for text in part.partition("="))
    if not part.strip():
        raise ValueError("a setting is empty; write NAME=VALUE, and a comma only between two")
    if not readers.keys() - {first}:
        raise ValueError(f"it takes no setting, got {part.strip()!r}")
    if name not in readers:
        raise ValueError(
            f"setting {not_known(name, [known for known in readers if known != first])}"
        )
    if not equals:
        raise ValueError(f"{name} has no value; write {name}=VALUE, {readers[name].expected}")
    return name, value


def read_value(name: str, value: str, reader: Reader) -> Any:
    """What ``value`` says; ValueError with what was expected."""
    try:
        return reader.read(value)
    except (ValueError, KeyError):
        if reader.words:
            raise ValueError(f"{name}: {not_known(value, reader.words)}") from None
        raise ValueError(f"{name} must be {reader.expected}, got {value!r}") from None
