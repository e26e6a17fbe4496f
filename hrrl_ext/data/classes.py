"""Classes have names, and each list of them its own numbers: labels are matched by the names.

A model knows its classes in the order of its logits. Data that number the same classes in another
order, or have only some of them, are labelled with the model's numbers before anything is measured or
trained (:func:`with_classes`); data of other classes are refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from .._reading import read_text
from .._regular import regular
from ..spec import closest
from .columns import value_of
from .image_sets import ImageSet

T = TypeVar("T")
_SHOWN = 3  # names in a message
_WAYS = (
    "name the classes of both alike: by folders, in a CSV, by class_names in an .npz, by classes= of "
    "ArrayImages and FolderImages; or give the model's names as the data have them (--classes of a "
    "command)"
)


def with_classes(
    images: ImageSet, known: Sequence[str], *, of: str = "the model", data: str = "data"
) -> ImageSet:
    """``images``, labelled with the numbers that their classes have among ``known``, by their names.

    Names that are equal numbers are the same ("3", "3.0", "03"). A class without an image counts for
    nothing. Where one of the two has numbers for names (0, 1, ..., as labels without names have) and
    no name is common, the classes are taken for the same in their order, with a warning.

    Args:
        known: the names in the order of a model's logits, or of other images.
        of, data: whose names ``known`` are, and those of ``images``, in messages.

    Raises ValueError for a class with an image that is not known, or a name that stands twice.
    """
    met = images.target.unique().tolist()
    numbers = numbers_among(known, images.classes, met, of=of, data=data)
    return images if numbers is None else images.relabelled(known, numbers)


def numbers_among(
    known: Sequence[str], found: Sequence[str], met: Sequence[int], *, of: str, data: str = "data"
) -> list[int] | None:
    """The number among ``known`` of each class of ``found``: `with_classes` for labels without images.

    met: the classes that have an example; of the others the number is -1. None: they are the same as
    they are counted.
    """
    known, found = list(known), list(found)
    if known == found:
        return None
    number = _numbers([found[c] for c in met], known)
    unknown = [found[c] for c, n in zip(met, number, strict=True) if n is None]
    if len(unknown) == len(met) and len(found) == len(known) and _counted_either(known, found):
        _warn_of_order(known, found, of, data)
        return None
    if unknown:
        meant = closest(unknown[0], known) if value_of(unknown[0]) is None else None
        hint = "" if meant is None else f" (did you mean {meant!r}?)"
        raise ValueError(
            f"{_both(known, found, of, data)}: {unknown[0]!r}{hint} is none of those of {of}; {_WAYS}"
        )
    numbers = [-1] * len(found)
    for c, n in zip(met, number, strict=True):
        numbers[c] = -1 if n is None else n
    return numbers


def require_same_classes(
    known: Sequence[str], found: Sequence[str], *, of: str, data: str = "data"
) -> None:
    """That two models have the same classes in the same order, so that their logits mean the same.

    ValueError where that is not so; a warning where one of the two has numbers for names.
    """
    if list(known) == list(found):
        return
    if len(known) == len(found):
        number = _numbers(found, known)
        if number == list(range(len(found))):
            return
        if not any(n is not None for n in number) and _counted_either(known, found):
            _warn_of_order(known, found, of, data)
            return
    raise ValueError(
        f"{_both(known, found, of, data)}; give models of the same classes, in the same order"
    )


def read_classes(file: str | os.PathLike[str]) -> list[str]:
    """Names of classes from a text file, one a line, in the order of a model's logits."""
    path = Path(file)
    if not regular(path).is_file():
        raise FileNotFoundError(
            f"classes: {path} does not exist; expected a text file, the name of a class per line"
        )
    names = [line.strip() for line in read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        where = f", line {names.index('') + 1}" if names else ""
        raise ValueError(f"classes: {path}{where}: expected the name of a class")
    return names


def _numbers(found: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Where each of ``found`` stands in ``known``: by its name, else by its value."""
    by_name, by_value = _places(known), _places([value_of(name) for name in known])
    numbers: list[int | None] = []
    for name in found:
        value = value_of(name)
        places = by_name.get(name) or ([] if value is None else by_value.get(value, []))
        if len(places) > 1:
            raise ValueError(
                f"classes: {name!r} stands {len(places)} times among {_few(known)}, so that labels "
                "cannot be matched by names; give every class a name of its own"
            )
        numbers.append(places[0] if places else None)
    for n, places in _places(numbers).items():
        if len(places) > 1:
            one, other = (found[place] for place in places[:2])
            raise ValueError(
                f"classes: {one!r} and {other!r} are both {known[n]!r} of {_few(known)}"
            )
    return numbers


def _places(names: Sequence[T | None]) -> dict[T, list[int]]:
    places: dict[T, list[int]] = {}
    for i, name in enumerate(names):
        if name is not None:
            places.setdefault(name, []).append(i)
    return places


def _counted_either(known: Sequence[str], found: Sequence[str]) -> bool:
    """Whether the names of one are their own numbers, as of labels that nobody has named."""
    return any(list(names) == [str(c) for c in range(len(names))] for names in (known, found))


def _warn_of_order(known: Sequence[str], found: Sequence[str], of: str, data: str) -> None:
    warnings.warn(
        f"{_both(known, found, of, data)}: they are taken for the same, in their order, such as "
        f"{found[0]!r} for {known[0]!r}",
        stacklevel=3,
    )


def _both(known: Sequence[str], found: Sequence[str], of: str, data: str) -> str:
    return f"{data} has {_few(found)}, {of} {_few(known)}"


def _few(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} classes ({', '.join(names[:_SHOWN])}{more})"
