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
from .parts import Part
from .report import EXPLANATIONS, Report, interval, percent
from .svg import Point

_CHARTED = 40  # concepts that are drawn; all are in the table


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
        "concepts": ("Accuracy by concept", _concepts(reports)),
        "curve": ("Along the input gradient", _curve(reports)),
        "attacks": ("Attacks", _attacks(reports)),
        "corruptions": ("Corruptions", _corruptions(reports)),
        "calibration": ("Calibration", _calibration(reports)),
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
    return _table(
        "What was measured of each model; the sections below say how.", _heads("", reports), body
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


def _concepts(reports: Sequence[Report]) -> str:
    by_name = [{c["name"]: c for c in report.accuracy["concepts"]} for report in reports]
    names = list(dict.fromkeys(name for concepts in by_name for name in concepts))
    rows = [(name, [_point(0.0, concepts.get(name)) for concepts in by_name]) for name in names]
    chart = svg.interval_chart(
        rows[:_CHARTED],
        [report.name for report in reports],
        label="Accuracy of each concept with its 95 % interval, from the hardest of the first model on",
    )
    left_out = (
        f" The hardest {_CHARTED} of {len(names)} are drawn." if len(names) > _CHARTED else ""
    )
    body = [
        [escape(name), *(_share(concepts.get(name), counts=True) for concepts in by_name)]
        for name in names
    ]
    table = _table(
        "Accuracy by concept: share, interval, examples right of all.",
        _heads("concept", reports),
        body,
    )
    return (
        "<p>From the hardest concept of the first model on, as in Figure 5 of the paper. Where intervals "
        "of two models overlap widely, the examples do not tell them apart.</p>"
        '<div class="row"><figure><figcaption>Bars are accuracy, whiskers its interval.'
        f"{left_out}</figcaption>{chart}</figure>{table}</div>"
    )


def _curve(reports: Sequence[Report]) -> str:
    lines = [
        (report.name, [_known(p["step"], p) for p in report.perturbation_curve["points"]])
        for report in reports
    ]
    chart = svg.line_chart(
        lines,
        label="Accuracy over the length of the step along the input gradient",
        x_label="step, ‖x̃ − x‖ in [0, 1] pixel units",
        y_label="accuracy",
    )
    steps = sorted({p["step"] for report in reports for p in report.perturbation_curve["points"]})
    at = [{p["step"]: p for p in report.perturbation_curve["points"]} for report in reports]
    table = _table(
        "Accuracy at each step.",
        _heads("step", reports),
        [[f"{step:.4g}", *(_share(points.get(step)) for points in at)] for step in steps],
    )
    return (
        "<p>Every image moves along the model’s own normalised loss gradient at the true label, not "
        "clipped to [0, 1] (Figure 4 of the paper). A model that falls later is flatter around its "
        "examples; this is one step, no attack.</p>"
        f'<div class="row"><figure><figcaption>Bands are intervals.</figcaption>{chart}</figure>{table}'
        "</div>"
    )


def _attacks(reports: Sequence[Report]) -> str:
    if not any(report.attacks for report in reports):
        return ""
    norms = list(dict.fromkeys(a["norm"] for report in reports for a in report.attacks))
    charts = "".join(
        f"<figure><figcaption>{escape(norm)}</figcaption>{_robustness(reports, norm)}</figure>"
        for norm in norms
    )
    specs = list(dict.fromkeys(a["spec"] for report in reports for a in report.attacks))
    by_spec = [{a["spec"]: a for a in report.attacks} for report in reports]
    body = [
        [escape(s), *(_share(attacks.get(s), counts=True) for attacks in by_spec)] for s in specs
    ]
    norms = list(dict.fromkeys(e["norm"] for report in reports for e in report.max_epsilon))
    radii = [{e["norm"]: e for e in report.max_epsilon} for report in reports]
    body += [
        [f"largest ε in {escape(norm)}", *(_radius(of.get(norm)) for of in radii)] for norm in norms
    ]
    table = _table("Accuracy that is left.", _heads("attack", reports), body)
    methods = _table(
        "Each method is run on the images that those before it left, and leaves this share of them.",
        ["model", "attack", "method", "images", "left"],
        [
            [
                *(escape(r.name), escape(a["spec"]), escape(m["method"])),
                *(str(m["points"]), percent(m["accuracy"])),
            ]
            for r in reports
            for a in r.attacks
            for m in a["methods"]
        ],
    )
    return (
        "<p>An image counts if no method of the attack changes its class within the radius. Radius 0 is "
        "the clean accuracy on the same images. What no attack finds may still be there: robust accuracy "
        "is an upper bound.</p>"
        f'<div class="row">{charts}</div>{table}{_folded("Method by method", methods)}'
        f"{_pictures(reports)}"
    )


def _radius(largest: Part | None) -> str:
    if largest is None:
        return "–"
    return f"{largest['eps']:.4g}<small>costs ≤ {percent(largest['cost'])}</small>"


def _robustness(reports: Sequence[Report], norm: str) -> str:
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


def _pictures(reports: Sequence[Report]) -> str:
    shots = ""
    for report in reports:
        rows = ""
        for attack in report.attacks:
            shown = "".join(_shot(p) for p in attack["pictures"])
            rows += shown and f'<h3>{escape(attack["spec"])}</h3><div class="shots">{shown}</div>'
        shots += rows and _folded(escape(report.name), rows, unfolded=report is reports[0])
    return shots and (
        "<h3>Attacked images</h3><p>The first images that each attack broke: the image; the attacked "
        "image; the perturbation δ, enlarged so that its largest change is black or white and no change "
        "is grey; its spectrum log(1 + |Fδ|), relative to the mean, low frequencies in the middle.</p>"
        f"{shots}"
    )


def _shot(picture: Part) -> str:
    label, predicted = picture["label"], picture["predicted"]
    alts = {
        "image": f"image of class {label}",
        "attacked": f"attacked image, taken for {predicted}",
        "delta": "its perturbation, enlarged",
        "spectrum": "spectrum of the perturbation",
    }
    pictures = "".join(
        f'<img src="{picture[name]}" alt="{escape(alt)}">' for name, alt in alts.items()
    )
    under = "".join(f"<span>{text}</span>" for text in ("image", "attacked", "δ", "|Fδ|"))
    return (
        f'<figure class="shot">{pictures}{under}<figcaption>{escape(label)} → {escape(predicted)}, δ × '
        f"{0.5 / picture['largest_change']:.3g}</figcaption></figure>"
    )


def _corruptions(reports: Sequence[Report]) -> str:
    measured = [(report, report.corruptions) for report in reports if report.corruptions]
    if not measured:
        return ""
    maps = "".join(_heat_map(report.name, corruptions) for report, corruptions in measured)
    kinds = list(dict.fromkeys(k["kind"] for _, c in measured for k in c["kinds"]))
    of = [{k["kind"]: k for k in c["kinds"]} for _, c in measured]
    body = [
        [_words(kind), *(percent(k[kind]["mean_error"]) if kind in k else "–" for k in of)]
        for kind in kinds
    ]
    body.append(["<strong>mean</strong>", *(percent(c["mean_error"]) for _, c in measured)])
    if any(c["mce"] is not None for _, c in measured):
        mce = ("–" if c["mce"] is None else f"{c['mce']:.1f}" for _, c in measured)
        body.append(["<strong>mCE</strong>", *mce])
    table = _table(
        "Error over the five severities; lower is better. The mean leaves the extra kinds out.",
        _heads("corruption", [report for report, _ in measured]),
        body,
    )
    return (
        "<p>Error on images that were corrupted in each of ImageNet-C’s ways, at severities 1 to 5. "
        "The mean error is what is called mCE on CIFAR-C; ImageNet’s mCE divides by AlexNet’s errors, "
        "and is given for ImageNet alone.</p>"
        f'{table}<div class="row">{maps}</div>'
    )


def _heat_map(name: str, corruptions: Part) -> str:
    rows = ""
    for kind in corruptions["kinds"]:
        errors = [1 - severity["accuracy"] for severity in kind["severities"]]
        cells = "".join(
            f'<td class="cell" style="--error:{e:.3f}">{100 * e:.1f}</td>' for e in errors
        )
        extra = " <small>extra</small>" if kind["extra"] else ""
        rows += (
            f'<tr><th scope="row">{_words(kind["kind"])}{extra}</th>{cells}'
            f"<td>{100 * kind['rms']:.1f}</td></tr>"
        )
    severities = [s["severity"] for s in corruptions["kinds"][0]["severities"]]
    heads = "".join(f'<th scope="col">{s}</th>' for s in severities)
    return (
        f'<div class="scroll"><table class="heat"><caption>{escape(name)}: error in % by severity, on '
        f"{corruptions['count']} images; RMS is the calibration error of all severities</caption><thead>"
        f'<tr><th scope="col">severity</th>{heads}<th scope="col">RMS</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _calibration(reports: Sequence[Report]) -> str:
    charts = "".join(
        f"<figure><figcaption>{escape(report.name)}</figcaption>"
        + svg.reliability_chart(
            [
                (b["count"], b["confidence"], b["accuracy"])
                for b in report.calibration["equal_width"]
            ],
            run=run,
            label=f"{report.name}: accuracy over confidence, in bins of equal width",
        )
        + "</figure>"
        for run, report in enumerate(reports)
    )

    def row(title: str, *keys: str) -> list[str]:
        return [title, *(_percent_at(report.calibration, keys) for report in reports)]

    body = [
        row("mean confidence", "mean_confidence"),
        row("RMS error, bins of 100", "rms"),
        row("RMS error, most confident bin left out", "rms_without_last_bin"),
        row("ECE, 15 bins", "ece"),
        ["temperature", *(_temperature(report.calibration["temperature"]) for report in reports)],
    ]
    for when in ("before", "after"):
        body.append(row(f"RMS error, other half, {when}", "temperature", when, "rms"))
        body.append(row(f"ECE, other half, {when}", "temperature", when, "ece"))
        nll = (_at(report.calibration, ("temperature", when, "nll")) for report in reports)
        likelihood = ("–" if value is None else f"{value:.4f}" for value in nll)
        body.append([f"negative log-likelihood, other half, {when}", *likelihood])
    table = _table(
        "Calibration errors; 0 is calibrated. The temperature is fitted on one random half of the "
        "images, and measured on the other before and after.",
        _heads("", reports),
        body,
    )
    return (
        "<p>Among examples of confidence 80 %, 80 % should be right: dots on the diagonal. Below it the "
        "model is overconfident. The bars at the foot are the examples of each bin. Leaving the most "
        "confident bin out is wrong, but what many published numbers did.</p>"
        f'<div class="row">{charts}</div>{table}'
    )


def _about(reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(key for report in reports for key in report.about))
    body = [
        [_words(name), *(_text(report.about.get(name)) for report in reports)] for name in names
    ]
    return _table("Model, data, draws, versions, time.", _heads("", reports), body, text=True)


def _numbers(reports: Sequence[Report]) -> str:
    tables = ""
    for report in reports:
        rows = [
            [escape(path), escape(json.dumps(value, ensure_ascii=False))]
            for path, value in leaves(report.to_dict())
        ]
        table = _table("All that report.json holds but its pictures.", ["where", "value"], rows)
        tables += _folded(escape(report.name), table)
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


# --- their pieces


def _legend(reports: Sequence[Report]) -> str:
    entries = (
        f"<li>{svg.legend_mark(run)}{escape(report.name)}</li>"
        for run, report in enumerate(reports)
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _heads(first: str, reports: Sequence[Report]) -> list[str]:
    return [first, *(escape(report.name) for report in reports)]


def _table(
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


def _folded(title: str, content: str, *, unfolded: bool = False) -> str:
    return f"<details{' open' if unfolded else ''}><summary>{title}</summary>{content}</details>"


def _share(part: Part | None, *, counts: bool = False) -> str:
    if part is None or not part["count"]:
        return "–"
    of = f" {part['correct']}/{part['count']}" if counts else ""
    return f"{percent(part['accuracy'])}<small>{interval(part)}{of}</small>"


def _known(x: float, part: Part) -> Point:
    return Point(x, part["accuracy"], part["low"], part["high"])


def _point(x: float, part: Part | None) -> Point | None:
    return None if part is None or not part["count"] else _known(x, part)


def _at(part: Part, keys: Sequence[str]) -> float | None:
    value: Any = part
    for key in keys:
        value = None if value is None else value[key]
    return value


def _percent_at(part: Part, keys: Sequence[str]) -> str:
    return percent(_at(part, keys))


def _temperature(temperature: Part | None) -> str:
    if temperature is None:
        return "–"
    return f"{temperature['value']:.4g}<small>from {temperature['fitted_on']}</small>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(
        "–"
        if value is None
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def _words(name: str) -> str:
    return escape(name.replace("_", " "))
