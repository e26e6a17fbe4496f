"""Tables of text: CSV with any usual delimiter, TSV, JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._regular import regular
from ..spec import listed, not_known, repeated

TABLES = (".csv", ".tsv", ".jsonl")
"""Suffixes of what is read."""
LAYOUT = (
    "a metadata CSV, TSV or JSON lines with a header, a column of image files and a column of classes "
    '("meta.csv", or with the columns named "meta.csv:image=FILE,label=CLASS,split=SPLIT")'
)


@dataclass(frozen=True)
class Table:
    """All cells are text; `lines` holds the line of the file in which each row ends."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        at = self.header.index(name)
        return [row[at] for row in self.rows]


def read_table(path: Path, *, least: int = 1) -> Table:
    """Of so many rows at ``least``. Raises FileNotFoundError, or ValueError naming the line."""
    if not regular(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {LAYOUT}")
    header, rows, lines, at = [], [], [], 0
    read = _json_lines if path.suffix.lower() == ".jsonl" else _delimited
    try:
        for at, row in read(path):
            if at == 0:
                header = row
                continue
            if len(row) != len(header):
                raise ValueError(f"{len(row)} values, the header has {len(header)}")
            rows.append(row)
            lines.append(at)
    except _Line as error:
        raise ValueError(f"{path}, line {error.line}: {error}; expected {LAYOUT}") from error
    except ValueError as error:
        raise ValueError(f"{path}, line {at}: {error}; expected {LAYOUT}") from error
    if len(rows) < least or (twice := repeated(header)):
        what = "no image is listed" if len(rows) < least else f"column {listed(twice)} comes twice"
        raise ValueError(f"{path}: {what}; expected {LAYOUT}")
    return Table(path, header, rows, lines)


def read_header(path: Path) -> list[str]:
    """The names of the columns alone; none where the file cannot be read, which `read_table` says."""
    read = _json_lines if path.suffix.lower() == ".jsonl" else _delimited
    try:
        return next(read(regular(path)))[1]
    except (OSError, ValueError, StopIteration):
        return []


def find_column(header: list[str], name: str | None, usual: tuple[str, ...], what: str) -> str:
    """The column of this name, or the only one with a usual name, whatever its case."""
    if name is not None:
        if name not in header:
            raise ValueError(f"{what} column {not_known(name, header)}")
        return name
    found = usual_columns(header, usual)
    if len(found) != 1:
        got = f"{listed(found)} may all be it" if found else "none found"
        raise ValueError(
            f"{what} column: {got}; name it, of the columns {listed(header)}; expected {LAYOUT}"
        )
    return found[0]


def usual_columns(header: list[str], usual: tuple[str, ...]) -> list[str]:
    return [column for column in header if column.lower() in usual]


class _Line(ValueError):
    def __init__(self, line: int, message: object) -> None:
        super().__init__(str(message))
        self.line = line


def _delimited(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header as line 0, then the rows with their lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=_delimiter(path), strict=True)
        try:
            yield 0, [name.strip() for name in next(reader, [])]
            for row in reader:
                if row:
                    yield reader.line_num, [value.strip() for value in row]
        except (ValueError, csv.Error) as error:  # ValueError: also undecodable UTF-8
            raise _Line(reader.line_num, error) from error


def _delimiter(path: Path) -> str:
    """Of a .csv the comma, where its header has one; else the semicolon or the tab that it has."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    return next((sign for sign in ",;\t" if sign in header), ",")


def _json_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The keys of the first object as line 0, then the values of each."""
    header: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig").strip()
                if not text:
                    continue
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise _Line(number, f"not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise _Line(number, f"expected an object, got {type(row).__name__}")
            if not header:
                header = list(row)
                yield 0, header
            if set(row) != set(header):
                raise _Line(number, f"keys {listed(list(row))}, the first has {listed(header)}")
            yield number, [cell_text(row[name]) for name in header]


def cell_text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else json.dumps(value)
