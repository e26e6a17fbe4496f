"""Whatever a report.json holds: its texts come out as texts, and what is no number is refused by place."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from test_evaluate import DIGITS, SHAPES, network
from test_html import Page

from hrrl_ext.evaluation import Report, evaluate, write_html
from hrrl_ext.evaluation.page import page
from hrrl_ext.evaluation.schema import check_report, is_picture

HOSTILE = {
    "element": "<script>alert(1)</script>",
    "attribute": "\"><img src=x onerror=alert(1)> ' onload='alert(2)' \"",
    "entities": "&lt;b&gt; &amp;amp; &#60; & &copy",
    "endings": "</style></title></text></svg></td></table></html>--> ]]> <!--",
    "template": "{{ 7 * 7 }} {% raw %} {# x #} {0} %s %(x)s",
    "lines": "one\ntwo\r\n\tthree\x0b\x0c four",
    "direction": "\u202eabc \u05d0\u05d1 \u2066",
    "long": "<b> & 'x' \"y\" " * 700,
    "picture": "data:image/svg+xml,<svg onload=alert(1)>",
}
ALL = "=".join(HOSTILE.values())


Node = tuple[str, ...]


class Dom(Page):
    """A page as a list: elements with their attributes, what closes them, and the texts between."""

    def __init__(self, text: str) -> None:
        self.nodes: list[Node] = []
        super().__init__(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.nodes.append((tag, *(part or "" for pair in attributes for part in pair)))
        super().handle_starttag(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self.nodes.append(("/", tag))
        super().handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.nodes.append(("", data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"neither a comment, a declaration nor an instruction: {data}")

    unknown_decl = handle_pi = handle_comment


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Of a report with something in every part, as it is in report.json."""
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.install(patch)
        report = evaluate(
            network(), DIGITS, name="model", concepts=SHAPES, train=DIGITS, points=40,
            attack_points=12, corruption_points=6, max_epsilon=["l2"], attacks=["linf:4/255", "l2:2"],
            corruptions=["darker", "inverted"], steps=[0.0, 0.5],
        )  # fmt: skip
    value = json.loads(json.dumps(report.to_dict()))
    value["corruptions"]["mce"] = 76.7
    value["attacks"][1]["pictures"] = value["attacks"][1]["pictures"][:1]
    assert value["attacks"][1]["pictures"]
    del value["format"]
    value["about"]["a key"] = {"of one's own": ["text", 1, None]}
    assert {w["name"] for w in value["warnings"]} >= {"few points", "attack"}
    return value


Place = tuple[str | int, ...]


def places(value: Any, wanted: Callable[[Any], bool], at: Place = ()) -> Iterator[Place]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, wanted, (*at, key))
    elif wanted(value):
        yield at


def texts(value: Any) -> list[Place]:
    return list(places(value, lambda leaf: isinstance(leaf, str) and not is_picture(leaf)))


def with_leaf(value: Any, at: Place, leaf: Any) -> dict[str, Any]:
    """A copy; what is on the way to the place is copied, the rest shared."""
    if not at:
        return leaf
    changed = copy.copy(value)
    changed[at[0]] = with_leaf(value[at[0]], at[1:], leaf)
    return changed


def read(value: Any, folder: Path) -> Report:
    text = json.dumps({"format": 1, **value})
    (folder / "report.json").write_text(text, encoding="utf-8")
    return Report.from_json(folder)


def nodes(report: Report) -> list[Node]:
    return Dom(page([report])).nodes


def tame(text: str) -> str:
    """As long, and cut at the same place where a chart has no room for it."""
    return "H" * len(text)


def without(found: list[Node], texts: list[str]) -> list[Node]:
    """The nodes with T for each of the texts: as it is, quoted, cut, and as a sentence begins."""
    forms: list[str] = []
    for text in texts:
        quoted = json.dumps(text, ensure_ascii=False)[1:-1]
        forms += [text, quoted, text[:1].upper() + text[1:], text[:27] + "…"]
    forms.sort(key=len, reverse=True)

    def put(part: str) -> str:
        for form in forms:
            part = part.replace(form, "T")
        return part

    return [tuple(map(put, node)) for node in found]


def test_every_text_in_turn(whole: dict[str, Any]) -> None:
    """The page is the one with a harmless text in its place: no element and no attribute more."""
    found = texts(whole)
    assert len(found) > 30  # some come and go with what is warned of
    for at in found:
        got, expected = (
            without(nodes(Report(**with_leaf(whole, at, text))), [text])
            for text in (ALL, tame(ALL))
        )
        assert any("T" in node[-1] for node in got if node[0] == ""), at
        assert got == expected, at


@pytest.mark.parametrize("name", HOSTILE)
def test_all_texts_at_once(name: str, whole: dict[str, Any], tmp_path: Path) -> None:
    """From a file, as hrrl report reads it; names of its own in "about" as well."""
    pages = []
    for make in (str, tame):
        value, used = whole, []
        for number, at in enumerate(texts(whole)):
            text = f"{make(HOSTILE[name])}{number:03}"
            value = with_leaf(value, at, text)
            used.append(text)
        key = f"{make(HOSTILE[name])}key"
        value = with_leaf(value, ("about",), value["about"] | {key: {key: key}})
        pages.append(without(nodes(read(value, tmp_path)), [*used, key]))
    assert pages[0] == pages[1]
    assert sum("T" in part for node in pages[0] for part in node) > 100


