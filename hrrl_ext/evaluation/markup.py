"""Pieces of a page: tables, cells and foldings. Texts are escaped here, cells are HTML already."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .parts import Part
from .report import Report, interval, percent
from .svg import Point


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False
) -> str:
    """Cells are HTML already; the first of a row is its head."""
    of = ' class="text"' if text else ""
    head = "".join(f'<th scope="col">{h}</th>' if h else "<td></td>" for h in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td{of}>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll"><table{of}><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def folded(title: str, content: str, *, unfolded: bool = False) -> str:
    return f"<details{' open' if unfolded else ''}><summary>{title}</summary>{content}</details>"


def heads(first: str, reports: Sequence[Report]) -> list[str]:
    return [first, *(escape(report.name) for report in reports)]


def share(part: Part | None, *, counts: bool = False) -> str:
    if part is None or not part["count"]:
        return "–"
    of = f" {part['correct']}/{part['count']}" if counts else ""
    return f"{percent(part['accuracy'])}<small>{interval(part)}{of}</small>"


def known(x: float, part: Part) -> Point:
    return Point(x, part["accuracy"], part["low"], part["high"])


def point(x: float, part: Part | None) -> Point | None:
    return None if part is None or not part["count"] else known(x, part)


def entry(part: Part, keys: Sequence[str]) -> float | None:
    value: Any = part
    for key in keys:
        value = None if value is None else value[key]
    return value


def percent_entry(part: Part, keys: Sequence[str]) -> str:
    return percent(entry(part, keys))


def plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(
        "–"
        if value is None
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def words(name: str) -> str:
    return escape(name.replace("_", " "))
