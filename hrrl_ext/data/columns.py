"""Concepts out of what is known about each example: columns of a metadata file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..spec import listed, nearest

Columns: TypeAlias = Mapping[str, np.ndarray]
"""Column name → one string per example, [N] of dtype object."""

PREFIX = "column:"


def column_concepts(
    concepts: str, columns: Columns, name: str, names: Sequence[str] | None = None
) -> tuple[Tensor, list[str]]:
    """Concept ids [N] int64 and the K names, by "column:NAME" or "column:NAME+NAME+...".

    The concepts are the values that occur, in sorted order (by value where all are numbers);
    of several columns the combinations that occur, named "y=0 place=1"; a value that holds "=" or a quote
    stands in quotes, as text does in JSON, so that no two combinations share a name. name: of the images,
    for messages. names: the concepts of other
    images, such as the training set's, whose ids are to be used. Raises ValueError for an unknown
    column, an empty value, or a value that is not in names.
    """
    chosen = concepts.removeprefix(PREFIX)
    values = _values(chosen, columns, name)
    if names is None:
        return numbered(values)
    number = {known: k for k, known in enumerate(names)}
    unknown = list(dict.fromkeys(value for value in values if value not in number))
    if unknown:
        raise ValueError(
            f"concepts: column {chosen!r} of {name} has the values {listed(unknown)}, which "
            f"the training images do not have; they have {listed(list(names))}"
        )
    ids = torch.tensor([number[value] for value in values], dtype=torch.int64)
    return ids, list(names)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Each once, in sorted order: by value where all are numbers ("2" before "10.0"), else as text.

    Of classes, concepts and folders alike, so that they are numbered alike wherever they are found.
    """
    unique = sorted(set(names))
    numbers = {name: number for name in unique if (number := value_of(name)) is not None}
    return sorted(unique, key=numbers.__getitem__) if len(numbers) == len(unique) else unique


def numbered(names: Iterable[str]) -> tuple[Tensor, list[str]]:
    """Which of the sorted names each is, [N] int64, and those (`sorted_names`)."""
    given = list(names)
    known = sorted_names(given)
    number = {name: k for k, name in enumerate(known)}
    return torch.tensor([number[name] for name in given], dtype=torch.int64), known


def value_of(name: str) -> Decimal | None:
    """The number that ``name`` is, exactly; None where it is none."""
    return Decimal(name) if _NUMBER.fullmatch(name) else None


def _values(chosen: str, columns: Columns, name: str) -> list[str]:
    if not columns:
        raise ValueError(
            f"concepts: {name} has no columns; {PREFIX}NAME goes with images of a metadata CSV"
        )
    parts = [chosen] if chosen in columns else chosen.split("+")
    unknown = [part for part in parts if part not in columns]
    if unknown:
        raise ValueError(
            f"concepts: no column {nearest(unknown, columns)} in {name}; it has "
            f"{listed(list(columns))}"
        )
    for part in parts:
        if (empty := np.flatnonzero(columns[part] == "")).size:
            raise ValueError(f"concepts: column {part!r} of {name} is empty for image {empty[0]}")
    if len(parts) == 1:
        return list(columns[parts[0]])
    rows = zip(*(columns[part] for part in parts), strict=True)
    return [" ".join(f"{p}={_quoted(v)}" for p, v in zip(parts, row, strict=True)) for row in rows]


def _quoted(value: str) -> str:
    """Without "=" a value ends where the next column begins; one that has it could hide that."""
    return json.dumps(value, ensure_ascii=False) if set('="') & set(value) else value
