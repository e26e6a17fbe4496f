"""What a report.json must hold, so that whoever shows it need not doubt a number."""

from __future__ import annotations

import re
from typing import Any

from .._shapes import (
    Shape,
    count,
    expected,
    flag,
    having,
    many,
    maybe,
    number,
    record,
    some,
    text,
    text_or_number,
)

_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def is_picture(value: Any) -> bool:
    """A PNG within a data: address, as :func:`~.pictures.png` writes them."""
    return isinstance(value, str) and _PICTURE.fullmatch(value) is not None


def check_report(value: Any) -> None:
    """ValueError: what is wrong where, such as ``accuracy.concepts[3].count``, in one line."""
    _REPORT(value, "")


def _positive(value: Any, where: str) -> None:
    number(value, where)
    if value <= 0:
        raise expected("a number above 0", value, where)


def _part_of_one(value: Any, where: str) -> None:
    what = "a number in [0, 1]"
    number(value, where, what=what)
    if not -1e-6 <= value <= 1 + 1e-6:  # a mean of single precision
        raise expected(what, value, where)


def _picture(value: Any, where: str) -> None:
    if not is_picture(value):
        raise expected("a PNG as a data: address", value, where)


def _share(value: Any, where: str) -> None:
    """Without an example it has no accuracy."""
    record(correct=count, count=count, low=_part_of_one, high=_part_of_one)(value, where)
    correct, of = value["correct"], value["count"]
    if correct > of:
        raise expected(f"at most the count, {of}", correct, f"{where}.correct")
    record(accuracy=_part_of_one if of else maybe(_part_of_one))(value, where)


def _measured(value: Any, where: str) -> None:
    """A share of at least one example."""
    _share(value, where)
    record(count=some)(value, where)


_BIN = record(count=some, confidence=_part_of_one, accuracy=_part_of_one)
# The likelihood is infinite, which JSON writes as null, where a class that is true was masked.
_ERRORS = record(rms=_part_of_one, ece=_part_of_one, nll=maybe(number))
_METHOD = record(method=text, points=count, accuracy=_part_of_one)
_PICTURES = record(
    label=text,
    predicted=text,
    largest_change=_positive,
    image=_picture,
    attacked=_picture,
    delta=_picture,
    spectrum=_picture,
)
_SEVERITY = record(_measured, severity=count)
_CORRUPTION = record(
    kind=text,
    severities=many(_SEVERITY, least=1),
    mean_error=_part_of_one,
    rms=_part_of_one,
)
_KIND = record(_CORRUPTION, extra=flag)
_ACCURACY = record(
    _measured,
    worst=record(_measured, name=text),
    concept_mean=_part_of_one,
    train_weighted=maybe(_part_of_one),
    concepts=many(record(_share, name=text), least=1),
)
_CURVE = record(points=many(record(_measured, step=number), least=1))
_CALIBRATION = record(
    count=count,
    mean_confidence=_part_of_one,
    rms=_part_of_one,
    ece=_part_of_one,
    rms_without_last_bin=maybe(_part_of_one),
    equal_width=many(_BIN),
    temperature=maybe(record(value=number, fitted_on=count, before=_ERRORS, after=_ERRORS)),
)
_ATTACK = record(
    _measured,
    spec=text,
    norm=text,
    eps=number,
    clean=_measured,
    methods=many(_METHOD),
    pictures=many(_PICTURES),
)
_RADIUS = record(norm=text, eps=number, cost=_part_of_one)
_REPORT = record(
    name=text,
    about=record(
        data=text,
        points=count,
        classes=count,
        seed=text_or_number,
        hrrl_ext=text_or_number,
    ),
    accuracy=_ACCURACY,
    perturbation_curve=_CURVE,
    calibration=_CALIBRATION,
    corruptions=maybe(
        record(
            count=count,
            kinds=many(_KIND, least=1),
            mean_error=maybe(_part_of_one),
            mce=maybe(number),
        )
    ),
    attacks=many(_ATTACK),
    max_epsilon=many(_RADIUS),
    warnings=many(record(name=text, text=text)),
)

_PARTS = {
    "accuracy": _ACCURACY,
    "perturbation curve": _CURVE,
    "calibration": _CALIBRATION,
    "corruption": _CORRUPTION,
    "attack": _ATTACK,
    "max epsilon": _RADIUS,
}


def of_part(name: str) -> Shape:
    """Of a part of an evaluation, such as "attack linf:8/255", as it is kept by itself."""
    begins = next((kind for kind in _PARTS if name.startswith(kind)), None)
    return record(having() if begins is None else _PARTS[begins], seconds=number)
