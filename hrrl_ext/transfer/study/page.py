"""The page of a study: when does which level pay, and what does it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..._tables import markdown, one_line
from .analysis import (
    SECONDS,
    WORST,
    Difference,
    Row,
    by_seed,
    missing_trials,
    over_targets,
    paired,
    skipped_parts,
    study_rows,
    targets_of,
)
from .config import SOURCE
from .queue import Study
from .trials import all_trials

_LISTED = 10  # trials that are missing, by name


def study_page(study: Study, pictures: Mapping[str, str] | None = None) -> str:
    """Markdown: what is there, levels, the base, gains and costs, and every target.

    ``pictures``: captions by the name of a file, as the page is to link it. All numbers are of the
    trials that are through; what is missing is said first.
    """
    rows, config = study_rows(study), study.config
    text = ["# When does each level pay?", _state(study)]
    if not rows:
        return "\n\n".join(text) + "\n"
    text += [
        f"Accuracy in %. A difference is to {config.base} of the same seed (same first weights, batches "
        "and target examples): mean (95 % interval of Student's t over the seeds; their number). It is a "
        "gain or a loss where the interval leaves out 0, which one of twenty does by chance.",
        "## In short",
        markdown(list(_short_table(study, rows))),
        *(f"![{caption}]({name})" for name, caption in (pictures or {}).items()),
        f"## {config.base}",
        markdown(list(_base_table(study, rows))),
        "## What a level gains at home, and costs",
        markdown(list(_home_table(study, rows))),
        "## What a level gains elsewhere: mean over the targets",
        markdown(list(_mean_table(study, rows))),
        "## Target by target",
        markdown(list(_target_table(study, rows))),
    ]
    robust = list(_robust_table(study, rows))
    if len(robust) > 1:
        text += ["## Corrupted, perturbed, attacked", markdown(robust)]
    levels = list(_levels_table(study))
    if len(levels) > 1:
        text += ["## Levels, chosen on held-out images of the source", markdown(levels)]
    return "\n\n".join(text) + "\n"


def _state(study: Study) -> str:
    missing, skipped = missing_trials(study), skipped_parts(study)
    count = len(all_trials(study.config))
    lines = [f"{count - len(missing)} of {count} trials are through."]
    if missing:
        shown = "; ".join(missing[:_LISTED])
        more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        lines.append(f"Missing: {shown}{more}.")
    if skipped:
        lines.append(f"Not measured: {'; '.join(skipped)}.")
    return one_line(" ".join(lines))


def _base_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    """Of the base itself: whether plain training is good."""
    config = study.config
    columns: list[tuple[str, dict[str, Any]]] = [
        ("accuracy", {"target": SOURCE, "count": None, "measure": "accuracy"}),
        ("worst concept", {"target": SOURCE, "count": None, "measure": WORST}),
    ]
    largest = config.counts[-1]
    for target in config.targets:
        at = {"target": target, "count": largest, "measure": "svm"}
        columns.append((f"{target}, SVM, {largest}", at))
    yield ["source", *(name for name, _ in columns)]
    for profile, width in _sources(study):
        of = {"profile": profile, "width": width, "method": config.base}
        cells = [_mean(by_seed(rows, **of, **at).values()) for _, at in columns]
        yield [_source_name(profile, width), *cells]


def _short_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    """Where a method gains or loses, at home and in the mean over the targets."""
    yield ["method", "gains", "loses", "open"]
    for method in study.config.methods:
        if method == study.config.base:
            continue
        where: dict[str, list[str]] = {"gain": [], "loss": [], "open": []}
        for source in _sources(study):
            found = _at_home(study, rows, *source, method) | _on_average(
                study, rows, *source, method
            )
            for what, one in found.items():
                if one is not None:
                    where[one.verdict].append(
                        f"{_source_name(*source)}: {what} {100 * one.mean:+.1f}"
                    )
        yield [method, "; ".join(where["gain"]), "; ".join(where["loss"]), str(len(where["open"]))]


def _home_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    yield ["source, method", "accuracy", "worst concept", f"time of {study.config.base}'s epoch"]
    at = {"target": SOURCE, "count": None}
    for name, of, base in _methods(study):
        found = _at_home(study, rows, of["profile"], of["width"], of["method"])
        ours, theirs = (by_seed(rows, **o, **at, measure=SECONDS) for o in (of, base))
        cost = paired(ours, theirs, lambda value, base: value / base)
        yield [name, *map(_text, found.values()), "" if cost is None else f"{cost.mean:.2f}"]


def _mean_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    yield ["source, method", *(f"{measure}, {count}" for measure, count in _measured(study))]
    for name, of, _ in _methods(study):
        found = _on_average(study, rows, of["profile"], of["width"], of["method"])
        yield [name, *map(_text, found.values())]


def _at_home(
    study: Study, rows: Sequence[Row], profile: str, width: int, method: str
) -> dict[str, Difference | None]:
    of = {"profile": profile, "width": width, "target": SOURCE, "count": None}
    found: dict[str, Difference | None] = {}
    for measure in ("accuracy", WORST):
        ours, theirs = (
            by_seed(rows, **of, method=m, measure=measure) for m in (method, study.config.base)
        )
        found[measure] = paired(ours, theirs)
    return found


def _on_average(
    study: Study, rows: Sequence[Row], profile: str, width: int, method: str
) -> dict[str, Difference | None]:
    """Over the targets that the base has been measured on."""
    of, base = {"profile": profile, "width": width}, study.config.base
    found: dict[str, Difference | None] = {}
    for measure, count in _measured(study):
        at = {**of, "count": count, "measure": measure}
        targets = targets_of(rows, **at, method=base)
        ours, theirs = (over_targets(rows, targets, **at, method=m) for m in (method, base))
        found[f"{measure}, {count}"] = paired(ours, theirs)
    return found


def _target_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    measures = _measured(study)
    yield ["source, method, target", *(f"{measure}, {count}" for measure, count in measures)]
    for name, of, base in _methods(study):
        for target in study.config.targets:
            cells = []
            for measure, count in measures:
                at = {"target": target, "count": count, "measure": measure}
                cells.append(_text(paired(by_seed(rows, **of, **at), by_seed(rows, **base, **at))))
            yield [f"{name}, {target}", *cells]


def _robust_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    """Differences of the classifier on frozen features, and of the source's own."""
    is_one = ("clean", "corrupted", "attack ", "step ")
    measures = list(dict.fromkeys(r["measure"] for r in rows if r["measure"].startswith(is_one)))
    yield ["source, method, images", *measures]
    for name, of, base in _methods(study):
        for target in (SOURCE, *study.config.targets):
            cells = []
            for measure in measures:
                at = {"target": target, "count": None, "measure": measure}
                cells.append(_text(paired(by_seed(rows, **of, **at), by_seed(rows, **base, **at))))
            if any(cells):
                yield [f"{name}, {target}", *cells]


