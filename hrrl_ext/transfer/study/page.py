"""The page of a study: when does which level pay, and what does it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._tables import escaped, markdown, place, with_tables
from ..differences import Difference, paired
from .analysis import (
    SECONDS,
    WORST,
    Row,
    by_seed,
    missing_trials,
    over_targets,
    skipped_parts,
    study_rows,
    targets_of,
)
from .config import SOURCE, StudyConfig
from .queue import Study
from .trials import all_trials

_LISTED = 10  # trials that are missing, by name
_NOTHING = "Nothing is there yet."


def study_page(
    study: Study, pictures: Mapping[str, str] | None = None, page: Path | None = None
) -> str:
    """Markdown: what is there, gains and costs, every target, levels.

    ``pictures``: captions by the name of a file, as the page is to link it. ``page``: where it is to be
    written; of one that is there all stays but what is between the marks of its tables,
    ``<!-- table: NAME -->`` and ``<!-- end: NAME -->``. ValueError where it lacks one of
    :func:`page_tables`. All numbers are of the trials that are through; what is missing is said first.
    """
    rows, names = study_rows(study), page_tables(study.config)
    links = [f"![{escaped(caption)}]({name})" for name, caption in (pictures or {}).items()]
    tables = {"state": _state(study), "pictures": "\n\n".join(links)}
    for name in names:
        if (table_of := _SECTIONS[name][1]) is not None:
            found = [row for row in table_of(study, rows) if any(row[1:])]
            tables[name] = markdown(found) if len(found) > 1 else _NOTHING
    if page is not None and page.exists():
        if not links:  # drawn on another machine, or not at all
            del tables["pictures"]
        return with_tables(page, tables)
    parts = [text for name in names for text in (_SECTIONS[name][0], place(name, tables[name]))]
    return "\n\n".join(filter(None, parts)) + "\n"


def page_tables(config: StudyConfig) -> list[str]:
    """Names of the tables of its page, in their order; whether they hold something yet does not count, so
    that one page does from the first trial to the last."""
    asked = {
        "published": bool(config.published),
        "compared": bool(config.compare),
        "robust": config.robustness is not None,
        "levels": any(method.level is not None for method in config.methods.values()),
    }
    return [name for name in _SECTIONS if asked.get(name, True)]


def _state(study: Study) -> str:
    missing, skipped = missing_trials(study), skipped_parts(study)
    base, count = study.config.base, len(all_trials(study.config))
    lines = [f"{count - len(missing)} of {count} trials are through."]
    if missing:
        shown = "; ".join(missing[:_LISTED])
        more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        lines.append(f"Missing: {shown}{more}.")
    if skipped:
        lines.append(f"Not measured: {'; '.join(skipped)}.")
    differences = (
        f"Accuracy in %. A difference is to {base} of the same seed (same first weights, batches and "
        "target examples): mean (95 % interval of Student's t over the seeds; their number). It is a "
        "gain or a loss where the interval leaves out 0, which one of twenty does by chance."
    )
    return f"{escaped(' '.join(lines))}\n\n{escaped(differences)}"


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
    yield [f"source, {config.base}", *(name for name, _ in columns)]
    for source, of in _sources(study):
        at_base = of | {"method": config.base}
        yield [source, *(_mean(by_seed(rows, **at_base, **at).values()) for _, at in columns)]


def _short_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    """Where a method gains or loses, at home and in the mean over the targets."""
    yield ["method", "gains", "loses", "open"]
    for method in study.config.methods:
        if method == study.config.base:
            continue
        where: dict[str, list[str]] = {"gain": [], "loss": [], "open": []}
        for source, of in _sources(study):
            places = of | {"method": method}, of | {"method": study.config.base}
            for what, one in _in_short(study, rows, *places).items():
                if one is not None:
                    where[one.verdict].append(f"{source}: {what} {100 * one.mean:+.1f}")
        if any(where.values()):
            told = ("; ".join(where[verdict]) for verdict in ("gain", "loss"))
            yield [method, *told, str(len(where["open"]))]


def _home_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    yield ["source, method", "accuracy", "worst concept", f"time of {study.config.base}'s epoch"]
    at = {"target": SOURCE, "count": None}
    for name, of, base in _methods(study):
        found = _at_home(rows, of, base)
        ours, theirs = (by_seed(rows, **o, **at, measure=SECONDS) for o in (of, base))
        cost = paired(ours, theirs, lambda value, base: value / base)
        yield [name, *map(_text, found.values()), "" if cost is None else f"{cost.mean:.2f}"]


def _mean_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    yield ["source, method", *(f"{measure}, {count}" for measure, count in _measured(study))]
    for name, of, base in _methods(study):
        yield [name, *map(_text, _on_average(study, rows, of, base).values())]


def _compared_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    """A method against another; of several that which is best in this very cell, which is named."""
    columns = ["accuracy", WORST, *(f"{measure}, {count}" for measure, count in _measured(study))]
    yield ["source, methods", *columns]
    for method, *others in study.config.compare:
        against = others[0] if len(others) == 1 else f"the best of {'; '.join(others)}"
        for source, of in _sources(study):
            ours = of | {"method": method}
            found = {o: _in_short(study, rows, ours, of | {"method": o}) for o in others}
            cells = []
            for column in columns:
                known = {o: d for o in others if (d := found[o][column]) is not None}
                best = min(known, key=lambda other: known[other].mean, default=None)
                named = f" {best}" if len(others) > 1 and best is not None else ""
                cells.append("" if best is None else f"{known[best]}{named}")
            yield [f"{source}, {method} against {against}", *cells]


def _published_table(study: Study, rows: Sequence[Row]) -> Iterator[list[str]]:
    """Ours beside what others have found; the verdict is by our interval alone."""
    yield ["published", "gain", "here", "source", "difference", "verdict"]
    for what, one in study.config.published.items():
        at = {"target": one.target, "count": one.count, "measure": "svm"}
        for source, of in _sources(study):
            ours, theirs = (
                by_seed(rows, **of, **at, method=m) for m in (one.method, study.config.base)
            )
            found = paired(ours, theirs)
            verdict = "not there yet"
            if found is not None:
                alike = "gain" if one.gain > 0 else "loss"
                verdicts = {alike: "seen", "open": "not told apart"}
                verdict = verdicts.get(found.verdict, "the other sign")
            here = f"{one.method} on {one.target}, {one.count}"
            yield [what, f"{one.gain:+g}", here, source, _text(found), verdict]


def _in_short(
    study: Study, rows: Sequence[Row], of: dict[str, Any], base: dict[str, Any]
) -> dict[str, Difference | None]:
    return _at_home(rows, of, base) | _on_average(study, rows, of, base)


def _at_home(
    rows: Sequence[Row], of: dict[str, Any], base: dict[str, Any]
) -> dict[str, Difference | None]:
    found: dict[str, Difference | None] = {}
    for measure in ("accuracy", WORST):
        at = {"target": SOURCE, "count": None, "measure": measure}
        found[measure] = paired(by_seed(rows, **of, **at), by_seed(rows, **base, **at))
    return found


def _on_average(
    study: Study, rows: Sequence[Row], of: dict[str, Any], base: dict[str, Any]
) -> dict[str, Difference | None]:
    """Over the targets that the base has been measured on."""
    found: dict[str, Difference | None] = {}
    for measure, count in _measured(study):
        at = {"count": count, "measure": measure}
        targets = targets_of(rows, **base, **at)
        ours, theirs = (over_targets(rows, targets, **one, **at) for one in (of, base))
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
            yield [f"{name}, {target}", *cells]


def _levels_table(study: Study, _: Sequence[Row]) -> Iterator[list[str]]:
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


def _sources(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, and place among the rows, of each source."""
    for width in study.config.widths:
        for profile in study.config.profiles:
            yield f"{profile}, width {width}", {"profile": profile, "width": width}


