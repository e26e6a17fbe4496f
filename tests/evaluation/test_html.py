"""The page: whole in one file, well formed, accessible, every number on it, and drawn by a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from test_evaluate import DIGITS, SHAPES, network

from hrrl_ext.evaluation import Report, evaluate, write_html
from hrrl_ext.evaluation.page import page, sections
from hrrl_ext.evaluation.page.sections import leaves
from hrrl_ext.evaluation.page.svg import Point, interval_chart, line_chart, reliability_chart, ticks

VOID = {"meta", "link", "img", "br"}
CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)


class Page(HTMLParser):
    """Elements, texts and what is open; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        assert len(attributes) == len(dict(attributes)), f"an attribute of {tag} is given twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.install(patch)
        settings: dict[str, Any] = {
            "points": 120, "attack_points": 30, "corruption_points": 20, "max_epsilon": ["l2"],
            "attacks": ["linf:4/255", "linf:30/255", "l2:2"],
        }  # fmt: skip
        return [
            evaluate(network(0), DIGITS, name='a <b> & "c"', concepts=SHAPES, **settings),
            evaluate(network(1), DIGITS, name="plain", **settings),
        ]


@pytest.fixture(scope="module")
def text(reports: list[Report]) -> str:
    return page(reports)


def test_nothing_is_fetched(text: str) -> None:
    parsed = Page(text)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert not parsed.all("script")
    assert not re.search(r"https?:|url\(|@import", text)


def test_ids_are_unique_and_links_lead_to_them(text: str) -> None:
    parsed = Page(text)
    ids = Counter(a["id"] for _, a in parsed.elements if "id" in a)
    assert ids
    assert set(ids.values()) == {1}
    for a in parsed.all("a"):
        assert (a["href"] or "").removeprefix("#") in ids
    for _, attributes in parsed.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_it_can_be_read_aloud(text: str) -> None:
    parsed = Page(text)
    assert parsed.all("html")[0]["lang"] == "en"
    assert parsed.all("img")
    assert all(image.get("alt") for image in parsed.all("img"))
    charts = [a for a in parsed.all("svg") if a.get("role") == "img"]
    assert len(charts) == 1 + 1 + 2 + 2  # concepts, curve, a norm each, calibration of each
    assert all(chart.get("aria-label") for chart in charts)
    assert all("aria-hidden" in a for a in parsed.all("svg") if a.get("role") != "img")
    assert text.count("<table") == text.count("<caption>")
    assert all(a.get("scope") in ("row", "col") for a in parsed.all("th"))


def test_every_number_and_text_is_there(reports: list[Report], text: str) -> None:
    told = Counter(Page(text).texts)
    expected: Counter[str] = Counter()
    for report in reports:
        found = list(leaves(json.loads(json.dumps(report.to_dict()))))
        assert len(found) > 200
        expected.update(json.dumps(value, ensure_ascii=False) for _, value in found)
    assert not {value: n for value, n in expected.items() if told[value] < n}


def test_what_is_shown_first_is_right(reports: list[Report], text: str) -> None:
    told = set(Page(text).texts)
    for report in reports:
        for share in (report.accuracy, report.accuracy["worst"], *report.attacks):
            assert f"{100 * share['accuracy']:.1f} %" in told
        assert report.corruptions is not None
        for kind in report.corruptions["kinds"]:
            for severity in kind["severities"]:
                assert f"{100 * (1 - severity['accuracy']):.1f}" in told
        assert f"{100 * report.calibration['rms']:.1f} %" in told
    assert 'a <b> & "c"' in told  # escaped, not marked up
    assert any("No concepts are known" in t for t in told)


def test_names_and_parts(reports: list[Report], tmp_path: Path) -> None:
    write_html(reports[0], tmp_path / "new" / "one.html")
    assert "<!DOCTYPE html>" in (tmp_path / "new" / "one.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="of different names"):
        write_html([reports[0], reports[0]], tmp_path / "two.html")
    with pytest.raises(ValueError, match="at least one"):
        write_html([], tmp_path / "none.html")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_what_was_not_measured_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch)
    report = evaluate(network(), DIGITS.subset([0]), attacks=[], corruptions=["none"])
    ids = {a.get("id") for _, a in Page(page([report])).elements}
    assert "concepts" in ids
    assert not {"attacks", "corruptions"} & ids


