"""Figures 2 to 5 of HRRL, of a study's networks."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..concept_weights import variance_gain
from ..transfer.study.analysis import CONCEPT, EPOCH, MU, STEP, Row, by_seed, matching, study_rows
from ..transfer.study.config import SOURCE
from ..transfer.study.queue import Study
from .figures import panels_of, save, shown
from .study import colours_of, sources_of

_SOURCE = {"target": SOURCE, "count": None}
Line = tuple[list[float], list[float]]


def plot_paper(study: Study, out: str | os.PathLike[str]) -> dict[Path, str]:
    """slow-steps.png, fine-tuning.png, perturbed.png and by-concept.png in folder ``out``, with captions.

    Of the trials that are through, each point the mean over the seeds; a picture that has nothing to show
    yet is left out.
    """
    rows, out = study_rows(study), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    panels = [
        ({"profile": p, "width": w}, f"{shown(p)}, width {w}") for p, w in sources_of(study, rows)
    ]
    tuned = [
        (of | {"target": target, "count": count}, f"{shown(target)}, {count} a class\n{title}")
        for of, title in panels
        for target, count in _tuned(rows)
    ]
    drawn = {
        _picture(study, rows, panels, _slow_steps, out / "slow-steps.png"): (
            "As the paper's Figure 2: h(s) for λ = 1 and the μ that was measured"
        ),
        _picture(study, rows, tuned, _fine_tuned, out / "fine-tuning.png"): (
            "As its Figure 3: test error while all weights are trained on a target, by their start"
        ),
        _picture(study, rows, panels, _perturbed, out / "perturbed.png"): (
            "As its Figure 4: accuracy at home along each network's own input gradient"
        ),
        _picture(study, rows, panels, _by_concept, out / "by-concept.png"): (
            "As its Figure 5: accuracy of each concept, from the worst to the best"
        ),
    }
    return {path: caption for path, caption in drawn.items() if path is not None}


def _picture(
    study: Study,
    rows: Sequence[Row],
    panels: Sequence[tuple[dict[str, Any], str]],
    draw: Callable[[Sequence[Row]], tuple[Line, str, str]],
    path: Path,
) -> Path | None:
    """A panel for each of ``panels`` with something to show, and there a line of each method."""
    colours, found = colours_of(study), []
    for of, title in panels:
        there = matching(rows, **of)
        lines = {m: draw(matching(there, method=m)) for m in study.config.methods}
        if any(line[0] for line, *_ in lines.values()):
            found.append((title, lines))
    if not found:
        return None
    figure, axes = panels_of(len(found), width=4.2, sharey=False)
    for ax, (title, lines) in zip(axes, found, strict=True):
        for method, ((x, y), xlabel, ylabel) in lines.items():
            if x:
                marker = "." if len(x) < 30 else ""
                ax.plot(x, y, marker=marker, label=shown(method), color=colours[method])
                ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_title(title, fontsize="small")
    axes[0].legend(fontsize="x-small")
    return save(figure, path)


def _slow_steps(rows: Sequence[Row]) -> tuple[Line, str, str]:
    found = by_seed(rows, **_SOURCE, measure=MU)
    if not found:
        return ([], []), "", ""
    mu = statistics.fmean(found.values())
    steps = [10 ** (i / 20) for i in range(101)]  # to 100,000
    gain = [variance_gain(s, mu, 1.0) for s in steps]
    kept = [(s, h) for s, h in zip(steps, gain, strict=True) if h > -max(gain)]
    return ([s for s, _ in kept], [h for _, h in kept]), "s, slow first steps of q", "h(s)"


def _fine_tuned(rows: Sequence[Row]) -> tuple[Line, str, str]:
    line = _over(rows, EPOCH)
    return (line[0], [100 - accuracy for accuracy in line[1]]), "epoch", "test error, %"


def _perturbed(rows: Sequence[Row]) -> tuple[Line, str, str]:
    rows = matching(rows, **_SOURCE)
    length, accuracy = _over(rows, STEP)
    if length and (clean := by_seed(rows, measure="clean")):
        length = [0.0, *length]
        accuracy = [100 * statistics.fmean(clean.values()), *accuracy]
    return (length, accuracy), "length of the perturbation", "accuracy, %"


def _by_concept(rows: Sequence[Row]) -> tuple[Line, str, str]:
    rows = matching(rows, **_SOURCE)
    # Sorted within a seed, whose unequal sizes are of concepts of its own.
    seeds = [
        sorted(100 * r["value"] for r in of_seed if r["measure"].startswith(CONCEPT))
        for of_seed in _grouped(rows, "seed").values()
    ]
    mean = [statistics.fmean(values) for values in zip(*(s for s in seeds if s), strict=False)]
    places = [float(i + 1) for i in range(len(mean))]
    return (places, mean), "concepts, from the worst", "accuracy, %"


def _over(rows: Iterable[Row], prefix: str) -> Line:
    """Mean accuracy in % over the number that stands in the measure after ``prefix``."""
    of = _grouped((r for r in rows if r["measure"].startswith(prefix)), "measure")
    means = {
        float(measure.removeprefix(prefix)): 100 * statistics.fmean(r["value"] for r in group)
        for measure, group in of.items()
    }
    return sorted(means), [means[x] for x in sorted(means)]


def _tuned(rows: Iterable[Row]) -> list[tuple[str, Any]]:
    found = ((r["target"], r["count"]) for r in rows if r["measure"].startswith(EPOCH))
    return list(dict.fromkeys(found))


def _grouped(rows: Iterable[Row], key: str) -> Mapping[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found
