"""Charts as inline SVG: no script, no file, no package; colours are the page's, light or dark.

A run is a colour and a dash pattern or mark, so that no chart depends on colour alone. Every mark has
its numbers as a <title>, which a pointer shows and a screen reader reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

COLOURS = 8  # --c0 to --c7 of the page's style
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 3", "6 2 2 2")
_LEFT, _TOP, _BOTTOM = 52, 12, 44


class Point(NamedTuple):
    """A share, with its interval where it has one; all in [0, 1]."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


Line = tuple[str, Sequence[Point]]


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    x_label: str,
    y_label: str,
    width: int = 560,
    height: int = 320,
) -> str:
    """Shares over x ≥ 0, each line with a band of its intervals; ``label`` says what is to be seen."""
    right = 14
    top_x = max((p.x for _, points in lines for p in points), default=0.0) or 1.0
    low_x = min((p.x for _, points in lines for p in points), default=0.0)

    def x(value: float) -> float:
        return _LEFT + (value - low_x) / (top_x - low_x or 1.0) * (width - _LEFT - right)

    def y(value: float) -> float:
        return height - _BOTTOM - value * (height - _BOTTOM - _TOP)

    parts = [_share_axis(y, width - right, y_label, height)]
    for tick in ticks(low_x, top_x):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{height - _BOTTOM + 17}" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    parts.append(
        f'<text class="axis" x="{(_LEFT + width - right) / 2:.1f}" y="{height - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    for run, (_, points) in enumerate(lines):
        band = [(p.x, p.high) for p in points if p.high is not None]
        band += [(p.x, p.low) for p in reversed(points) if p.low is not None]
        if len(band) > 2:
            corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in band)
            parts.append(f'<polygon class="band c{run % COLOURS}" points="{corners}"/>')
    for run, (name, points) in enumerate(lines):
        path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in points)
        dash = f' stroke-dasharray="{d}"' if (d := _DASHES[run % len(_DASHES)]) else ""
        parts.append(f'<polyline class="line c{run % COLOURS}" points="{path}"{dash}/>')
        for p in points:
            title = f"{name}: {_percent(p)} at {p.x:.4g}"
            parts.append(mark(run, x(p.x), y(p.y), title))
    return _svg(parts, width, height, label)


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Point | None]]], names: Sequence[str], *, label: str
) -> str:
    """A row per concept, in it a bar with its interval per run; Point.x is not used, None is absent."""
    runs, bar = len(names), 13
    left = 16 + round(6.7 * min(max((len(name) for name, _ in rows), default=0), 28))
    step, width, right = runs * bar + 10, 640, 58
    height = _TOP + len(rows) * step + 26

    def x(value: float) -> float:
        return left + value * (width - left - right)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{height - 24}"/>'
            f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">'
            f"{100 * tick:g} %</text>"
        )
    for number, (name, points) in enumerate(rows):
        top = _TOP + number * step + 5
        shown = name if len(name) <= 28 else name[:27] + "…"
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{top + runs * bar / 2 + 4:.1f}" '
            f'text-anchor="end">{escape(shown)}</text>'
        )
        for run, p in enumerate(points):
            middle = top + run * bar + bar / 2
            if p is None:
                parts.append(
                    f'<text class="tick" x="{left + 6}" y="{middle + 4:.1f}">no example</text>'
                )
                continue
            title = escape(f"{names[run]}, {name}: {_percent(p)}")
            parts.append(
                f'<g class="c{run % COLOURS}"><title>{title}</title>'
                f'<rect class="bar" x="{left}" y="{middle - bar / 2 + 1.5:.1f}" '
                f'width="{max(x(p.y) - left, 1):.1f}" height="{bar - 3}" rx="2"/>'
            )
            if p.low is not None and p.high is not None:
                parts.append(
                    f'<path class="whisker" d="M{x(p.low):.1f} {middle:.1f}H{x(p.high):.1f}'
                    f"M{x(p.low):.1f} {middle - 3.5:.1f}v7M{x(p.high):.1f} {middle - 3.5:.1f}v7"
                    '"/>'
                )
            parts.append("</g>")
    return _svg(parts, width, height, label)