def test_reports_of_different_images_are_told_apart(reports: list[Report], text: str) -> None:
    assert "on different images" not in text
    assert "in full" not in text

    def told(other: Report, **about: object) -> dict[str, str]:
        pair = [reports[0], replace(other, about=other.about | about)]
        return {w["name"]: w["text"] for w in sections.warnings(pair) if "different" in w["name"]}

    assert told(reports[1]) == {}
    found = told(
        reports[1], points=7, attack_points=7, corruptions_of="C", left_out={"data": ["a"]}
    )
    assert found == {
        "different images": "The models were evaluated on different images: "
        "left out, points, attack points, corruptions of"
    }
    assert told(reports[1], image_size=9)["different images"].endswith(": image size")
    assert list(told(reports[1], quick_attacks=False)) == ["different attacks"]
    other = {"attack_points": 7, "quick_attacks": False, "corruption_points": 7}
    bare = replace(reports[1], attacks=[], max_epsilon=[], corruptions=None)
    assert told(bare, **other) == {}  # of which it has no numbers
    shown = page([reports[0], replace(reports[1], about=reports[1].about | other)])
    assert "on different images: attack points, corruption points" in shown


# Charts


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", text)]


def test_a_line_is_where_it_should_be() -> None:
    chart = line_chart(
        [("one", [Point(0, 1.0), Point(5, 0.5), Point(10, 0.0)])],
        label="l", x_label="x", y_label="y", width=400, height=300,
    )  # fmt: skip
    (points,) = re.findall(r'<polyline class="line c0" points="([^"]*)"', chart)
    x0, y0, x1, y1, x2, y2 = numbers(points)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert 0 < x0 < x2 < 400
    assert 0 < y0 < y2 < 300  # a share of 1 is at the top


def test_bars_and_whiskers_are_to_scale() -> None:
    rows = [("k", [Point(0, 0.5, 0.25, 0.75), None])]
    chart = interval_chart(rows, ["one", "two"], label="l")
    (left, width) = (
        float(re.search(rf'<rect class="bar".*?{n}="([\d.]+)"', chart)[1]) for n in ("x", "width")
    )
    low, _, high = numbers(re.search(r'class="whisker" d="([^M]*M[^M]*)', chart)[1])
    assert low - left == pytest.approx(width / 2, abs=0.2)
    assert high - left == pytest.approx(1.5 * width, abs=0.2)
    assert "no example" in chart


def test_a_calibrated_bin_is_on_the_diagonal() -> None:
    chart = reliability_chart([(10, 0.25, 0.25), (30, 0.75, 0.5)], run=0, label="l")
    x1, y1, x2, y2 = (
        float(re.search(rf'class="ideal".*?{n}="([\d.]+)"', chart)[1])
        for n in ("x1", "y1", "x2", "y2")
    )
    (ax, ay), (bx, by) = (
        map(float, pair)
        for pair in re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', chart)
    )
    assert (ax, ay) == pytest.approx((x1 + (x2 - x1) / 4, y1 + (y2 - y1) / 4), abs=0.1)
    assert bx == pytest.approx(x1 + 0.75 * (x2 - x1), abs=0.1)
    assert by == pytest.approx((y1 + y2) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 8, [0, 2, 4, 6, 8]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 1e-6, [0, 2e-7, 4e-7, 6e-7, 8e-7, 1e-6]),
        (3, 3, [3]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("high", [0.03, 0.7, 1.3, 9.99, 47, 1234.5])
def test_ticks_are_few_and_within(high: float) -> None:
    found = ticks(0, high)
    assert 3 <= len(found) <= 6
    assert 0 <= found[0] <= found[-1] <= high


# In a browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_it(reports: list[Report], tmp_path: Path) -> None:
    """Headless, told to write its console: no message, and a picture of the page with ink on it."""
    write_html(reports, tmp_path / "page.html")
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,3000",
            f"--screenshot={picture}", (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    from PIL import Image

    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_decodes_every_picture(reports: list[Report], tmp_path: Path) -> None:
    """A copy of the page with a script that counts what is not drawn, and writes it down."""
    write_html(reports, tmp_path / "page.html")
    script = """<script>addEventListener("load", () => {
      const images = [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length;
      const charts = [...document.querySelectorAll("svg[role]")].filter(c => !c.getBBox().width).length;
      document.title = `${document.images.length} ${images} ${charts}`;
    })</script>"""
    copy = tmp_path / "copy.html"
    copy.write_text(
        (tmp_path / "page.html").read_text("utf-8").replace("</body>", script + "</body>"), "utf-8"
    )
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    shown, broken, empty = map(
        int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout).groups()
    )
    assert shown == len(Page((tmp_path / "page.html").read_text("utf-8")).all("img")) > 0
    assert (broken, empty) == (0, 0)
