"""What a trained network is measured for, part by part: cheap features first, the rest when asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ...evaluation import Report, evaluate
from ..features import Features, extract_features
from ..finetuning import finetune
from ..frozen import frozen_classifier
from ..probe import LinearProbe, probe
from .config import SOURCE, StudyConfig, file_name
from .images import StudyImages
from .parts import Part
from .trials import goes_on, trained_model

CLASSIFIERS = ("svm", "knn")


class Measure(NamedTuple):
    """A part to be made: its name, what it is of, and how."""

    name: str
    of: dict[str, Any]
    make: Callable[[], Part]


def cheap_measures(
    config: StudyConfig, images: StudyImages, folder: Path, seed: int
) -> Iterator[Measure]:
    """SVM and k-NN on the features of each target, which are computed once for all counts."""
    opened = _Opened(images, folder)
    for target in config.targets:
        for count in config.counts:
            make = partial(_features_part, opened, target, count, seed)
            yield Measure(f"features {target} {count}", _of(config, target), make)


def costly_measures(
    config: StudyConfig, images: StudyImages, folder: Path, seed: int
) -> Iterator[Measure]:
    """Corruptions, perturbations and attacks, of the source's classifier and of an SVM on the frozen
    features of each target; and fine-tuning."""
    opened = _Opened(images, folder)
    if config.robustness is not None:
        for target in (SOURCE, *config.targets):
            of = _of(config, target) | {"robustness": dict(config.robustness)}
            make = partial(_robustness_part, opened, config, target)
            yield Measure(f"robustness {target}", of, make)
    if config.finetuning is not None:
        for target, count in config.finetuned:
            of = _of(config, target) | {"finetuning": dict(config.finetuning.settings)}
            make = partial(_finetuning_part, opened, config, target, count, seed)
            yield Measure(f"finetuning {target} {count}", of, make)


def _of(config: StudyConfig, target: str) -> dict[str, Any]:
    spec = config.source if target == SOURCE else config.targets[target]
    return {"images": asdict(spec), "image_size": config.source.image_size}


class _Opened:
    """The network of a trial and its features, when they are asked for."""

    def __init__(self, images: StudyImages, folder: Path) -> None:
        self.images, self.folder = images, folder
        self.model: Callable[[], nn.Module] = cache(lambda: trained_model(folder / "run"))
        self.features = cache(self._features)

    def _features(self, target: str) -> tuple[Features, Features]:
        sets = self.images.target(target)
        train, test = (extract_features(self.model(), s) for s in (sets.train, sets.test))
        return train, test


def _features_part(opened: _Opened, target: str, count: int | str, seed: int) -> Part:
    try:
        rows = opened.images.few(target, count, seed)
    except ValueError as error:
        return {"skipped": str(error)}
    train, test = opened.features(target)
    some = Features(train.features[rows], train.labels[rows])
    part: Part = {"examples": len(rows)}
    for method in CLASSIFIERS:
        result = probe(some, test, method=method)  # type: ignore[arg-type]
        part[method] = result.to_dict()
    return part


def _robustness_part(opened: _Opened, config: StudyConfig, target: str) -> Part:
    """In a folder of its own, which keeps each corruption and attack as soon as it is measured."""
    model, test = opened.model(), opened.images.source_test()
    if target != SOURCE:
        train, _ = opened.features(target)
        test = opened.images.target(target).test
        svm = LinearProbe().fit(train.features, train.labels)
        if len(svm.classes_) < test.num_classes:
            return {"skipped": f"{target} has classes without a training image"}
        model = frozen_classifier(model, svm)
    report = evaluate(
        model,
        test,
        name=target,
        concepts=config.source.concepts if target == SOURCE else None,
        out=opened.folder / "robustness" / file_name(target),
        resume=True,
        **(config.robustness or {}),
    )
    return _summary(report)


def _summary(report: Report) -> Part:
    error = (report.corruptions or {}).get("mean_error")
    return {
        "accuracy": report.accuracy["accuracy"],
        "steps": {f"{p['step']:g}": p["accuracy"] for p in report.perturbation_curve["points"]},
        "corrupted": None if error is None else 1 - error,
        "attacks": {a["spec"]: a["accuracy"] for a in report.attacks},
        "calibration": report.calibration["ece"],
    }


def _finetuning_part(
    opened: _Opened, config: StudyConfig, target: str, count: int | str, seed: int
) -> Part:
    try:
        rows = opened.images.few(target, count, seed)
    except ValueError as error:
        return {"skipped": str(error)}
    sets = opened.images.target(target)
    out = opened.folder / "finetuning" / f"{file_name(target)}-{count}"
    settings = dict(config.finetuning.settings) if config.finetuning is not None else {}
    result = finetune(
        opened.folder / "run" / "best",
        sets.train.subset(rows),
        validation=sets.test,
        seed=seed,
        out=out,
        resume=goes_on(out),
        progress="off",
        concepts="classes",
        **{"evaluate_every": settings.get("epochs", 100)} | settings,
    )
    part = {
        "examples": len(rows),
        "accuracy": result.last["accuracy"],
        "by_epoch": {row["epoch"]: row["accuracy"] for row in result.history if "accuracy" in row},
    }
    shutil.rmtree(out)  # what it came to is kept; its weights are nobody's
    return part
