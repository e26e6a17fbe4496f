"""Rows of a CSV file that outlive an interruption: what is there is not measured again."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from hrrl_ext.storage import write_csv

Row = dict[str, str]


class KeptRows:
    """The rows of ``path``, which all have the same columns; numbers have six digits.

    Pieces of work are told apart by what they have in the columns ``key``; a piece may have many rows,
    and is there whole or not at all.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self.rows: list[Row] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, *piece: object) -> bool:
        return any(
            all(row[k] == _text(p) for k, p in zip(self.key, piece, strict=True))
            for row in self.rows
        )

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        self.rows += [{name: _text(value) for name, value in row.items()} for row in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(self.path, list(self.rows[0]), self.rows, line_end="\n")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
