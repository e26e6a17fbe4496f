"""What the sections of a page show: each of one kind of measurement, of all models that have it.

Texts, rows and charts for the template's macro of the same name; empty where there is nothing to show.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ..parts import Part
from ..report import EXPLANATIONS, Report, interval, percent
from ..schema import is_picture
from . import svg
from .svg import Point

_CHARTED = 40  # concepts that are drawn; all are in the table
_PICTURES = ("image", "attacked", "delta", "spectrum")

Section = dict[str, Any]


class Cell(NamedTuple):
    text: str
    note: str = ""
    """in small type behind it"""


class Row(NamedTuple):
    head: str
    cells: list[Cell]
    strong: bool = False


_UNKNOWN = Cell("–")


def summary(reports: Sequence[Report]) -> list[Row]:
    rows: dict[str, dict[str, Cell]] = {}
    for report in reports:
        for name, value, note in report.rows():
            rows.setdefault(name, {})[report.name] = Cell(percent(value), note)
    return [Row(name, [of.get(r.name, _UNKNOWN) for r in reports]) for name, of in rows.items()]


def warnings(reports: Sequence[Report]) -> list[Section]:
    """Each once, with the models that it is of."""
    of: dict[tuple[str, str, str], list[str]] = {}
    for told in _unlike(reports):
        of[told] = [report.name for report in reports]
    for report in reports:
        for w in report.warnings:
            told = (w["name"], w["text"], EXPLANATIONS.get(w["name"], ""))
            of.setdefault(told, []).append(report.name)
    return [
        {"of": ", ".join(names), "name": name, "text": text[:1].upper() + text[1:], "why": why}
        for (name, text, why), names in of.items()
    ]


def _unlike(reports: Sequence[Report]) -> Iterator[tuple[str, str, str]]:
    """Warnings that the models were not evaluated alike; of what some were not evaluated by, none."""
    attacked = [report for report in reports if report.attacks]
    searched = [report for report in reports if report.attacks or report.max_epsilon]
    corrupted = [report for report in reports if report.corruptions]
    if unlike := [
        *_differing(reports, "data", "left_out", "points", "image_size", "seed"),
        *_differing(searched, "attack_points"),
        *_differing(corrupted, "corruption_points", "corruptions_of"),
    ]:
        text = f"the models were evaluated on different images: {', '.join(unlike)}"
        yield "different images", text, "Their numbers compare only as far as these images do."
    if _differing(attacked, "quick_attacks"):
        yield (
            "different attacks",
            "some models were attacked in the attacks' short form, others in full",
            "The short form breaks fewer images: it flatters those that it attacked.",
        )


def _differing(reports: Sequence[Report], *names: str) -> list[str]:
    """What of "about" is not the same in all reports, in words."""
    abouts = [report.about for report in reports]
    return [_words(n) for n in names if any(a.get(n) != abouts[0].get(n) for a in abouts)]


def concepts(reports: Sequence[Report]) -> Section:
    by_name = [{c["name"]: c for c in report.accuracy["concepts"]} for report in reports]
    names = list(dict.fromkeys(name for concepts in by_name for name in concepts))
    drawn = [(name, [_point(0.0, of.get(name)) for of in by_name]) for name in names[:_CHARTED]]
    chart = svg.interval_chart(
        drawn,
        [report.name for report in reports],
        label="Accuracy of each concept with its 95 % interval, from the hardest of the first model on",
    )
    rows = [Row(name, [_share(of.get(name), counts=True) for of in by_name]) for name in names]
    return {"chart": chart, "charted": _CHARTED, "rows": rows}


def curve(reports: Sequence[Report]) -> Section:
    points = [report.perturbation_curve["points"] for report in reports]
    lines = [
        (report.name, [_known(p["step"], p) for p in of])
        for report, of in zip(reports, points, strict=True)
    ]
    chart = svg.line_chart(
        lines,
        label="Accuracy over the length of the step along the input gradient",
        x_label="step, ‖x̃ − x‖ in [0, 1] pixel units",
        y_label="accuracy",
    )
    at = [{p["step"]: p for p in of} for of in points]
    steps = sorted({step for of in at for step in of})
    rows = [Row(f"{step:.4g}", [_share(of.get(step)) for of in at]) for step in steps]
    return {"chart": chart, "rows": rows}


def attacks(reports: Sequence[Report]) -> Section:
    if not any(report.attacks for report in reports):
        return {}
    norms = dict.fromkeys(a["norm"] for report in reports for a in report.attacks)
    specs = dict.fromkeys(a["spec"] for report in reports for a in report.attacks)
    by_spec = [{a["spec"]: a for a in report.attacks} for report in reports]
    rows = [Row(spec, [_share(of.get(spec), counts=True) for of in by_spec]) for spec in specs]
    searched = dict.fromkeys(e["norm"] for report in reports for e in report.max_epsilon)
    radii = [{e["norm"]: e for e in report.max_epsilon} for report in reports]
    rows += [
        Row(f"largest ε in {norm}", [_radius(of.get(norm)) for of in radii]) for norm in searched
    ]
    methods = [
        Row(
            report.name,
            [
                *(Cell(attack["spec"]), Cell(method["method"])),
                *(Cell(str(method["points"])), Cell(percent(method["accuracy"]))),
            ],
        )
        for report in reports
        for attack in report.attacks
        for method in attack["methods"]
    ]
    charts = [(norm, _robustness(reports, norm)) for norm in norms]
    return {"charts": charts, "rows": rows, "methods": methods, "pictures": _pictures(reports)}


def _radius(largest: Part | None) -> Cell:
    if largest is None:
        return _UNKNOWN
    return Cell(f"{largest['eps']:.4g}", f"costs ≤ {percent(largest['cost'])}")


def _robustness(reports: Sequence[Report], norm: str) -> Markup:
    """Accuracy over ε, from the clean accuracy of the same images on."""
    unit = 1 if norm in ("l1", "l2") else 255  # a radius per pixel, or per frequency, is in 1/255
    lines = []
    for report in reports:
        attacks = [a for a in report.attacks if a["norm"] == norm]
        clean = [_known(0.0, a["clean"]) for a in attacks[:1]]
        points = [_known(a["eps"] * unit, a) for a in attacks]
        lines.append((report.name, sorted(clean + points)))
    return svg.line_chart(
        lines,
        label=f"Accuracy under attacks in the norm {norm} over their radius",
        x_label="radius ε" if unit == 1 else "radius ε, in 1/255",
        y_label="robust accuracy",
        width=430,
        height=280,
    )


def _pictures(reports: Sequence[Report]) -> list[tuple[str, list[tuple[str, list[Section]]]]]:
    """Of each model that has some, of each of its attacks."""
    of_model = []
    for report in reports:
        of_attack = [(a["spec"], [_shot(p) for p in a["pictures"]]) for a in report.attacks]
        if of_attack := [(spec, shots) for spec, shots in of_attack if shots]:
            of_model.append((report.name, of_attack))
    return of_model


def _shot(picture: Part) -> Section:
    label, predicted = picture["label"], picture["predicted"]
    alts = (
        f"image of class {label}",
        f"attacked image, taken for {predicted}",
        "its perturbation, enlarged",
        "spectrum of the perturbation",
    )
    return {
        "images": [(picture[name], alt) for name, alt in zip(_PICTURES, alts, strict=True)],
        "caption": f"{label} → {predicted}, δ × {0.5 / picture['largest_change']:.3g}",
    }


def corruptions(reports: Sequence[Report]) -> Section:
    measured = [(report, report.corruptions) for report in reports if report.corruptions]
    if not measured:
        return {}
    by_kind = [{k["kind"]: k for k in c["kinds"]} for _, c in measured]
    kinds = dict.fromkeys(kind for of in by_kind for kind in of)
    rows = [
        Row(
            _words(kind),
            [Cell(percent(of[kind]["mean_error"])) if kind in of else _UNKNOWN for of in by_kind],
        )
        for kind in kinds
    ]
    rows.append(Row("mean", [Cell(percent(c["mean_error"])) for _, c in measured], strong=True))
    if any(c["mce"] is not None for _, c in measured):
        mce = [_UNKNOWN if c["mce"] is None else Cell(f"{c['mce']:.1f}") for _, c in measured]
        rows.append(Row("mCE", mce, strong=True))
    return {
        "names": [report.name for report, _ in measured],
        "rows": rows,
        "maps": [_heat_map(report.name, c) for report, c in measured],
    }


def _heat_map(name: str, corruptions: Part) -> Section:
    rows = [
        {
            "kind": _words(kind["kind"]),
            "extra": kind["extra"],
            "errors": [1 - severity["accuracy"] for severity in kind["severities"]],
            "rms": kind["rms"],
        }
        for kind in corruptions["kinds"]
    ]
    severities = [s["severity"] for s in corruptions["kinds"][0]["severities"]]
    return {"of": name, "count": corruptions["count"], "severities": severities, "rows": rows}


def calibration(reports: Sequence[Report]) -> Section:
    of_models = [report.calibration for report in reports]
    charts = []
    for run, report in enumerate(reports):
        bins = report.calibration["equal_width"]
        chart = svg.reliability_chart(
            [(b["count"], b["confidence"], b["accuracy"]) for b in bins],
            run=run,
            label=f"{report.name}: accuracy over confidence, in bins of equal width",
        )
        charts.append((report.name, chart))

    def row(title: str, *keys: str) -> Row:
        return Row(title, [Cell(percent(_entry(part, keys))) for part in of_models])

    rows = [
        row("mean confidence", "mean_confidence"),
        row("RMS error, bins of 100", "rms"),
        row("RMS error, most confident bin left out", "rms_without_last_bin"),
        row("ECE, 15 bins", "ece"),
        Row("temperature", [_temperature(part["temperature"]) for part in of_models]),
    ]
    for when in ("before", "after"):
        rows.append(row(f"RMS error, other half, {when}", "temperature", when, "rms"))
        rows.append(row(f"ECE, other half, {when}", "temperature", when, "ece"))
        nll = [_entry(part, ("temperature", when, "nll")) for part in of_models]
        likelihood = [_UNKNOWN if value is None else Cell(f"{value:.4f}") for value in nll]
        rows.append(Row(f"negative log-likelihood, other half, {when}", likelihood))
    return {"charts": charts, "rows": rows}


def _temperature(temperature: Part | None) -> Cell:
    if temperature is None:
        return _UNKNOWN
    return Cell(f"{temperature['value']:.4g}", f"from {temperature['fitted_on']}")


def about(reports: Sequence[Report]) -> list[Row]:
    names = dict.fromkeys(key for report in reports for key in report.about)
    return [
        Row(_words(name), [Cell(_plain(report.about.get(name))) for report in reports])
        for name in names
    ]


def numbers(reports: Sequence[Report]) -> list[tuple[str, list[Row]]]:
    return [
        (
            report.name,
            [
                Row(path, [Cell(json.dumps(value, ensure_ascii=False))])
                for path, value in leaves(report.to_dict())
            ],
        )
        for report in reports
    ]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text within, but the data: of pictures, with where it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    elif not is_picture(value):
        yield path, value


# --- cells and points


def _share(part: Part | None, *, counts: bool = False) -> Cell:
    if part is None or not part["count"]:
        return _UNKNOWN
    of = f" {part['correct']}/{part['count']}" if counts else ""
    return Cell(percent(part["accuracy"]), f"{interval(part)}{of}")


def _known(x: float, part: Part) -> Point:
    return Point(x, part["accuracy"], part["low"], part["high"])


def _point(x: float, part: Part | None) -> Point | None:
    return None if part is None or not part["count"] else _known(x, part)


def _entry(part: Part, keys: Sequence[str]) -> float | None:
    value: Any = part
    for key in keys:
        value = None if value is None else value[key]
    return value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "–" if value is None else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
