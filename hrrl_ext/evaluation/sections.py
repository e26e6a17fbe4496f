"""The sections of a page: each of one kind of measurement, of all models that have it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import svg
from .markup import entry, folded, heads, known, percent_entry, point, share, table, words
from .parts import Part
from .report import Report, percent

_CHARTED = 40  # concepts that are drawn; all are in the table


def concepts(reports: Sequence[Report]) -> str:
    by_name = [{c["name"]: c for c in report.accuracy["concepts"]} for report in reports]
    names = list(dict.fromkeys(name for concepts in by_name for name in concepts))
    rows = [(name, [point(0.0, concepts.get(name)) for concepts in by_name]) for name in names]
    chart = svg.interval_chart(
        rows[:_CHARTED],
        [report.name for report in reports],
        label="Accuracy of each concept with its 95 % interval, from the hardest of the first model on",
    )
    left_out = (
        f" The hardest {_CHARTED} of {len(names)} are drawn." if len(names) > _CHARTED else ""
    )
    body = [
        [escape(name), *(share(concepts.get(name), counts=True) for concepts in by_name)]
        for name in names
    ]
    numbers = table(
        "Accuracy by concept: share, interval, examples right of all.",
        heads("concept", reports),
        body,
    )
    return (
        "<p>From the hardest concept of the first model on, as in Figure 5 of the paper. Where intervals "
        "of two models overlap widely, the examples do not tell them apart.</p>"
        '<div class="row"><figure><figcaption>Bars are accuracy, whiskers its interval.'
        f"{left_out}</figcaption>{chart}</figure>{numbers}</div>"
    )


def curve(reports: Sequence[Report]) -> str:
    lines = [
        (report.name, [known(p["step"], p) for p in report.perturbation_curve["points"]])
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
    numbers = table(
        "Accuracy at each step.",
        heads("step", reports),
        [[f"{step:.4g}", *(share(points.get(step)) for points in at)] for step in steps],
    )
    return (
        "<p>Every image moves along the model’s own normalised loss gradient at the true label, not "
        "clipped to [0, 1] (Figure 4 of the paper). A model that falls later is flatter around its "
        "examples; this is one step, no attack.</p>"
        f'<div class="row"><figure><figcaption>Bands are intervals.</figcaption>{chart}</figure>{numbers}'
        "</div>"
    )


def attacks(reports: Sequence[Report]) -> str:
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
        [escape(s), *(share(attacks.get(s), counts=True) for attacks in by_spec)] for s in specs
    ]
    norms = list(dict.fromkeys(e["norm"] for report in reports for e in report.max_epsilon))
    radii = [{e["norm"]: e for e in report.max_epsilon} for report in reports]
    body += [
        [f"largest ε in {escape(norm)}", *(_radius(of.get(norm)) for of in radii)] for norm in norms
    ]
    numbers = table("Accuracy that is left.", heads("attack", reports), body)
    methods = table(
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
        f'<div class="row">{charts}</div>{numbers}{folded("Method by method", methods)}'
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
        clean = [known(0.0, a["clean"]) for a in attacks[:1]]
        points = [known(a["eps"] * unit, a) for a in attacks]
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
        shots += rows and folded(escape(report.name), rows, unfolded=report is reports[0])
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


def corruptions(reports: Sequence[Report]) -> str:
    measured = [(report, report.corruptions) for report in reports if report.corruptions]
    if not measured:
        return ""
    maps = "".join(_heat_map(report.name, corruptions) for report, corruptions in measured)
    kinds = list(dict.fromkeys(k["kind"] for _, c in measured for k in c["kinds"]))
    of = [{k["kind"]: k for k in c["kinds"]} for _, c in measured]
    body = [
        [words(kind), *(percent(k[kind]["mean_error"]) if kind in k else "–" for k in of)]
        for kind in kinds
    ]
    body.append(["<strong>mean</strong>", *(percent(c["mean_error"]) for _, c in measured)])
    if any(c["mce"] is not None for _, c in measured):
        mce = ("–" if c["mce"] is None else f"{c['mce']:.1f}" for _, c in measured)
        body.append(["<strong>mCE</strong>", *mce])
    numbers = table(
        "Error over the five severities; lower is better. The mean leaves the extra kinds out.",
        heads("corruption", [report for report, _ in measured]),
        body,
    )
    return (
        "<p>Error on images that were corrupted in each of ImageNet-C’s ways, at severities 1 to 5. "
        "The mean error is what is called mCE on CIFAR-C; ImageNet’s mCE divides by AlexNet’s errors, "
        "and is given for ImageNet alone.</p>"
        f'{numbers}<div class="row">{maps}</div>'
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
            f'<tr><th scope="row">{words(kind["kind"])}{extra}</th>{cells}'
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


def calibration(reports: Sequence[Report]) -> str:
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
        return [title, *(percent_entry(report.calibration, keys) for report in reports)]

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
        nll = (entry(report.calibration, ("temperature", when, "nll")) for report in reports)
        likelihood = ("–" if value is None else f"{value:.4f}" for value in nll)
        body.append([f"negative log-likelihood, other half, {when}", *likelihood])
    numbers = table(
        "Calibration errors; 0 is calibrated. The temperature is fitted on one random half of the "
        "images, and measured on the other before and after.",
        heads("", reports),
        body,
    )
    return (
        "<p>Among examples of confidence 80 %, 80 % should be right: dots on the diagonal. Below it the "
        "model is overconfident. The bars at the foot are the examples of each bin. Leaving the most "
        "confident bin out is wrong, but what many published numbers did.</p>"
        f'<div class="row">{charts}</div>{numbers}'
    )


def _temperature(temperature: Part | None) -> str:
    if temperature is None:
        return "–"
    return f"{temperature['value']:.4g}<small>from {temperature['fitted_on']}</small>"
