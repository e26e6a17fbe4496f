"""A page that compares reports: one file, no script, nothing that it would have to fetch.

It is a function of the reports' numbers alone; every one of them is also in a table at its end. All
markup is in report.html.jinja, which escapes whatever it is given; the charts' is made by svg.element.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...storage import write_text
from ..report import Report
from . import sections, svg

_SECTIONS: dict[str, tuple[str, Callable[[Sequence[Report]], Any]]] = {
    "summary": ("Summary", sections.summary),
    "warnings": ("Warnings", sections.warnings),
    "concepts": ("Accuracy by concept", sections.concepts),
    "curve": ("Along the input gradient", sections.curve),
    "attacks": ("Attacks", sections.attacks),
    "corruptions": ("Corruptions", sections.corruptions),
    "calibration": ("Calibration", sections.calibration),
    "about": ("What was evaluated", sections.about),
    "numbers": ("Every number", sections.numbers),
}
"""By name, which is the section's id and its macro in the template: title, and what it is drawn from."""


def write_html(reports: Report | Sequence[Report], path: str | os.PathLike[str]) -> None:
    """Writes the page, whole or not at all. ValueError: no report, or two of the same name."""
    reports = [reports] if isinstance(reports, Report) else list(reports)
    names = [report.name for report in reports]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"write_html: reports must be at least one, of different names, got {names}"
        )
    # A name of a file need not be valid Unicode: what is not shows as "?".
    write_text(path, page(reports).encode(errors="replace").decode())


def page(reports: Sequence[Report]) -> str:
    shown = [(name, title, make(reports)) for name, (title, make) in _SECTIONS.items()]
    return _template().render(
        reports=reports,
        names=", ".join(report.name for report in reports),
        data=dict.fromkeys(f"{r.about['data']}, {r.about['points']} images" for r in reports),
        legend_mark=svg.legend_mark,
        sections=[section for section in shown if section[2]],  # what was not measured is left out
    )


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
