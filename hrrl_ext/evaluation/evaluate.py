"""Everything that there is to measure of a trained model, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._arrays import labels_digest
from .._environment import environment
from .._modes import borrowed
from .._pixels import PixelCheck
from ..data import Concepts, ImageSet, Source, concepts_of, load_images, with_classes
from ..data.labelled import as_input
from ..data.resize import size_of
from ..data.unreadable import left_out
from ..pretrained import weights_digest
from ..processes import ALONE, Processes
from ..spec import listed
from .attacks.fourier import check_precision
from .config import EvaluationConfig, drawn, evaluation_config
from .corrupted_images import CorruptedImages, corrupted_images, corruptions_together
from .folder import EvaluationFolder
from .parts import (
    BIN_SIZE,
    Part,
    accuracy_part,
    attack_part,
    calibration_part,
    corruption_part,
    curve_part,
    max_epsilon_part,
)
from .perturbation_curve import default_steps, perturbation_curve
from .predictions import are_probabilities, difference, predict
from .report import Report


def evaluate(
    model: nn.Module,
    data: Source,
    *,
    name: str = "model",
    classes: Sequence[str] | None = None,
    concepts: Concepts = None,
    train: ImageSet | None = None,
    preset: str = "quick",
    corruption_folder: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
    processes: Processes = ALONE,
    **settings: Any,
) -> Report:
    """Accuracy by concept, the perturbation curve, calibration, corruptions and attacks of a model.

    Args:
        model: gives logits for images in [0, 1]; evaluated on the device that it is on. It is borrowed
            and comes back as it was.
        data: labelled images of the model's classes, as :func:`hrrl_ext.load_images` opens them; the
            test split of a source with splits.
        name: what the report calls the model.
        classes: names of the model's classes, in the order of its logits: images are matched to them by
            the names of theirs (:func:`hrrl_ext.data.with_classes`). Those of ``data`` if not given.
        concepts: what accuracy is broken down by; the data's own if not given, else the classes.
        train: the images that the model was trained on: their concept counts N_k weigh an average.
        preset: "quick" or "full"; ``settings`` are other values for :class:`EvaluationConfig`.
        corruption_folder: corrupted images to take instead of making them, laid out as ImageNet-C or
            CIFAR-10-C (:func:`~.corruptions.open_corruptions`), pixels as they are stored.
        out: folder that keeps each part as soon as it is measured, and report.json. With ``resume`` an
            evaluation that was interrupted goes on there, also with further attacks or corruptions.
        progress: is told, in a line, of every part that is done.
        processes: those that share every part, batch by batch in turn, and call this alike
            (:func:`hrrl_ext.processes.joined`). Each returns the report of one process, to the bit; the
            first reads and writes ``out``, and tells progress.

    The same settings, device and threads give the same numbers. Raises, before anything is measured,
    ValueError for a model that gives probabilities or has other classes than the data, for images
    outside [0, 1] and for names that are not known; FileExistsError for an ``out`` that is taken.
    """
    config = evaluation_config(preset, **settings)
    _check_attacks(model, config.attacks, config.max_epsilon)
    opened = load_images(data, split="test")
    images = opened if classes is None else with_classes(opened, classes)
    by_class = concepts is None and images.concept_map is None
    asked = "classes" if by_class else concepts
    concept, names = concepts_of(asked, opened)  # a file may give classes as the data count them
    train_count = None if train is None else _train_count(train, asked, names)

    rows = drawn(len(images), config.points, config.seed)
    corrupted = corrupted_images(opened, images, config, corruption_folder)
    images, concept = images.subset(rows), concept[rows]
    attacked = images.subset(drawn(len(images), config.attack_points, config.seed))
    steps = list(default_steps(images.image_shape) if config.steps is None else config.steps)
    is_random = _check_model(model, images, config.batch_size)
    description: Part = {
        "weights": weights_digest(model),
        "data": images.name,
        **left_out(data=opened),
        "points": len(images),
        "image_size": size_of(images.image_shape),
        "classes": images.num_classes,
        "grouped_by": "class" if by_class else "concept",
        "attack_points": len(attacked),
        "quick_attacks": config.quick_attacks,
        "corruption_points": corrupted.points,
        "corruptions_of": "hrrl_ext" if corruption_folder is None else str(corruption_folder),
        "seed": config.seed,
    }
    folder = EvaluationFolder(out, processes)
    begun_with = {
        "class_names": images.classes,
        "examples": labels_digest(images.target, concept),
        "steps": steps,
        "concepts": names,
        "concept_count": torch.bincount(concept, minlength=len(names)).tolist(),
        "train_count": None if train_count is None else train_count.tolist(),
    }
    # A folder that is older than the first two is taken for one with the data's own order of classes.
    older = {"class_names": opened.classes, "examples": begun_with["examples"]}
    groups = _Groups(concept, names, train_count)
    measures = _measures(model, images, attacked, groups, steps, corrupted, config, processes)
    with folder.held():
        folder.begin(description | begun_with, resume=resume, older=older)
        parts = folder.parts(measures, progress if processes.main else None)
        seconds = sum(part["seconds"] for part in parts.values())
        device = str(next((p.device for p in model.parameters()), "cpu"))
        attacks = [parts[f"attack {spec}"] for spec in config.attacks]
        report = _report(
            name,
            {**description, "preset": preset, "seconds": seconds, **environment(device)},
            parts,
            corrupted,
            config,
            _warnings(opened, by_class, is_random, parts, attacks),
        )
        if folder.path is not None:
            report.to_json(folder.path / "report.json")
    return report


# --- the parts


class _Groups(NamedTuple):
    """What accuracy is broken down by."""

    concept: Tensor
    names: list[str]
    train_count: Tensor | None


def _measures(
    model: nn.Module,
    images: ImageSet,
    attacked: ImageSet,
    groups: _Groups,
    steps: list[float],
    corrupted: CorruptedImages,
    config: EvaluationConfig,
    processes: Processes,
) -> dict[str, Callable[[], Part]]:
    """Every part by its name, in the order in which they are measured."""
    shared: dict[str, Any] = {"batch_size": config.batch_size, "processes": processes}
    predictions = cache(partial(predict, model, images, **shared))
    x_target = cache(partial(_tensors, model, attacked))
    quick, seed = config.quick_attacks, config.seed

    def attack(spec: str) -> Part:
        options = shared | {"quick": quick, "seed": seed}
        return attack_part(model, *x_target(), spec, images.classes, **options)

    def corruption(kind: str) -> Part:
        return corruption_part(model, kind, corrupted.severities(kind), **shared)

    def radius(norm: str) -> Part:
        return max_epsilon_part(model, *x_target(), norm, processes=processes)

    return {
        "accuracy": lambda: accuracy_part(predictions(), *groups),
        "perturbation curve": lambda: curve_part(
            perturbation_curve(model, images, steps, **shared)
        ),
        "calibration": lambda: calibration_part(predictions(), seed),
        **{f"corruption {kind}": partial(corruption, kind) for kind in corrupted.kinds},
        **{f"attack {spec}": partial(attack, spec) for spec in config.attacks},
        **{f"max epsilon {norm}": partial(radius, norm) for norm in config.max_epsilon},
    }


def _report(
    name: str,
    about: dict[str, Any],
    parts: dict[str, Part],
    corrupted: CorruptedImages,
    config: EvaluationConfig,
    warnings: Iterator[tuple[str, str]],
) -> Report:
    by_kind = [parts[f"corruption {kind}"] for kind in corrupted.kinds]
    return Report(
        name=name,
        about=about,
        accuracy=parts["accuracy"],
        perturbation_curve=parts["perturbation curve"],
        calibration=parts["calibration"],
        corruptions=corruptions_together(by_kind, corrupted.of_imagenet) if by_kind else None,
        attacks=[parts[f"attack {spec}"] for spec in config.attacks],
        max_epsilon=[parts[f"max epsilon {norm}"] for norm in config.max_epsilon],
        warnings=[{"name": name, "text": text} for name, text in warnings],
    )


# --- before anything is measured


def _check_attacks(model: nn.Module, specs: Sequence[str], norms: Sequence[str]) -> None:
    """By what reads them; refuses what it does not know, and norms that images of the model's dtype are
    too coarse for."""
    if specs or norms:
        from .attacks import find_norm, parse_threat

        with borrowed(model, None) as (_, dtype):
            for spec in specs:
                check_precision("evaluate: attacks", find_norm(parse_threat(spec).norm), dtype)
            for norm in norms:
                check_precision("evaluate: max_epsilon", find_norm(norm), dtype)


def _train_count(train: ImageSet, concepts: Concepts, names: Sequence[str]) -> Tensor:
    """N_k [K] of the training images, for the concepts by these names."""
    concept, train_names = concepts_of(concepts, train)
    if not set(names) <= set(train_names):
        raise ValueError(
            f"train: the concepts of {train.name} are {train_names}, those of data {list(names)}; "
            "give concepts that both have, by class or by the column of a metadata CSV"
        )
    count = torch.bincount(concept, minlength=len(train_names))
    place = {name: k for k, name in enumerate(train_names)}
    return count if train_names == list(names) else count[[place[name] for name in names]]


def _check_model(model: nn.Module, images: ImageSet, batch_size: int) -> bool:
    """Refuses what gives no logits of the data's classes; whether two passes differ, but for rounding."""
    some = images.subset(range(min(batch_size, len(images))))
    first, second = (predict(model, some, batch_size=batch_size).logits for _ in range(2))
    if first.shape[1] != images.num_classes:
        raise ValueError(
            f"the model has {first.shape[1]} classes, {images.name} has {images.num_classes}; give "
            "data of the classes that the model was trained on"
        )
    if are_probabilities(first):
        raise ValueError(
            "the model gives probabilities, not logits: each row of its output sums to 1. Leave its "
            "last softmax out; behind it calibration is wrong and gradients vanish, so that attacks "
            "fail for the wrong reason"
        )
    return difference(first, second) > 0


