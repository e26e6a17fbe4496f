"""Tables of text and of Markdown keep their cells, whatever is in them."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from hrrl_ext._tables import (
    aligned,
    as_cell,
    from_cell,
    markdown,
    one_line,
    place,
    require_places,
    with_tables,
)
from hrrl_ext.storage import write_csv

ODD = [
    "a|b", "a\\|b", "\\", "a\\", "|", "a\nb", "a\r\n\n b", "a\u2028b", "<script>", "&amp;", "`x`", "**x**", "_x_",
    "~~x~~", "[x](y)", "a\tb", "\x1b[2J", "a\u202eb", "\ud800", "", " ", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_a_line_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    line = one_line(f"<{text}>")
    assert len(line.splitlines()) == 1
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert "\u202e" not in line
    line.encode()  # which a lone surrogate could not be


def test_ordinary_text_is_left_as_it_is() -> None:
    for text in ("worst concept  0.0 % (8)", "größte ε → 8/255", "בית", "linf:8/255", ""):
        assert one_line(text) == text
    assert one_line("one\n  two\x1b") == "one two\\x1b"


def read(table: str) -> list[list[str]]:
    """The rows by a parser of Markdown (rich brings it), which must find text alone in every cell."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rows: list[list[str]] = []
    for token in parser.parse(table):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special"}
            rows[-1].append("".join(child.content for child in token.children))
    return rows


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_markdown_has_a_cell_per_cell(text: str) -> None:
    shown = one_line(text).strip()
    rows = [["name", text, "end"], [text, "1", text]]
    assert read(markdown(rows)) == [["name", shown, "end"], [shown, "1", shown]]


def test_markdown_of_ordinary_names() -> None:
    table = markdown([["features", "gaussian_noise, %"], ["L2-SP (1.5)", "25.0 ± 7.1"]])
    assert table == "| features | gaussian_noise, % |\n| --- | ---: |\n| L2-SP (1.5) | 25.0 ± 7.1 |"


def test_aligned_rows_stay_rows() -> None:
    assert aligned([["a\nb", "1"], ["c", "22"]]) == "a b   1\nc    22"


FORMULAS = [
    "=1+1", "+a", "-a", "@a", "\t=a", "\r=a", "\n=a", "＝a", "－1+1", "'=a", "''@a", "-1+cmd|' /C calc'!A0", "=", "-",
]  # fmt: skip
PLAIN = ["a=1", "'a", "''", "", " =1", "-1", "+1.5", "-.5e-3", "é", -1, -1.5, None]


@pytest.mark.parametrize("value", [*FORMULAS, *PLAIN], ids=ascii)
def test_no_cell_of_a_csv_is_a_formula_and_each_reads_back(value: object, tmp_path: Path) -> None:
    cell = as_cell(value)
    assert cell == (f"'{value}" if value in FORMULAS else value)
    if isinstance(value, str):
        assert from_cell(cell) == value
        write_csv(tmp_path / "t.csv", [value, "b"], [{value: value, "b": 1}], line_end="\n")
        with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert [from_cell(row[0]) for row in rows] == [value, value]


def test_tables_of_a_page_are_made_again_and_its_prose_stays(tmp_path: Path) -> None:
    page, names = tmp_path / "page.md", ["a, b", "c (d)", "e"]
    places = "\n\nProse.\n\n".join(
        [place("a, b"), place("c (d)", "old\n\nold"), place("e", "kept")]
    )
    page.write_text(f"# Ours\n\n{places}\n", encoding="utf-8")
    new = with_tables(page, {"a, b": "new \\1", "c (d)": ""})
    assert new.split("\n\nProse.\n\n") == [
        "# Ours\n\n<!-- table: a, b -->\nnew \\1\n<!-- end: a, b -->",
        "<!-- table: c (d) -->\n\n<!-- end: c (d) -->",
        f"{place('e', 'kept')}\n",
    ]
    assert require_places(page, names) == page.read_text(encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"page.md has no place for the table 'f', 'g': put the lines"
    ):
        require_places(page, [*names, "f", "g"])
    page.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"page.md is not text in UTF-8: .*give another file"):
        require_places(page, [])
