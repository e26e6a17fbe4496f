"""Concept files: which concept every class belongs to, as JSON or CSV, or every example, as CSV.

JSON is one object, {"class name or index": "concept name", ...}; CSV has the header
`class,concept`. The order of the lines matters in one way only: concepts are numbered by first
appearance in the file. Concepts that cut across classes are CSV with the header `example,concept`.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._regular import regular
from .._tables import from_cell
from ..spec import listed, nearest, repeated
from ..storage import write_csv, write_json

_CLASS_HEADER, _EXAMPLE_HEADER = "class,concept", "example,concept"
_CLASS_LAYOUT = f'JSON {{"class": "concept", ...}} or CSV with the header `{_CLASS_HEADER}`'
LAYOUT = f"{_CLASS_LAYOUT}, or `{_EXAMPLE_HEADER}` for one of each example"


def read_concept_file(path: str | os.PathLike[str]) -> dict[str, str]:
    """Class name or index → concept name, in file order.

    Raises FileNotFoundError, or ValueError for a file of another layout, an empty name or a class
    given twice.
    """
    path = Path(path)
    if not regular(path).is_file():
        raise FileNotFoundError(f"concept file {path} does not exist; expected {_CLASS_LAYOUT}")
    readers = {".json": _json_pairs, ".csv": csv_pairs}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"concept file {path}: unknown suffix {path.suffix!r}; expected {_CLASS_LAYOUT}"
        )
    try:
        pairs = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
        return _checked(pairs)
    except (ValueError, RecursionError, csv.Error) as error:  # also of JSON and UTF-8
        raise ValueError(f"concept file {path}: {error}; expected {_CLASS_LAYOUT}") from error


def write_concept_file(path: str | os.PathLike[str], concept_of: Mapping[str, str]) -> None:
    """Write class → concept as JSON. Atomic: a reader sees the old file or the whole new one."""
    write_json(path, concept_of)


def is_example_file(path: object) -> bool:
    """Whether ``path`` is a file of concepts by example: a CSV headed `example,concept`."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    path = Path(path)
    if path.suffix.lower() != ".csv" or not regular(path).is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as f:
        header = next(csv.reader([f.readline(100)]), [])
    return [cell.strip() for cell in header] == _EXAMPLE_HEADER.split(",")


def read_example_concepts(path: str | os.PathLike[str], count: int) -> list[str]:
    """Concept name of each of ``count`` examples, whose indices 0, 1, ... stand in the file once each.

    Raises ValueError for indices that are missing, given twice or out of range, and for an empty name.
    """
    path = regular(path)
    try:
        pairs = csv_pairs(path.read_text(encoding="utf-8-sig"), _EXAMPLE_HEADER)
        return _by_example([(example, from_cell(name)) for example, name in pairs], count)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"concept file {path}: {error}") from error


def write_example_concepts(path: str | os.PathLike[str], concepts: Sequence[str | int]) -> None:
    """Write the concept of every example [N] as CSV. Atomic: the old file or the whole new one."""
    rows = ({"example": i, "concept": concept} for i, concept in enumerate(concepts))
    write_csv(path, ["example", "concept"], rows, line_end="\n")


def match_classes(concept_of: Mapping[str, str], classes: Sequence[str] | None) -> list[str]:
    """Concept name of each class, in class order [C].

    Keys are class names where `classes` is given; keys that are all numbers are class indices,
    unless the classes themselves carry exactly these names. Raises ValueError naming unknown keys
    (with the nearest known class) and classes left out.
    """
    by_index = all(key.isdecimal() for key in concept_of)
    if classes is None or (by_index and not set(concept_of) <= set(classes)):
        classes = [str(i) for i in range(len(concept_of) if classes is None else len(classes))]
    elif twice := repeated(classes):
        raise ValueError(
            f"class names are not unique ({listed(twice)}); give class indices instead of names"
        )
    known = set(classes)
    if unknown := [key for key in concept_of if key not in known]:
        raise ValueError(
            f"unknown {_noun(unknown)} {nearest(unknown, classes)}; "
            f"{len(classes)} classes are known"
        )
    missing = [name for name in classes if name not in concept_of]
    if missing:
        raise ValueError(f"no concept is given for {_noun(missing)} {listed(missing)}")
    return [concept_of[name] for name in classes]


def csv_pairs(text: str, header: str = _CLASS_HEADER) -> list[tuple[str, str]]:
    """(class, concept) of each line below the header; blank lines are skipped."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = [[cell.strip() for cell in line] for line in lines if any(line)]
    if not rows or rows[0] != header.split(","):
        raise ValueError(f"the header is {','.join(rows[0]) if rows else ''!r}")
    for row in rows[1:]:
        if len(row) != 2:
            raise ValueError(f"the line {','.join(row)!r} has {len(row)} cells, not 2")
    return [(row[0], row[1]) for row in rows[1:]]


def _json_pairs(text: str) -> list[tuple[str, str]]:
    # A plain dict would keep the last of two equal keys in silence, hence the pairs.
    pairs = json.loads(text, object_pairs_hook=list)
    if not (isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)):
        raise ValueError("the top level is not one object")
    for key, concept in pairs:
        if not isinstance(concept, str):
            raise ValueError(f"the concept of class {key!r} is not a string")
    return pairs


def _by_example(pairs: Sequence[tuple[str, str]], count: int) -> list[str]:
    concept_of = [""] * count
    for example, concept in pairs:
        if not example.isdecimal() or int(example) >= count:
            raise ValueError(
                f"example must be an index in 0..{count - 1}, as there are {count} examples, got "
                f"{example!r}"
            )
        if not concept:
            raise ValueError(f"example {example} has an empty concept")
        if concept_of[int(example)]:
            raise ValueError(f"example {example} is listed twice")
        concept_of[int(example)] = concept
    if "" in concept_of:
        raise ValueError(
            f"no concept is given for example {concept_of.index('')} of {count}; the file must be of "
            "the same images, all of them"
        )
    return concept_of


def _checked(pairs: list[tuple[str, str]]) -> dict[str, str]:
    if not pairs:
        raise ValueError("no class is listed")
    concept_of: dict[str, str] = {}
    for name, concept in pairs:
        if not name or not concept:
            raise ValueError(f"empty name in {name!r} -> {concept!r}")
        if name in concept_of:
            raise ValueError(f"class {name!r} is listed twice")
        concept_of[name] = concept
    return concept_of


def _noun(names: Sequence[str]) -> str:
    return "class" if len(names) == 1 else "classes"
