"""Charts as inline SVG: no script, no file, no package; colours are the page's, light or dark.

A run is a colour and a dash pattern or mark, so that no chart depends on colour alone, and in lines no
two of 64 runs look alike. Every mark has
its numbers as a <title>, which a pointer shows and a screen reader reads. Elements are made by
:func:`element` alone, which escapes the values of their attributes and the text in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

COLOURS = 8  # --c0 to --c7 of the page's style
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 3", "6 2 2 2")
_LEFT, _TOP, _BOTTOM = 52, 12, 44


class Point(NamedTuple):
    """A share, with its interval where it has one; all in [0, 1]."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


Line = tuple[str, Sequence[Point]]


def element(
    tag: str, kind: str | None, /, *inside: str, **attributes: str | float | None
) -> Markup:
    """One element of the class ``kind``; what is inside and is no Markup is text, and is escaped.

    ``stroke_width=2`` is stroke-width="2"; a coordinate that is a float has one decimal place; an
    attribute that is None is left out.
    """
    written = Markup("")
    for name, value in {"class": kind, **attributes}.items():
        if value is not None:
            shown = f"{value:.1f}" if isinstance(value, float) else value
            written += Markup(' {}="{}"').format(name.replace("_", "-"), shown)
    if not inside:
        return Markup("<{}{}/>").format(tag, written)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, Markup("").join(inside))


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    y_label: str,
    width: int = 560,
    height: int = 320,
) -> Markup:
    """Shares over x ≥ 0, each line with a band of its intervals; ``label`` says what is to be seen."""
    right = 14
    top_x = max((p.x for _, points in lines for p in points), default=0.0) or 1.0
    low_x = min((p.x for _, points in lines for p in points), default=0.0)

    def x(value: float) -> float:
        return _LEFT + (value - low_x) / (top_x - low_x or 1.0) * (width - _LEFT - right)

    def y(value: float) -> float:
        return height - _BOTTOM - value * (height - _BOTTOM - _TOP)

    parts = [*_share_axis(y, width - right, y_label, height)]
    parts += [
        _text("tick", f"{tick:g}", x(tick), height - _BOTTOM + 17, "middle")
        for tick in ticks(low_x, top_x)
    ]
    parts.append(_text("axis", x_label, (_LEFT + width - right) / 2, height - 6, "middle"))
    for run, (_, points) in enumerate(lines):
        band = [(p.x, p.high) for p in points if p.high is not None]
        band += [(p.x, p.low) for p in reversed(points) if p.low is not None]
        if len(band) > 2:
            corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in band)
            parts.append(element("polygon", f"band {_colour(run)}", points=corners))
    for run, (name, points) in enumerate(lines):
        path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in points)
        line = {"points": path, "stroke_dasharray": _dash(run)}
        parts.append(element("polyline", f"line {_colour(run)}", **line))
        for p in points:
            parts.append(mark(run, x(p.x), y(p.y), f"{name}: {_percent(p)} at {p.x:.4g}"))
    return _svg(parts, width, height, label)


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Point | None]]], names: Sequence[str], *, label: str
) -> Markup:
    """A row per concept, in it a bar with its interval per run; Point.x is not used, None is absent."""
    runs, bar = len(names), 13
    left = 16 + round(6.7 * min(max((len(name) for name, _ in rows), default=0), 28))
    step, width, right = runs * bar + 10, 640, 58
    height = _TOP + len(rows) * step + 26

    def x(value: float) -> float:
        return left + value * (width - left - right)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line("grid", (x(tick), _TOP), (x(tick), height - 24)))
        parts.append(_text("tick", f"{100 * tick:g} %", x(tick), height - 8, "middle"))
    for number, (name, points) in enumerate(rows):
        top = _TOP + number * step + 5
        shown = name if len(name) <= 28 else name[:27] + "…"
        parts.append(_text("tick", shown, left - 8, top + runs * bar / 2 + 4, "end"))
        for run, p in enumerate(points):
            middle = top + run * bar + bar / 2
            if p is None:
                parts.append(_text("tick", "no example", left + 6, middle + 4))
                continue
            drawn = [
                element("title", None, f"{names[run]}, {name}: {_percent(p)}"),
                _rectangle(left, middle - bar / 2 + 1.5, max(x(p.y) - left, 1.0), bar - 3, rx=2),
            ]
            if p.low is not None and p.high is not None:
                low, high = x(p.low), x(p.high)
                ends = "".join(f"M{end:.1f} {middle - 3.5:.1f}v7" for end in (low, high))
                path = f"M{low:.1f} {middle:.1f}H{high:.1f}{ends}"
                drawn.append(element("path", "whisker", d=path))
            parts.append(element("g", _colour(run), *drawn))
    return _svg(parts, width, height, label)


