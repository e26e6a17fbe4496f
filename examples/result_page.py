"""The tables of a results page: what its example measured, between marks in the Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def with_tables(page: Path, tables: Mapping[str, str]) -> str:
    """The page's text with each table between its marks, <!-- table: NAME --> and <!-- end: NAME -->.

    ValueError where the page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        marks = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if not all(mark in text for mark in marks):
            raise ValueError(f"{page} has no place for the table: {' ... '.join(marks)}")
        between = re.compile(f"(?<={marks[0]}\n).*(?={marks[1]})", re.DOTALL)
        text = between.sub(lambda _, table=table: table + "\n", text)
    return text
