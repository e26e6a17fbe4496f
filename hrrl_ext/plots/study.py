"""The three pictures of a study: gain by number of examples, concepts at home, cost against gain."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..transfer.differences import Difference, paired
from ..transfer.study.analysis import (
    SECONDS,
    WORST,
    Row,
    by_seed,
    over_targets,
    study_rows,
    targets_of,
)
from ..transfer.study.config import SOURCE
from ..transfer.study.queue import Study
from .figures import panels_of, save, shown

_SOURCE = {"target": SOURCE, "count": None}


def plot_study(study: Study, out: str | os.PathLike[str]) -> dict[Path, str]:
    """gain.png, concepts.png and cost.png in folder ``out``, each with its caption.

    Of the trials that are through; a picture that has nothing to show yet is left out. Lines and points
    are means over the seeds, bars their 95 % intervals. The measure is the linear SVM's accuracy.
    """
    rows, out = study_rows(study), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    base = study.config.base
    colours = colours_of(study)
    drawn = {
        _gain(study, rows, colours, out / "gain.png"): (
            f"Difference to {base} on each target by the number of training examples of a class"
        ),
        _concepts(study, rows, colours, out / "concepts.png"): (
            "Accuracy at home: the worst concept against the average, by sizes of the concepts"
        ),
        _cost(study, rows, colours, out / "cost.png"): (
            f"Time of an epoch against {base}'s, and the mean gain over the targets"
        ),
    }
    return {path: caption for path, caption in drawn.items() if path is not None}


def _gain(study: Study, rows: Sequence[Row], colours: Mapping[str, Any], path: Path) -> Path | None:
    """A row of panels per source, one for each target; a line per method."""
    config = study.config
    lines: dict[tuple[str, int, str], dict[str, list[tuple[int, Difference]]]] = {}
    for profile, width in sources_of(study, rows):
        for target in config.targets:
            of = {"profile": profile, "width": width, "target": target, "measure": "svm"}
            found = {m: _by_count(study, rows, m, of) for m in _others(study)}
            if any(found.values()):
                lines[profile, width, target] = found
    if not lines:
        return None
    figure, axes = panels_of(len(lines), width=3.6, sharey=False, across=len(config.targets))
    for ax, ((profile, width, target), of_methods) in zip(axes, lines.items(), strict=True):
        for number, (method, points) in enumerate(of_methods.items()):
            aside = 0.06 * (number - (len(of_methods) - 1) / 2)  # so that bars can be told apart
            moved = [(place + aside, one) for place, one in points]
            _bars(ax, moved, colour=colours[method], label=shown(method))
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(config.counts)), [str(c) for c in config.counts])
        ax.set_title(f"{shown(target)}\n{shown(profile)}, width {width}", fontsize="small")
    axes[0].set(xlabel="examples of a class", ylabel=f"points above {shown(config.base)}")
    axes[0].legend(fontsize="x-small")
    return save(figure, path)


def _by_count(
    study: Study, rows: Sequence[Row], method: str, of: dict[str, Any]
) -> list[tuple[int, Difference]]:
    found = []
    for place, count in enumerate(study.config.counts):
        ours, theirs = (
            by_seed(rows, **of, count=count, method=m) for m in (method, study.config.base)
        )
        if (one := paired(ours, theirs)) is not None:
            found.append((place, one))
    return found


def _concepts(
    study: Study, rows: Sequence[Row], colours: Mapping[str, Any], path: Path
) -> Path | None:
    """A panel per source: each seed a dot, each method's mean a large one."""
    sources = sources_of(study, rows)
    if not sources:
        return None
    figure, axes = panels_of(len(sources), width=4.2, sharey=False)
    for ax, (profile, width) in zip(axes, sources, strict=True):
        for method in study.config.methods:
            of = {"profile": profile, "width": width, "method": method, **_SOURCE}
            average, worst = (by_seed(rows, **of, measure=m) for m in ("accuracy", WORST))
            if not average:
                continue
            x, y = [100 * v for v in average.values()], [100 * worst[s] for s in average]
            ax.plot(x, y, ".", color=colours[method], alpha=0.4)
            middle = [statistics.fmean(x)], [statistics.fmean(y)]
            ax.plot(*middle, "o", color=colours[method], label=shown(method))
        ax.set_title(f"{shown(profile)}, width {width}", fontsize="small")
    axes[0].set(xlabel="accuracy, %", ylabel="worst concept, %")
    axes[0].legend(fontsize="x-small")
    return save(figure, path)


