"""Whether a confidence of 80 % is right 80 times in 100: binned errors, and one temperature to mend them.

The confidence of an example is max softmax of its logits. Every measure here is a sum over bins of
examples of like confidence, of the gap between their mean confidence and their accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .predictions import Predictions


@dataclass(frozen=True)
class Bins:
    """Examples of like confidence, from the least confident bin on; no bin is empty."""

    count: Tensor
    """[B] int64"""
    confidence: Tensor
    """[B] float64, mean confidence"""
    accuracy: Tensor
    """[B] float64"""

    @property
    def gap(self) -> Tensor:
        """[B] mean confidence - accuracy: positive is overconfident."""
        return self.confidence - self.accuracy


def equal_mass_bins(confidence: Tensor, correct: Tensor, bin_size: int = 100) -> Bins:
    """``bin_size`` consecutive examples by confidence per bin, the remainder in the last bin.

    confidence [N] in [0, 1], correct [N] bool. Fewer examples than a bin make one bin. Examples of equal
    confidence have no order: each counts with the accuracy of all of them, the mean over their orders,
    so that the result does not depend on the order of the data.
    """
    confidence, correct = _checked(confidence, correct)
    if bin_size < 1:
        raise ValueError(f"equal_mass_bins: bin_size must be at least 1, got {bin_size}")
    values, tied = confidence.double().unique(return_inverse=True)  # sorted
    of_value = torch.zeros_like(values).index_add_(0, tied, correct.double())
    of_value /= torch.bincount(tied, minlength=len(values))
    order = tied.argsort()
    rank = torch.arange(len(order))
    number = (rank // bin_size).clamp(max=max(len(order) // bin_size - 1, 0))
    return _bins(confidence[order], of_value[tied[order]], number)


def equal_width_bins(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> Bins:
    """Bin m of M holds the confidences in ((m - 1)/M, m/M], as in Guo et al. (ICML 2017).

    A confidence of 0 lies in the first bin, one of exactly 1 in the last. Bins without an example are
    left out.
    """
    confidence, correct = _checked(confidence, correct)
    if num_bins < 1:
        raise ValueError(f"equal_width_bins: num_bins must be at least 1, got {num_bins}")
    edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins  # the inner ones
    return _bins(confidence, correct.double(), torch.bucketize(confidence.double(), edges))


def rms_calibration_error(bins: Bins, *, drop_last_bin: bool = False) -> float:
    """√( Σ_b (n_b/N) (mean confidence - accuracy)² )   over equal-mass bins (Hendrycks, ICLR 2019).

    ``drop_last_bin`` gives the number of a widely copied routine, which never visits the last bin, that
    of the most confident examples, while N still counts them: for comparison with published tables.
    NaN where that leaves no bin.
    """
    n, gap = (x[:-1] if drop_last_bin else x for x in (bins.count, bins.gap))
    if not len(n):
        return math.nan
    return ((n * gap.square()).sum() / bins.count.sum()).sqrt().item()


def expected_calibration_error(bins: Bins) -> float:
    """Σ_b (n_b/N) |mean confidence - accuracy|   over equal-width bins (Naeini et al., AAAI 2015)."""
    return ((bins.count * bins.gap.abs()).sum() / bins.count.sum()).item()


def negative_log_likelihood(predictions: Predictions, temperature: float = 1.0) -> float:
    """Mean of -log softmax(logits / T)_label over the examples."""
    z = predictions.logits.double() / temperature
    label = z.gather(1, predictions.labels[:, None])[:, 0]
    return (z.logsumexp(1) - label).mean().item()


# --- temperature

LIMITS = (0.01, 100.0)  # of T; beyond, the optimum is at 0 or at infinity


def fit_temperature(predictions: Predictions) -> float:
    """T that minimises the negative log-likelihood of softmax(logits / T) (Guo et al., ICML 2017).

    Divides all logits: no prediction changes, only confidences. In β = 1/T the problem is convex, with
    the derivative mean(E_p[z] - z_label) and the second one mean(Var_p[z]), p = softmax(β z): Newton's
    steps within a bracket that halves where they leave it. Where the optimum is not within ``LIMITS``
    the nearer limit is returned: 0.01 where every example is right by a margin (confidence 1 is then
    the best), 100 where the logits say no more than chance. float64; deterministic.

    Fit it on examples that are not evaluated on. Raises ValueError without an example.
    """
    z, labels = predictions.logits.double(), predictions.labels
    if not len(z):
        raise ValueError("fit_temperature: predictions has no examples")
    z = z - z.gather(1, labels[:, None])  # z - z_label: one number per class
    z = z[(z < math.inf).all(1)]  # where the label is masked (-inf) no temperature helps
    if not len(z):
        return LIMITS[1]
    low, high = 1 / LIMITS[1], 1 / LIMITS[0]
    if _slope(z, low)[0] >= 0:
        return LIMITS[1]
    if _slope(z, high)[0] <= 0:
        return LIMITS[0]
    beta = 1.0
    while high - low > 1e-12 * high:
        slope, curvature = _slope(z, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else math.nan
        step_to = newton if low < newton < high else math.sqrt(low * high)
        if abs(step_to - beta) <= 1e-12 * beta:
            break
        beta = step_to
    return 1 / beta


def _slope(z: Tensor, beta: float) -> tuple[float, float]:
    """First and second derivative in β of the mean of log Σ_c exp(β z_c), where z_label = 0."""
    p = (beta * z).softmax(1)
    z = z.masked_fill(z == -math.inf, 0.0)  # masked: of probability 0
    mean = (p * z).sum(1)
    variance = (p * (z - mean[:, None]).square()).sum(1)
    return mean.mean().item(), variance.mean().item()


def _checked(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """On the CPU, where bins are counted."""
    if confidence.ndim != 1 or correct.shape != confidence.shape or correct.dtype != torch.bool:
        raise ValueError(
            "calibration: confidence must be [N] and correct [N] bool, got "
            f"{list(confidence.shape)} and {list(correct.shape)} {correct.dtype}"
        )
    if not len(confidence):
        raise ValueError("calibration: confidence has no examples")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):  # NaN is not, either
        raise ValueError("calibration: confidence must lie in [0, 1]")
    return confidence.cpu(), correct.cpu()


def _bins(confidence: Tensor, correct: Tensor, number: Tensor) -> Bins:
    """From the number of the bin of each example."""
    sums = torch.zeros(2, int(number.max()) + 1, dtype=torch.float64)
    sums.index_add_(1, number, torch.stack([confidence.double(), correct]))
    count = torch.bincount(number)
    held = count > 0
    return Bins(count[held], sums[0, held] / count[held], sums[1, held] / count[held])
