"""What an attack climbs: per-example losses [N] of logits [N, C] and target [N], in float32 or wider."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...losses import class_ids
from ..input_gradient import cross_entropy

Loss = Literal["ce", "dlr", "margin", "targeted dlr"]
CLASSES_NEEDED = {"ce": 1, "margin": 2, "dlr": 3, "targeted dlr": 4}


def attack_loss(
    loss: Loss, logits: Tensor, target: Tensor, towards: Tensor | None = None
) -> Tensor:
    """[N]; ``towards`` [N] is the class aimed at, for "targeted dlr"."""
    target = class_ids(target)
    if loss == "ce":
        return cross_entropy(logits, target)
    if loss == "margin":
        return -margin(logits, target)
    if towards is None:
        return difference_of_logits_ratio(logits, target)
    return targeted_difference_of_logits_ratio(logits, target, towards)


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """z_y - max_{j ≠ y} z_j [N]: negative where the model is fooled."""
    return _of(logits, target) - _without(logits, target).amax(1)


def difference_of_logits_ratio(logits: Tensor, target: Tensor) -> Tensor:
    """DLR(z, y) = -(z_y - max_{j ≠ y} z_j) / (z_π1 - z_π3)   (Croce & Hein 2020, Eq. 6).

    π sorts the logits downwards. Neither a shift nor a positive factor of the logits changes it, so
    a model cannot hide behind their scale. Where the three largest are equal the divisor is 1. A class
    that is masked (-inf) counts as one far below all others.
    """
    logits = _without_masks(logits)
    top = logits.topk(3).values
    return -margin(logits, target) / _divisor(top[:, 0] - top[:, 2])


def targeted_difference_of_logits_ratio(logits: Tensor, target: Tensor, towards: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_π1 - (z_π3 + z_π4) / 2), t = towards   (Croce & Hein 2020, Eq. 7)."""
    logits = _without_masks(logits)
    top = logits.topk(4).values
    divisor = _divisor(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)
    return (_of(logits, towards) - _of(logits, target)) / divisor


def _of(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


def _without(logits: Tensor, target: Tensor) -> Tensor:
    return logits.scatter(1, target[:, None], -torch.inf)


def _without_masks(logits: Tensor) -> Tensor:
    """-inf, by which no difference has a gradient, as a constant below the other logits of its row."""
    masked = logits == -torch.inf
    low, high = logits.detach().masked_fill(masked, torch.inf).amin(1), logits.detach().amax(1)
    return torch.where(masked, (2 * low - high)[:, None] - 1, logits)


def _divisor(difference: Tensor) -> Tensor:
    return torch.where(difference > 0, difference, 1.0)