def reliability_chart(bins: Sequence[tuple[int, float, float]], *, run: int, label: str) -> Markup:
    """Accuracy over confidence of bins (count, confidence, accuracy), and beneath it how full each is."""
    width, height, under, right = 330, 360, 52, 26
    side = height - under - _TOP - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + value * (width - _LEFT - right)

    def y(value: float) -> float:
        return _TOP + (1 - value) * side

    floor = height - _BOTTOM
    fullest = max((count for count, _, _ in bins), default=1)
    parts = [*_share_axis(y, width - right, "accuracy", side + _BOTTOM + _TOP)]
    parts.append(_line("ideal", (x(0), y(0)), (x(1), y(1))))
    for count, confidence, accuracy in bins:
        of = f"{count} examples of mean confidence {100 * confidence:.1f} %"
        tall = 38 * count / fullest
        drawn = [
            element("title", None, f"{of}: {100 * accuracy:.1f} % right"),
            _line("gap", (x(confidence), y(confidence)), (x(confidence), y(accuracy))),
            element("circle", "dot", cx=x(confidence), cy=y(accuracy), r=4),
            _rectangle(x(confidence) - 3, floor - tall, 6, max(tall, 0.5)),
        ]
        parts.append(element("g", _colour(run), *drawn))
    parts.append(_line("grid", (x(0), floor), (x(1), floor)))
    for tick in (0, 0.5, 1):
        parts.append(_text("tick", f"{100 * tick:g} %", x(tick), floor + 17, "middle"))
    beneath = "confidence, and the examples of each"
    parts.append(_text("axis", beneath, x(0.5), height - 6, "middle"))
    return _svg(parts, width, height, label)


def mark(run: int, x: float, y: float, title: str) -> Markup:
    """Circle, square, triangle or diamond, by the number of the run."""
    shapes = (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z",
        f"M{x:.1f} {y - 4.6:.1f}l4.4 7.6h-8.8z",
        f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
    )
    shape = shapes[run % len(shapes)]
    return element("path", f"dot {_colour(run)}", element("title", None, title), d=shape)


def legend_mark(run: int) -> Markup:
    """A run's line and mark, for a legend; it says nothing that the name beside it does not."""
    line = element("path", f"line {_colour(run)}", d="M1 8H35", stroke_dasharray=_dash(run))
    options = {"viewBox": "0 0 36 16", "aria_hidden": "true"}
    return element("svg", "key", line, mark(run, 18, 8, ""), **options)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high], at most ``most`` and at least one."""
    span = high - low
    if not span > 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(unit * k for k in (1, 2, 5, 10, 20) if span / (unit * k) <= most - 1 + 1e-9)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 12) for i in range(count)]


def _share_axis(
    y: Callable[[float], float], right: float, label: str, height: float
) -> list[Markup]:
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line("grid", (_LEFT, y(tick)), (right, y(tick))))
        parts.append(_text("tick", f"{100 * tick:g} %", _LEFT - 7, y(tick) + 4, "end"))
    turned = f"translate(12 {(height - _BOTTOM + _TOP) / 2:.1f}) rotate(-90)"
    parts.append(element("text", "axis", label, transform=turned, text_anchor="middle"))
    return parts


def _text(kind: str, text: str, x: float, y: float, anchor: str | None = None) -> Markup:
    return element("text", kind, text, x=x, y=y, text_anchor=anchor)


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    (x1, y1), (x2, y2) = start, end
    return element("line", kind, x1=x1, x2=x2, y1=y1, y2=y2)


def _rectangle(x: float, y: float, width: float, height: float, **more: float) -> Markup:
    return element("rect", "bar", x=x, y=y, width=width, height=height, **more)


def _colour(run: int) -> str:
    return f"c{run % COLOURS}"


def _dash(run: int) -> str | None:
    """Of the runs of one colour each its own."""
    return _DASHES[(run + run // COLOURS) % len(_DASHES)]


def _percent(p: Point) -> str:
    interval = (
        "" if p.low is None or p.high is None else f" [{100 * p.low:.1f}, {100 * p.high:.1f}]"
    )
    return f"{100 * p.y:.1f} %{interval}"


def _svg(parts: Sequence[Markup], width: int, height: int, label: str) -> Markup:
    size = f"min-width:{0.7 * width:.0f}px;max-width:{width}px"
    options = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria_label": label}
    return element("svg", None, *parts, style=size, **options)
