"""The tables of a results page: what its example measured, between marks in the Markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path

import torch


def with_tables(page: Path, tables: Mapping[str, str]) -> str:
    """The page's text with each table between its marks, <!-- table: NAME --> and <!-- end: NAME -->.

    ValueError where the page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        marks = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        between = re.search(f"(?<={marks[0]}\n).*(?={marks[1]})", text, re.DOTALL)
        if between is None:
            raise ValueError(f"{page} has no place for the table: {' ... '.join(marks)}")
        text = f"{text[: between.start()]}{table}\n{text[between.end() :]}"
    return text


def processor() -> str:
    """Of the machine that writes the page."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, torch {torch.__version__}"
