"""Errors under corruption as one number. There are three, often mixed up, and here of three names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ...spec import listed, nearest
from .kinds import SEVERITIES

Errors: TypeAlias = "Mapping[str, float | Sequence[float] | Tensor]"
"""Of each kind the errors in [0, 1] at the five severities, or their mean."""

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's errors on ImageNet-C, means over severities, as published with AugMix (ICLR 2020)."""


def mean_corruption_error(error: Errors, baseline: Errors | str = "alexnet") -> float:
    """mCE in %, of ImageNet-C: 100 · mean over kinds of Σ_s E_{c,s} / Σ_s B_{c,s}.

    error and baseline have the same kinds, the 15 of ImageNet-C for "alexnet". 100 is the baseline's
    own. On CIFAR-C the field reports `unnormalised_corruption_error` instead. Raises ValueError for
    kinds that differ, errors outside [0, 1], or a baseline without an error.
    """
    return _normalised(error, 0.0, baseline, 0.0, "mean_corruption_error")


def relative_mean_corruption_error(
    error: Errors,
    clean_error: float,
    *,
    baseline_clean_error: float,
    baseline: Errors | str = "alexnet",
) -> float:
    """Relative mCE in %: 100 · mean over kinds of Σ_s (E_{c,s} - E_clean) / Σ_s (B_{c,s} - B_clean).

    What corruption adds to the clean error, against what it adds to the baseline's. AlexNet's clean
    error depends on who trained it, so that it is asked for. Raises as `mean_corruption_error`, and
    where the baseline does not lose by a corruption.
    """
    return _normalised(
        error, clean_error, baseline, baseline_clean_error, "relative_mean_corruption_error"
    )


def unnormalised_corruption_error(error: Errors) -> float:
    """The plain mean over kinds and severities, in [0, 1]: what is reported on CIFAR-10-C and -100-C."""
    means = [_mean(kind, e, "unnormalised_corruption_error") for kind, e in error.items()]
    if not means:
        raise ValueError("unnormalised_corruption_error: error has no kinds")
    return sum(means) / len(means)


def _normalised(
    error: Errors,
    clean_error: float,
    baseline: Errors | str,
    baseline_clean_error: float,
    where: str,
) -> float:
    if isinstance(baseline, str):
        if baseline != "alexnet":
            raise ValueError(
                f'{where}: baseline must be "alexnet" or errors by kind, got {baseline!r}'
            )
        baseline = ALEXNET
    for name, value in (
        ("clean_error", clean_error),
        ("baseline_clean_error", baseline_clean_error),
    ):
        if not 0 <= value <= 1:
            raise ValueError(f"{where}: {name} must lie in [0, 1], got {value:.6g}")
    if unknown := [kind for kind in error if kind not in baseline]:
        raise ValueError(
            f"{where}: error has kinds without a baseline: {nearest(unknown, baseline)}"
        )
    if missing := [kind for kind in baseline if kind not in error]:
        raise ValueError(f"{where}: error lacks {listed(missing)}; the mean is over all of them")
    if not baseline:
        raise ValueError(f"{where}: error has no kinds")
    total = 0.0
    for kind in baseline:
        scale = _mean(kind, baseline[kind], f"{where}: baseline") - baseline_clean_error
        if scale <= 0:
            raise ValueError(
                f"{where}: the baseline loses nothing by {kind} ({scale:+.6g}), so that nothing can be "
                "divided by it; take another baseline"
            )
        total += (_mean(kind, error[kind], where) - clean_error) / scale
    return 100 * total / len(baseline)


def _mean(kind: str, errors: float | Sequence[float] | Tensor, where: str) -> float:
    values = torch.as_tensor(errors, dtype=torch.float64)
    if values.shape not in ((), (len(SEVERITIES),)):
        raise ValueError(
            f"{where}: {kind} must have an error for each of the 5 severities, or their mean, "
            f"got shape {list(values.shape)}"
        )
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(
            f"{where}: errors must lie in [0, 1], got {values[outside][0].item():.6g} for {kind}; "
            "of percents take the hundredth"
        )
    return values.mean().item()