def _tensors(model: nn.Module, images: ImageSet) -> tuple[Tensor, Tensor]:
    """x [N, 3, H, W] and target [N] as the model takes them."""
    x, target = images.__getitems__(range(len(images)))
    with borrowed(model, None) as (device, dtype):
        return as_input(x, device, dtype, PixelCheck(model, "evaluate")), target.to(device)


# --- afterwards


def _warnings(
    images: ImageSet,
    by_class: bool,
    is_random: bool,
    parts: dict[str, Part],
    attacks: list[Part],
) -> Iterator[tuple[str, str]]:
    """Each by its name in ``EXPLANATIONS``, and in words."""
    if images.left_out:
        names = listed(list(images.left_out))
        yield "left out", f"{len(images.left_out)} images are left out: {names}"
    if is_random:
        yield "random predictions", "two passes over the same images give different logits"
    if by_class:
        yield "by class", "no concepts are known: accuracy is broken down by class"
    absent = [c["name"] for c in parts["accuracy"]["concepts"] if not c["count"]]
    if absent:
        yield "absent concept", f"no example of {', '.join(absent)}"
    calibration = parts["calibration"]
    if calibration["count"] < BIN_SIZE:
        yield (
            "few points",
            f"calibration has a single bin: {calibration['count']} examples, a bin is {BIN_SIZE}",
        )
    temperature = calibration["temperature"]
    if temperature is not None and temperature["at_limit"]:
        yield (
            "temperature",
            f"the temperature is at a limit of its search, {temperature['value']:g}",
        )
    for attack in attacks:
        for warning in attack["warnings"]:
            yield "attack", f"{attack['spec']}: {warning}"