def _cost(study: Study, rows: Sequence[Row], colours: Mapping[str, Any], path: Path) -> Path | None:
    """A panel per source: the gain with the fewest examples, and with the most."""
    counts = list(dict.fromkeys((study.config.counts[0], study.config.counts[-1])))
    points: dict[tuple[str, int], list[tuple[str, int, float, Difference]]] = {}
    for profile, width in sources_of(study, rows):
        of = {"profile": profile, "width": width}
        for method in _others(study):
            seconds, base = (
                by_seed(rows, **of, **_SOURCE, method=m, measure=SECONDS)
                for m in (method, study.config.base)
            )
            cost = paired(seconds, base, lambda value, base: value / base)
            for number, count in enumerate(counts):
                gain = _mean_gain(study, rows, method, {**of, "count": count, "measure": "svm"})
                if cost is not None and gain is not None:
                    points.setdefault((profile, width), []).append(
                        (method, number, cost.mean, gain)
                    )
    if not points:
        return None
    figure, axes = panels_of(len(points), width=4.2, sharey=False)
    for ax, ((profile, width), of_methods) in zip(axes, points.items(), strict=True):
        for method, number, cost_, gain in of_methods:
            label = f"{shown(method)}, {counts[number]} a class"
            style = {"marker": "os"[number], "mfc": "none" if number else colours[method]}
            _bars(ax, [(cost_, gain)], colour=colours[method], label=label, **style)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"{shown(profile)}, width {width}", fontsize="small")
    base_ = shown(study.config.base)
    axes[0].set(xlabel=f"time of an epoch, {base_} = 1", ylabel=f"mean points above {base_}")
    axes[0].legend(fontsize="x-small")
    return save(figure, path)


def _mean_gain(
    study: Study, rows: Sequence[Row], method: str, of: dict[str, Any]
) -> Difference | None:
    base = study.config.base
    targets = targets_of(rows, **of, method=base)
    if not targets:
        return None
    ours, theirs = (over_targets(rows, targets, **of, method=m) for m in (method, base))
    return paired(ours, theirs)


def _bars(
    ax: Any, points: Sequence[tuple[float, Difference]], *, colour: Any, label: str, **style: Any
) -> None:
    """Means, and their intervals where there are several seeds."""
    if not points:
        return
    x = [place for place, _ in points]
    y = [100 * d.mean for _, d in points]
    half = [100 * (d.high - d.mean) if d.seeds > 1 else 0.0 for _, d in points]
    style = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2} | style
    ax.errorbar(x, y, yerr=half, color=colour, label=label, **style)


def _others(study: Study) -> list[str]:
    return [m for m in study.config.methods if m != study.config.base]


def colours_of(study: Study) -> dict[str, Any]:
    """Of the methods, in all pictures: the base black, and the others told apart."""
    from matplotlib import colormaps

    others = _others(study)
    if len(others) > 20:  # more than any palette of names for colours has
        some = colormaps["turbo"].resampled(len(others))
    else:
        some = colormaps["tab10" if len(others) <= 10 else "tab20"]
    colours = {m: some(i) for i, m in enumerate(others)}
    return {study.config.base: "black", **colours}


def sources_of(study: Study, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Profile and width, of those that have a number."""
    there = {(r["profile"], r["width"]) for r in rows}
    config = study.config
    return [(p, w) for w in config.widths for p in config.profiles if (p, w) in there]