def _methods(study: Study) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, place among the rows, and the base's place, of each method but the base."""
    base = study.config.base
    for source, of in _sources(study):
        for method in study.config.methods:
            if method != base:
                yield f"{source}, {method}", of | {"method": method}, of | {"method": base}


def _measured(study: Study) -> list[tuple[str, int | str]]:
    config = study.config
    found: list[tuple[str, int | str]] = [(m, c) for m in ("svm", "knn") for c in config.counts]
    if config.finetuning is not None:
        found += [("fine-tuning", count) for count in config.finetuning.counts]
    return found


def _text(found: Difference | None) -> str:
    return "" if found is None else str(found)


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


_SECTIONS: dict[str, tuple[str, Callable[[Study, Sequence[Row]], Iterator[list[str]]] | None]] = {
    "state": ("# When does each level pay?", None),
    "short": ("## In short", _short_table),
    "pictures": ("", None),
    "published": ("## What others have published, beside ours", _published_table),
    "base": ("## The base", _base_table),
    "home": ("## What a level gains at home, and costs", _home_table),
    "mean": ("## What a level gains elsewhere: mean over the targets", _mean_table),
    "compared": ("## One against another", _compared_table),
    "targets": ("## Target by target", _target_table),
    "robust": ("## Corrupted, perturbed, attacked", _robust_table),
    "levels": ("## Levels, chosen on held-out images of the source", _levels_table),
}
"""In the order of a new page, by the names of the tables: a heading, and the table's rows."""