def _levels_table(study: Study) -> Iterator[list[str]]:
    yield ["profile, method", "setting", "chosen", "scores of all"]
    for profile in study.config.profiles:
        for method, spec in study.config.methods.items():
            if spec.level is None or (kept := study.levels.chosen(profile, method)) is None:
                continue
            scores = ", ".join(
                f"{value}: {'failed' if s is None else f'{100 * s:.1f}'}"
                for value, s in kept["scores"].items()
            )
            yield [f"{profile}, {method}", spec.level, f"{kept['value']:g}", scores]


def _sources(study: Study) -> Iterator[tuple[str, int]]:
    for width in study.config.widths:
        for profile in study.config.profiles:
            yield profile, width


def _methods(study: Study) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, place among the rows, and the base's place, of each method but the base."""
    base = study.config.base
    for profile, width in _sources(study):
        of = {"profile": profile, "width": width}
        for method in study.config.methods:
            if method != base:
                name = f"{_source_name(profile, width)}, {method}"
                yield name, of | {"method": method}, of | {"method": base}


def _measured(study: Study) -> list[tuple[str, int | str]]:
    config = study.config
    found: list[tuple[str, int | str]] = [(m, c) for m in ("svm", "knn") for c in config.counts]
    if config.finetuning is not None:
        found += [("fine-tuning", count) for count in config.finetuning.counts]
    return found


def _text(found: Difference | None) -> str:
    return "" if found is None else str(found)


def _source_name(profile: str, width: int) -> str:
    return f"{profile}, width {width}"


def _mean(values: Any) -> str:
    """In per cent, with the deviation where there are several, and how many."""
    values = [100 * v for v in values]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    shown = f"{statistics.fmean(values):.1f}"
    return (
        f"{shown} ({len(values)})"
        if math.isnan(spread)
        else f"{shown} ± {spread:.1f} ({len(values)})"
    )
