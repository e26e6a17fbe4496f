"""Tables of text, and of Markdown. What is in a cell stays in it, whatever its text is.

In a page of results each table stands between marks, so that it can be made again and the prose stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._regular import regular

_BREAK = re.compile(r"\s*[\t-\r\x1c-\x1f\x85\u2028\u2029]\s*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*\[\]<&|~]|(?<![^\W_])_|_(?![^\W_])")  # "_" within a word is itself


_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # the last four are as wide as Chinese characters
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def as_cell(value: Any) -> Any:
    """``value`` for a CSV: before a text that a spreadsheet would run as a formula stands a quote, ' .

    OWASP's rule for what users name. A number is one, with its sign, also as text.
    """
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def from_cell(text: str) -> str:
    """What :func:`as_cell` was given, of texts."""
    return text[1:] if text[:1] == "'" and as_cell(text[1:]) == text else text


def one_line(text: str) -> str:
    r"""``text`` without breaks; characters that a terminal obeys, or cannot write, as ``\x1b``.

    Among them are those that turn the direction of what follows.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], _BREAK.sub(" ", text))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """One line per row: the first column to the left, the others to the right."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    width = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(width[0]),
                *(v.rjust(w) for v, w in zip(row[1:], width[1:], strict=True)),
            ]
        )
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown, of plain texts; its first row is the header.

    The first column to the left, the others, which are numbers, to the right.
    """
    header, *body = [[escaped(cell) for cell in row] for row in rows]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """``text`` in a line of Markdown that shows it as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def place(name: str, table: str = "") -> str:
    """Where a table stands in a page: between <!-- table: NAME --> and <!-- end: NAME -->."""
    begin, end = _marks(name)
    return "\n".join(filter(None, (begin, table, end)))


def with_tables(page: Path, tables: Mapping[str, str]) -> str:
    """The page's text with each table between its marks (:func:`place`), and all else as it is.

    ValueError where the page has no place for one.
    """
    text = require_places(page, tables)
    for name, table in tables.items():
        text = f"{table}\n".join(_between(name).split(text, maxsplit=1))
    return text


def require_places(page: Path, names: Iterable[str]) -> str:
    """The page's text. ValueError names the tables that it has no place for."""
    try:
        text = regular(page).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{page} is not text in UTF-8: {error}; give another file") from error
    if lacking := [name for name in names if _between(name).search(text) is None]:
        raise ValueError(
            f"{page} has no place for the table {', '.join(map(repr, lacking))}: put the lines "
            f"{' and '.join(_marks('NAME'))} where each is to stand, or give another file"
        )
    return text


def _between(name: str) -> re.Pattern[str]:
    begin, end = (re.escape(mark) for mark in _marks(name))
    return re.compile(f"(?<={begin}\n).*?(?={end})", re.DOTALL)


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- table: {name} -->", f"<!-- end: {name} -->"
