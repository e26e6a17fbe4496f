"""A page that compares reports: one file, no script, nothing that it would have to fetch.

It is a function of the reports' numbers alone; every one of them is also in a table at its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from .._files import replacing
from . import svg
from .markup import folded, heads, plain, table, words
from .report import EXPLANATIONS, Report, percent
from .sections import attacks, calibration, concepts, corruptions, curve


def write_html(reports: Report | Sequence[Report], path: str | os.PathLike[str]) -> None:
    """Writes the page, whole or not at all. ValueError: no report, or two of the same name."""
    reports = [reports] if isinstance(reports, Report) else list(reports)
    names = [report.name for report in reports]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"write_html: reports must be at least one, of different names, got {names}"
        )
    with replacing(path) as partial:
        partial.write_text(page(reports), encoding="utf-8")


def page(reports: Sequence[Report]) -> str:
    sections = {
        "summary": ("Summary", _summary(reports)),
        "warnings": ("Warnings", _warnings(reports)),
        "concepts": ("Accuracy by concept", concepts(reports)),
        "curve": ("Along the input gradient", curve(reports)),
        "attacks": ("Attacks", attacks(reports)),
        "corruptions": ("Corruptions", corruptions(reports)),
        "calibration": ("Calibration", calibration(reports)),
        "about": ("What was evaluated", _about(reports)),
        "numbers": ("Every number", _numbers(reports)),
    }
    sections = {name: part for name, part in sections.items() if part[1]}
    names = ", ".join(report.name for report in reports)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in sections.items())
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f"{content}</section>"
        for name, (title, content) in sections.items()
    )
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    data = ", ".join(
        dict.fromkeys(f"{r.about['data']}, {r.about['points']} images" for r in reports)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>Evaluation: {escape(names)}</title>'
        f"<style>{style}</style></head>\n<body><header><h1>Evaluation of {escape(names)}</h1>"
        f'<p class="soft">{escape(data)}</p>{_legend(reports)}<nav aria-label="Sections">{links}</nav>'
        f"</header><main>{body}</main>"
        f"<footer>Written by hrrl_ext {escape(str(reports[0].about['hrrl_ext']))}. Shares are in %, "
        "with Wilson’s 95 % interval in brackets.</footer></body></html>\n"
    )


# --- sections


def _summary(reports: Sequence[Report]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for report in reports:
        for name, value, note in report.rows():
            small = f"<small>{escape(note)}</small>" if note else ""
            rows.setdefault(name, {})[report.name] = f"{percent(value)}{small}"
    body = [[name, *(cells.get(r.name, "–") for r in reports)] for name, cells in rows.items()]
    return table(
        "What was measured of each model; the sections below say how.", heads("", reports), body
    )


def _warnings(reports: Sequence[Report]) -> str:
    """Each once, with the models that it is of."""
    of: dict[tuple[str, str, str], list[str]] = {}
    drawn = {tuple(report.about[key] for key in ("data", "points", "seed")) for report in reports}
    if len(drawn) > 1:
        why = "Their numbers compare only as far as these images do."
        of["different images", "the models were evaluated on different images", why] = [
            report.name for report in reports
        ]
    for report in reports:
        for w in report.warnings:
            told = (w["name"], w["text"], EXPLANATIONS.get(w["name"], ""))
            of.setdefault(told, []).append(report.name)
    return "".join(
        f'<div class="warning"><p><strong>{escape(", ".join(names))}: {escape(name)}.</strong> '
        f"{escape(text[:1].upper() + text[1:])}.</p><p>{escape(why)}</p></div>"
        for (name, text, why), names in of.items()
    )


def _about(reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(key for report in reports for key in report.about))
    body = [[words(name), *(plain(report.about.get(name)) for report in reports)] for name in names]
    return table("Model, data, draws, versions, time.", heads("", reports), body, text=True)


def _numbers(reports: Sequence[Report]) -> str:
    tables = ""
    for report in reports:
        rows = [
            [escape(path), escape(json.dumps(value, ensure_ascii=False))]
            for path, value in leaves(report.to_dict())
        ]
        numbers = table("All that report.json holds but its pictures.", ["where", "value"], rows)
        tables += folded(escape(report.name), numbers)
    return tables


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text within, but the data: of pictures, with where it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    elif not (isinstance(value, str) and value.startswith("data:image/")):
        yield path, value


def _legend(reports: Sequence[Report]) -> str:
    entries = (
        f"<li>{svg.legend_mark(run)}{escape(report.name)}</li>"
        for run, report in enumerate(reports)
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'
