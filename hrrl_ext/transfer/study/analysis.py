"""What a study has found: a row for every number, and values of such rows by seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from .config import SOURCE
from .measures import CLASSIFIERS
from .parts import Part, Parts
from .queue import Study
from .trials import NEEDED, Trial, all_trials

Row: TypeAlias = dict[str, Any]

KEYS = ("profile", "width", "method", "seed", "target", "count", "measure")
WORST = "worst concept"
SECONDS = "seconds per epoch"
MU = "mu"
CONCEPT, STEP, EPOCH = "concept ", "step ", "fine-tuning epoch "
"""What stands before the name of a concept, the length of a perturbation, the number of an epoch."""


def study_rows(study: Study) -> list[Row]:
    """A row per number, with ``KEYS`` and ``value``: of every trial whose training is through.

    target is "source" for what is measured on the source's test images, and count is None there.
    Measures: of the source accuracy, worst concept, concept NAME, mu and seconds per epoch (of the
    processor on the CPU, which other work hardly touches, else by the clock); of targets, by count, svm,
    knn, fine-tuning and fine-tuning epoch NUMBER; of the source's classifier, and of an SVM on the
    frozen features of a target, clean, corrupted, attack SPEC and step LENGTH.
    """
    rows: list[Row] = []
    for trial, parts in _measured(study):
        of = {"profile": trial.profile, "width": trial.width, "method": trial.method}
        for target, count, measure, value in _values(study, parts):
            if value is not None:
                place = {"seed": trial.seed, "target": target, "count": count, "measure": measure}
                rows.append(of | place | {"value": value})
    return rows


def missing_trials(study: Study) -> list[str]:
    """Trials that are not through their training, or whose training failed, in words."""
    missing = []
    for trial in all_trials(study.config):
        training = study.training(trial)
        if training is None:
            missing.append(f"{trial}: not there yet")
        elif "failed" in training:
            missing.append(f"{trial}: failed: {training['failed']}")
    return missing


def skipped_parts(study: Study) -> list[str]:
    """What could not be measured of a target, and why; told once for all trials."""
    found: dict[str, None] = {}
    for _, parts in _measured(study):
        for name in _part_names(study):
            part = parts.read(name)
            if part is not None and "skipped" in part:
                found[f"{name}: {part['skipped']}"] = None
    return list(found)


def _measured(study: Study) -> Iterator[tuple[Trial, Parts]]:
    for trial in all_trials(study.config):
        training = study.training(trial)
        if training is not None and "failed" not in training:
            yield trial, Parts(study.folder(trial) / "parts")


def _part_names(study: Study) -> Iterator[str]:
    config = study.config
    for target in config.targets:
        yield from (f"features {target} {count}" for count in config.counts)
    yield from (f"finetuning {target} {count}" for target, count in config.finetuned)
    if config.robustness is not None:
        yield from (f"robustness {target}" for target in (SOURCE, *config.targets))


def _values(study: Study, parts: Parts) -> Iterator[tuple[str, Any, str, float | None]]:
    """(target, count, measure, value) of every part of a trial."""
    config = study.config
    training = parts.read("training", needs=NEEDED) or {}
    yield SOURCE, None, "accuracy", training["accuracy"]
    yield SOURCE, None, WORST, training["worst_concept_accuracy"]
    worked = training["processor_seconds_per_epoch"]
    yield SOURCE, None, SECONDS, worked or training["seconds_per_epoch"]
    yield SOURCE, None, MU, training.get("mu")
    for concept, accuracy in training["concept_accuracy"].items():
        yield SOURCE, None, f"{CONCEPT}{concept}", accuracy
    for target in config.targets:
        for count in config.counts:
            part = parts.read(f"features {target} {count}") or {}
            for name in CLASSIFIERS:
                if name in part:
                    yield target, count, name, part[name]["accuracy"]
    for target, count in config.finetuned:
        part = parts.read(f"finetuning {target} {count}") or {}
        yield target, count, "fine-tuning", part.get("accuracy")
        for epoch, accuracy in part.get("by_epoch", {}).items():
            yield target, count, f"{EPOCH}{epoch}", accuracy
    for target in (SOURCE, *config.targets) if config.robustness is not None else ():
        yield from _robustness(target, parts.read(f"robustness {target}") or {})


def _robustness(target: str, part: Part) -> Iterator[tuple[str, Any, str, float | None]]:
    yield target, None, "clean", part.get("accuracy")
    yield target, None, "corrupted", part.get("corrupted")
    for step, accuracy in part.get("steps", {}).items():
        if float(step):  # at 0 it is clean
            yield target, None, f"{STEP}{float(step):.3g}", accuracy
    for spec, accuracy in part.get("attacks", {}).items():
        yield target, None, f"attack {spec}", accuracy


# --- by seed


def matching(rows: Iterable[Row], **where: Any) -> list[Row]:
    """Those that have these entries."""
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def by_seed(rows: Iterable[Row], **where: Any) -> dict[int, float]:
    """Values by seed of the rows that have these entries; ValueError where a seed has two."""
    found: dict[int, float] = {}
    for row in matching(rows, **where):
        if row["seed"] in found:
            raise ValueError(f"by_seed: seed {row['seed']} has several rows of {where}")
        found[row["seed"]] = row["value"]
    return found


def over_targets(rows: Iterable[Row], targets: Sequence[str], **where: Any) -> dict[int, float]:
    """Mean over the targets by seed, of the seeds that have all of them."""
    found: dict[int, list[float]] = defaultdict(list)
    rows = list(rows)
    for target in targets:
        for seed, value in by_seed(rows, target=target, **where).items():
            found[seed].append(value)
    return {s: statistics.fmean(v) for s, v in found.items() if len(v) == len(targets)}


def targets_of(rows: Iterable[Row], **where: Any) -> list[str]:
    """Targets with such a row, in their order; others were skipped, or are still to come."""
    return list(dict.fromkeys(row["target"] for row in matching(rows, **where)))
