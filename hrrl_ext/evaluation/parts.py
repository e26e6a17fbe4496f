"""The parts of a report: each measures one thing and returns plain numbers and texts, for JSON.

A share is always {"correct", "count", "accuracy", "low", "high"}, with Wilson's 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImageSet
from ..processes import ALONE, Processes
from .accuracy import Accuracy, wilson_interval
from .calibration import (
    LIMITS,
    Bins,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    rms_calibration_error,
)
from .corruptions import SEVERITIES
from .perturbation_curve import PerturbationCurve
from .pictures import attack_pictures
from .predictions import Predictions, predict

Part = dict[str, Any]

BIN_SIZE = 100


def share(correct: int, count: int) -> Part:
    low, high = wilson_interval(correct, count)
    accuracy = correct / count if count else None
    return {"correct": correct, "count": count, "accuracy": accuracy, "low": low, "high": high}


def accuracy_part(
    predictions: Predictions,
    concept: Tensor,
    names: Sequence[str],
    train_count: Tensor | None = None,
) -> Part:
    """Concepts from the hardest on, absent ones last; ``train_count`` [K] are the N_k that weigh."""
    measured = Accuracy.of(predictions.correct, concept, len(names))
    order = measured.hardest_first()
    concepts = []
    for k in order:
        row = share(int(measured.concept_correct[k]), int(measured.concept_count[k]))
        seen = {} if train_count is None else {"train_count": int(train_count[k])}
        concepts.append({"name": names[k], **row, **seen})
    total = share(int(measured.concept_correct.sum()), int(measured.concept_count.sum()))
    weighted = None if train_count is None else _number(measured.weighted(train_count))
    return {
        **total,
        "worst": concepts[0],
        "concept_mean": measured.concept_mean,
        "train_weighted": weighted,
        "concepts": concepts,
    }


def curve_part(curve: PerturbationCurve) -> Part:
    return {
        "points": [
            {"step": step, **share(correct, curve.count)}
            for step, correct in zip(curve.steps, curve.correct, strict=True)
        ]
    }


def calibration_part(predictions: Predictions, seed: int) -> Part:
    """Of all examples; and with a temperature fitted on one random half, of the other half."""
    confidence, correct = predictions.confidence, predictions.correct
    mass = equal_mass_bins(confidence, correct, BIN_SIZE)
    width = equal_width_bins(confidence, correct)
    return {
        "count": len(correct),
        "bin_size": BIN_SIZE,
        "mean_confidence": confidence.mean().item(),
        **_errors(mass, width),
        "rms_without_last_bin": _number(rms_calibration_error(mass, drop_last_bin=True)),
        "equal_mass": _rows(mass),
        "equal_width": _rows(width),
        "temperature": _temperature(predictions, seed),
    }


def _errors(mass: Bins, width: Bins) -> Part:
    return {"rms": rms_calibration_error(mass), "ece": expected_calibration_error(width)}


def _rows(bins: Bins) -> list[Part]:
    return [
        {"count": int(n), "confidence": float(confidence), "accuracy": float(accuracy)}
        for n, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True)
    ]


def _temperature(predictions: Predictions, seed: int) -> Part | None:
    """None with fewer than two examples: there is no half to fit on."""
    fitted_on, measured_on = (
        Predictions(*(x[rows] for x in predictions))
        for rows in _halves(len(predictions.labels), seed)
    )
    if not len(fitted_on.labels):
        return None
    t = fit_temperature(fitted_on)
    mended = Predictions(measured_on.logits.double() / t, measured_on.labels)
    return {
        "value": t,
        "at_limit": t in LIMITS,
        "fitted_on": len(fitted_on.labels),
        "count": len(measured_on.labels),
        "before": _calibration_errors(measured_on),
        "after": _calibration_errors(mended),
    }


def _calibration_errors(predictions: Predictions) -> Part:
    confidence, correct = predictions.confidence, predictions.correct
    errors = _errors(
        equal_mass_bins(confidence, correct, BIN_SIZE), equal_width_bins(confidence, correct)
    )
    return errors | {"nll": negative_log_likelihood(predictions)}


def _halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


def corruption_part(
    model: nn.Module,
    kind: str,
    severities: Sequence[ImageSet],
    *,
    batch_size: int,
    processes: Processes = ALONE,
) -> Part:
    """One kind at every severity; the calibration error is that of all severities together."""

    def measured(images: ImageSet) -> tuple[Tensor, Tensor]:
        """Without their logits, which are several GB of a large set."""
        predictions = predict(model, images, batch_size=batch_size, processes=processes)
        return predictions.correct, predictions.confidence

    correct, confidence = zip(*map(measured, severities), strict=True)
    together = torch.cat(correct)
    return {
        "kind": kind,
        "severities": [
            {"severity": s, **share(int(right.sum()), len(right))}
            for s, right in zip(SEVERITIES, correct, strict=True)
        ],
        "mean_error": 1 - together.double().mean().item(),
        "rms": rms_calibration_error(equal_mass_bins(torch.cat(confidence), together, BIN_SIZE)),
    }


def attack_part(
    model: nn.Module, x: Tensor, target: Tensor, spec: str, classes: Sequence[str], **options: Any
) -> Part:
    """``options`` are those of evaluate_attack; pictures of the first images that it broke."""
    from .attacks import evaluate_attack

    result = evaluate_attack(model, x, target, spec, **options)
    clean, survived = result.clean.cpu(), result.survived.cpu()
    return {
        "spec": spec,
        "norm": str(result.norm),
        "eps": float(result.eps),
        "clean": share(int(clean.sum()), len(clean)),
        **share(int(survived.sum()), len(survived)),
        "methods": [
            {"method": name, "points": one.points, "accuracy": one.accuracy}
            for name, one in result.method_accuracy.items()
        ],
        "warnings": list(result.warnings),
        "pictures": attack_pictures(
            model, x, result.adversarial, target, clean & ~survived, classes
        ),
    }


def max_epsilon_part(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    norm: str,
    *,
    processes: Processes = ALONE,
) -> Part:
    """The grid is the thesis's, of a change per pixel: ε √d as a norm of the whole image, ε d in l1."""
    from .attacks import EPS_GRID, max_epsilon

    size = {"l2": math.sqrt(x[0].numel()), "l1": x[0].numel()}.get(norm, 1)
    eps = [size * eps for eps in EPS_GRID]
    found = max_epsilon(model, x, target, norm=norm, eps=eps, processes=processes)
    curve = zip(found.eps, found.accuracy, strict=True)
    return {
        "norm": norm,
        "eps": found.max_epsilon,
        "cost": found.cost,
        "curve": [{"eps": eps, "accuracy": accuracy} for eps, accuracy in curve],
    }


def _number(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
