"""What a report.json must hold, so that whoever shows it need not doubt a number.

A shape is a function that is told a value and where it is, and raises ValueError where they do not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

Shape = Callable[[Any, str], None]

_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def is_picture(value: Any) -> bool:
    """A PNG within a data: address, as :func:`~.pictures.png` writes them."""
    return isinstance(value, str) and _PICTURE.fullmatch(value) is not None


def check_report(value: Any) -> None:
    """ValueError: what is wrong where, such as ``accuracy.concepts[3].count``, in one line."""
    _REPORT(value, "")


def _expected(what: str, value: Any, where: str) -> ValueError:
    got = repr(value)
    shown = got if len(got) <= 40 else f"{got[:37]}..."
    return ValueError(f"{where or 'it'} must be {what}, got {shown}")


def _number(value: Any, where: str, *, what: str = "a finite number") -> None:
    try:
        known = not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        known = False
    if not known:
        raise _expected(what, value, where)


def _positive(value: Any, where: str) -> None:
    _number(value, where)
    if value <= 0:
        raise _expected("a number above 0", value, where)


def _part_of_one(value: Any, where: str) -> None:
    what = "a number in [0, 1]"
    _number(value, where, what=what)
    if not -1e-6 <= value <= 1 + 1e-6:  # a mean of single precision
        raise _expected(what, value, where)


def _count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise _expected("a count", value, where)


def _some(value: Any, where: str) -> None:
    _count(value, where)
    if not value:
        raise _expected("a count of at least 1", value, where)


def _flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise _expected("true or false", value, where)


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _expected("text", value, where)


def _text_or_number(value: Any, where: str) -> None:
    if not isinstance(value, str):
        _number(value, where, what="text or a finite number")


def _picture(value: Any, where: str) -> None:
    if not is_picture(value):
        raise _expected("a PNG as a data: address", value, where)


def _maybe(shape: Shape) -> Shape:
    def check(value: Any, where: str) -> None:
        if value is not None:
            shape(value, where)

    return check


def _all(shape: Shape, *, some: bool = False) -> Shape:
    """A list; with ``some`` one that is not empty."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or (some and not value):
            raise _expected("a list that is not empty" if some else "a list", value, where)
        for number, entry in enumerate(value):
            shape(entry, f"{where}[{number}]")

    return check


def _object(*parts: Shape, **shapes: Shape) -> Shape:
    """An object with at least these entries, that fits ``parts`` as well."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _expected("an object", value, where)
        for part in parts:
            part(value, where)
        for name, shape in shapes.items():
            place = f"{where}.{name}" if where else name
            if name not in value:
                raise ValueError(f"{place} is missing")
            shape(value[name], place)

    return check


def _share(value: Any, where: str) -> None:
    """Without an example it has no accuracy."""
    _object(correct=_count, count=_count, low=_part_of_one, high=_part_of_one)(value, where)
    correct, count = value["correct"], value["count"]
    if correct > count:
        raise _expected(f"at most the count, {count}", correct, f"{where}.correct")
    _object(accuracy=_part_of_one if count else _maybe(_part_of_one))(value, where)


def _measured(value: Any, where: str) -> None:
    """A share of at least one example."""
    _share(value, where)
    _object(count=_some)(value, where)


_BIN = _object(count=_some, confidence=_part_of_one, accuracy=_part_of_one)
_ERRORS = _object(rms=_part_of_one, ece=_part_of_one, nll=_number)
_METHOD = _object(method=_text, points=_count, accuracy=_part_of_one)
_PICTURES = _object(
    label=_text,
    predicted=_text,
    largest_change=_positive,
    image=_picture,
    attacked=_picture,
    delta=_picture,
    spectrum=_picture,
)
_SEVERITY = _object(_measured, severity=_count)
_KIND = _object(
    kind=_text,
    severities=_all(_SEVERITY, some=True),
    mean_error=_part_of_one,
    rms=_part_of_one,
    extra=_flag,
)
_REPORT = _object(
    name=_text,
    about=_object(
        data=_text,
        points=_count,
        classes=_count,
        seed=_text_or_number,
        hrrl_ext=_text_or_number,
    ),
    accuracy=_object(
        _measured,
        worst=_object(_measured, name=_text),
        concept_mean=_part_of_one,
        train_weighted=_maybe(_part_of_one),
        concepts=_all(_object(_share, name=_text), some=True),
    ),
    perturbation_curve=_object(points=_all(_object(_measured, step=_number), some=True)),
    calibration=_object(
        count=_count,
        mean_confidence=_part_of_one,
        rms=_part_of_one,
        ece=_part_of_one,
        rms_without_last_bin=_maybe(_part_of_one),
        equal_width=_all(_BIN),
        temperature=_maybe(_object(value=_number, fitted_on=_count, before=_ERRORS, after=_ERRORS)),
    ),
    corruptions=_maybe(
        _object(
            count=_count,
            kinds=_all(_KIND, some=True),
            mean_error=_maybe(_part_of_one),
            mce=_maybe(_number),
        )
    ),
    attacks=_all(
        _object(
            _measured,
            spec=_text,
            norm=_text,
            eps=_number,
            clean=_measured,
            methods=_all(_METHOD),
            pictures=_all(_PICTURES),
        )
    ),
    max_epsilon=_all(_object(norm=_text, eps=_number, cost=_part_of_one)),
    warnings=_all(_object(name=_text, text=_text)),
)
