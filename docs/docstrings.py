"""Docstrings of this house as reStructuredText. They are set for a terminal:

- a block that is indented is an equation, or code;
- lines ``name   what it is``, set in two columns, are a table of names, and lines
  ``name: what it is`` with more below them a list;
- a list may follow its sentence without an empty line;
- ``|x|``, ``coef_`` and ``*`` mean themselves.

Sections (``Args:``, ``Raises:``) are left to napoleon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns|Yields):$")
ENTRY = re.compile(r"([\w\"][\w\", ./\[\]-]*?)  +(\S.*)")
NAMED = re.compile(r"[\w, ]+: ")
LITERAL = re.compile(r"(``.+?``|:\w+:`[^`]+`|`[^`]+`(?:__?)?)")
MARKS = re.compile(r"(?<!\\)(\||\*|\w_(?!\w))")


def to_rst(lines: list[str]) -> list[str]:
    blocks = [
        list(block) for empty, block in groupby(lines, lambda line: not line.strip()) if not empty
    ]
    made: list[str] = []
    told = False  # that what is indented now is literal
    inside = False
    for block in blocks:
        indented = block[0].startswith(" ")
        inside = SECTION.match(block[0]) is not None or (inside and indented)
        if indented and not inside:
            made += block if told else ["::", "", *_deeper(block)]
        else:
            made += _text(block)
            told = block[-1].endswith("::")
        made.append("")
    return made


def _deeper(block: list[str]) -> list[str]:
    return ["    " + line for line in block]


def _text(block: list[str]) -> Iterator[str]:
    if block[0].startswith("==="):  # a table already
        yield from block
        return
    if _is_table(block):
        yield from _table(block)
        return
    if any(line.startswith(" ") for line in block) and NAMED.match(block[0]):
        yield from (line if line.startswith(" ") else f"- {line}" for line in map(plain, block))
        return
    for number, line in enumerate(block):
        if line.startswith("- ") and number and not block[number - 1].startswith(("- ", " ")):
            yield ""
        yield plain(line)


def _is_table(block: list[str]) -> bool:
    """In two columns, which a sentence with a wide space is not."""
    entries = [entry.start(2) for entry in map(ENTRY.fullmatch, block) if entry]
    columns = entries + [len(line) - len(line.lstrip()) for line in block if line.startswith(" ")]
    return any(columns.count(column) > 1 for column in entries)


def _table(block: list[str]) -> Iterator[str]:
    for line in block:
        entry = ENTRY.fullmatch(line)
        if line.startswith(" "):
            yield "    " + plain(line.strip())
        elif entry:
            yield from (f"**{plain(entry[1])}**", "    " + plain(entry[2]))
        else:
            yield f"**{plain(line)}**"


def plain(line: str) -> str:
    """What is no literal or role means itself; `name` in single backticks is a literal."""
    parts = LITERAL.split(line)
    parts[::2] = [MARKS.sub(lambda m: m[1][:-1] + "\\" + m[1][-1], part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" if re.fullmatch(r"`[^`].*`", part) else part for part in parts[1::2]]
    return "".join(parts)