def test_what_a_page_cannot_write_shows_as_a_question_mark(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    report = read(whole | {"name": "a\ud800b"}, tmp_path)
    write_html(report, tmp_path / "page.html")
    assert "Evaluation of a?b" in (tmp_path / "page.html").read_text(encoding="utf-8")
    str(report).encode()


def test_text_of_a_report_is_a_line_each(whole: dict[str, Any]) -> None:
    value = whole
    before = str(Report(**whole)).splitlines()
    for at in texts(whole):
        value = with_leaf(value, at, HOSTILE["lines"] + "\x1b[2J")
    after = str(Report(**value)).splitlines()
    assert len(after) == len(before)
    assert not any("\x1b" in line for line in after)


# What is no report


def refused(value: Any, folder: Path) -> str:
    """Why; "" if it is read, and then everything can be shown."""
    try:
        report = read(value, folder)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{folder / 'report.json'} is no report as it was written: ")
        assert message.endswith("; evaluate again")
        assert "\n" not in message and len(message) < 300
        return message
    page([report])
    str(report)
    return ""


@pytest.mark.parametrize(
    "bad",
    ["0.5", math.nan, math.inf, None, [], {}, True, 10**400, -1, 1.5],
    ids=lambda v: str(v)[:5],
)
def test_every_number_in_turn(bad: Any, whole: dict[str, Any], tmp_path: Path) -> None:
    """It is refused by its place, or shown as it is, as a dash or among all that the file holds."""
    found = list(places(whole, lambda leaf: isinstance(leaf, int | float)))
    reasons = {at: refused(with_leaf(whole, at, bad), tmp_path) for at in found}
    for at, why in reasons.items():
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in at)[1:]
        assert not why or f": {place} " in why or f": {place.rpartition('.')[0]}." in why, at
    must = [
        ("accuracy", "accuracy"), ("accuracy", "concepts", 0, "low"), ("calibration", "ece"),
        ("perturbation_curve", "points", 1, "correct"), ("attacks", 0, "clean", "accuracy"),
        ("corruptions", "kinds", 0, "severities", 4, "accuracy"), ("about", "points"),
    ]  # fmt: skip
    assert all(reasons[at] for at in must)


def test_every_entry_left_out_in_turn(whole: dict[str, Any], tmp_path: Path) -> None:
    def entries(value: Any, at: Place = ()) -> Iterator[Place]:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs if isinstance(value, dict | list) else ():
            yield (*at, key)
            yield from entries(inner, (*at, key)) if isinstance(inner, dict | list) else ()

    missing = 0
    for at in entries(whole):
        *way, last = at
        within: Any = whole
        for key in way:
            within = within[key]
        if isinstance(within, dict) and len(at) > 1:
            left = {key: inner for key, inner in within.items() if key != last}
            missing += " is missing" in refused(with_leaf(whole, tuple(way), left), tmp_path)
        elif isinstance(within, dict):
            continue  # of another version, as test_evaluate has it
        else:
            shorter = [inner for number, inner in enumerate(within) if number != last]
            refused(with_leaf(whole, tuple(way), shorter), tmp_path)
    assert missing > 50


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/x.png",
        "javascript:alert(1)",
        HOSTILE["picture"],
        "data:image/png;base64,&",
        "",
    ],
)
def test_a_picture_is_a_png_of_the_report_itself(
    address: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    at = ("attacks", 1, "pictures", 0, "delta")
    why = refused(with_leaf(whole, at, address), tmp_path)
    assert "attacks[1].pictures[0].delta must be a PNG as a data: address, got " in why


def test_null_is_a_dash_where_nothing_was_measured(whole: dict[str, Any], tmp_path: Path) -> None:
    value = with_leaf(whole, ("calibration", "temperature"), None)
    value = with_leaf(value, ("accuracy", "train_weighted"), None)
    value = with_leaf(value, ("corruptions", "mean_error"), None)
    absent = {**value["accuracy"]["concepts"][1], "correct": 0, "count": 0, "accuracy": None}
    value = with_leaf(value, ("accuracy", "concepts", 1), absent)
    assert refused(value, tmp_path) == ""
    dashes = sum(node == ("", "–") for node in nodes(read(value, tmp_path)))
    assert dashes == 1 + 1 + 7 + 2  # concept, mean error, temperature and after it; about's own


@pytest.mark.parametrize(
    "bad", [None, 7, "x", [], {}, [{}], {HOSTILE["element"]: HOSTILE["attribute"]}], ids=ascii
)
def test_every_node_in_turn_of_another_type(bad: Any, whole: dict[str, Any]) -> None:
    """Texts, pictures, lists and objects: refused by place, or shown, and then nothing reaches the page as
    markup."""

    def nodes_of(value: Any, at: Place = ()) -> Iterator[Place]:
        yield at
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in pairs:
                if not isinstance(inner, int | float):  # numbers have their own test
                    yield from nodes_of(inner, (*at, key))

    refused = 0
    for at in list(nodes_of(whole))[1:]:
        value = with_leaf(whole, at, bad)
        try:
            check_report(value)
        except ValueError as error:
            why = str(error)
        else:
            why = ""
        if why:
            assert why.startswith(str(at[0])), at
            refused += 1
            continue
        shown = page([Report(**value)])
        assert HOSTILE["element"] not in shown and "<img src=x" not in shown, at
    assert refused > 50 or bad is None


def test_every_picture_in_turn_from_elsewhere(whole: dict[str, Any]) -> None:
    found = list(places(whole, is_picture))
    assert len(found) > 4
    for at in found:
        for address in ("//example.org/x.png", "data:image/png,x", "data:text/html;base64,AAAA"):
            with pytest.raises(ValueError, match=r"must be a PNG as a data: address, got '"):
                check_report(with_leaf(whole, at, address))