def reliability_chart(bins: Sequence[tuple[int, float, float]], *, run: int, label: str) -> str:
    """Accuracy over confidence of bins (count, confidence, accuracy), and beneath it how full each is."""
    width, height, under, right = 330, 360, 52, 26
    side = height - under - _TOP - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + value * (width - _LEFT - right)

    def y(value: float) -> float:
        return _TOP + (1 - value) * side

    floor = height - _BOTTOM
    fullest = max((count for count, _, _ in bins), default=1)
    parts = [_share_axis(y, width - right, "accuracy", side + _BOTTOM + _TOP)]
    parts.append(
        f'<line class="ideal" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>'
    )
    for count, confidence, accuracy in bins:
        title = escape(
            f"{count} examples of mean confidence {100 * confidence:.1f} %: {100 * accuracy:.1f} % right"
        )
        tall = 38 * count / fullest
        parts.append(
            f'<g class="c{run % COLOURS}"><title>{title}</title>'
            f'<line class="gap" x1="{x(confidence):.1f}" x2="{x(confidence):.1f}" '
            f'y1="{y(confidence):.1f}" y2="{y(accuracy):.1f}"/>'
            f'<circle class="dot" cx="{x(confidence):.1f}" cy="{y(accuracy):.1f}" r="4"/>'
            f'<rect class="bar" x="{x(confidence) - 3:.1f}" y="{floor - tall:.1f}" width="6" '
            f'height="{max(tall, 0.5):.1f}"/></g>'
        )
    parts.append(f'<line class="grid" x1="{x(0):.1f}" x2="{x(1):.1f}" y1="{floor}" y2="{floor}"/>')
    for tick in (0, 0.5, 1):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{floor + 17}" text-anchor="middle">'
            f"{100 * tick:g} %</text>"
        )
    parts.append(
        f'<text class="axis" x="{x(0.5):.1f}" y="{height - 6}" text-anchor="middle">confidence, and '
        "the examples of each</text>"
    )
    return _svg(parts, width, height, label)


def mark(run: int, x: float, y: float, title: str) -> str:
    """Circle, square, triangle or diamond, by the number of the run."""
    shapes = (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z",
        f"M{x:.1f} {y - 4.6:.1f}l4.4 7.6h-8.8z",
        f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
    )
    return (
        f'<path class="dot c{run % COLOURS}" d="{shapes[run % len(shapes)]}">'
        f"<title>{escape(title)}</title></path>"
    )


def legend_mark(run: int) -> str:
    """A run's line and mark, for a legend; it says nothing that the name beside it does not."""
    dash = f' stroke-dasharray="{d}"' if (d := _DASHES[run % len(_DASHES)]) else ""
    line = f'<path class="line c{run % COLOURS}" d="M1 8H35"{dash}/>'
    return f'<svg class="key" viewBox="0 0 36 16" aria-hidden="true">{line}{mark(run, 18, 8, "")}</svg>'


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


def _share_axis(y: Callable[[float], float], right: float, label: str, height: float) -> str:
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">'
            f"{100 * tick:g} %</text>"
        )
    middle = (height - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return "".join(parts)


def _percent(p: Point) -> str:
    interval = (
        "" if p.low is None or p.high is None else f" [{100 * p.low:.1f}, {100 * p.high:.1f}]"
    )
    return f"{100 * p.y:.1f} %{interval}"


def _svg(parts: Sequence[str], width: int, height: int, label: str) -> str:
    size = f"min-width:{0.7 * width:.0f}px;max-width:{width}px"
    return (
        f'<svg viewBox="0 0 {width} {height}" style="{size}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
