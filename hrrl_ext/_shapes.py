"""What JSON that is read must hold, so that whoever uses it need not doubt a type.

A shape is a function that is told a value and where it is, and raises ValueError where they do not fit:
``accuracy.concepts[3].count must be a count, got 'x'``. What a shape does not name passes: a newer
version may have written it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Shape = Callable[[Any, str], None]


def expected(what: str, value: Any, where: str) -> ValueError:
    got = repr(value)
    shown = got if len(got) <= 40 else f"{got[:37]}..."
    return ValueError(f"{where or 'it'} must be {what}, got {shown}")


# --- one value


def number(value: Any, where: str, *, what: str = "a finite number") -> None:
    try:
        known = not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        known = False
    if not known:
        raise expected(what, value, where)


def count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise expected("a count", value, where)


def some(value: Any, where: str) -> None:
    count(value, where)
    if not value:
        raise expected("a count of at least 1", value, where)


def flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise expected("true or false", value, where)


def text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise expected("text", value, where)


def text_or_number(value: Any, where: str) -> None:
    if not isinstance(value, str):
        number(value, where, what="text or a finite number")


def number_as_text(value: str, where: str) -> None:
    """Of a key, which in JSON is text."""
    try:
        number(float(value), where)
    except ValueError:
        raise expected("named by finite numbers", value, where) from None


# --- values of values


def maybe(shape: Shape) -> Shape:
    """Null as well."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            shape(value, where)

    return check


def many(shape: Shape, *, least: int = 0) -> Shape:
    """A list."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise expected("a list that is not empty" if least == 1 else "a list", value, where)
        for place, entry in enumerate(value):
            shape(entry, f"{where}[{place}]")

    return check


def mapping(shape: Shape, keys: Shape = text) -> Shape:
    """An object whose entries are alike, whatever their names."""

    def check(value: Any, where: str) -> None:
        entries(value, where)
        for name, entry in value.items():
            keys(name, where)
            shape(entry, f"{where}.{name}")

    return check


def entries(value: Any, where: str) -> None:
    """An object of any entries."""
    if not isinstance(value, dict):
        raise expected("an object", value, where)


def record(*parts: Shape, **shapes: Shape) -> Shape:
    """An object with at least these entries, that fits ``parts`` as well."""

    def check(value: Any, where: str) -> None:
        entries(value, where)
        for part in parts:
            part(value, where)
        for name, shape in shapes.items():
            place = f"{where}.{name}" if where else name
            if name not in value:
                raise ValueError(f"{place} is missing")
            shape(value[name], place)

    return check


def having(**shapes: Shape) -> Shape:
    """An object whose entries of these names, where it has them, fit."""

    def check(value: Any, where: str) -> None:
        entries(value, where)
        record(**{name: shape for name, shape in shapes.items() if name in value})(value, where)

    return check
