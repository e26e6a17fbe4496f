"""How fast accuracy falls along the input gradient (Figure 4 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._arrays import wide
from .._modes import borrowed
from .._pixels import PixelCheck
from ..data.labelled import as_input, labelled_batches
from ..layers import logits_of
from ..processes import ALONE, Processes
from .input_gradient import cross_entropy, input_gradient
from .predictions import checked_logits

_PIXEL_RMS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of 255


@dataclass(frozen=True)
class PerturbationCurve:
    """Examples classified correctly at each step; accuracy is the share of all N."""

    steps: list[float]
    """‖x̃ - x‖_F, in units of [0, 1] pixels"""
    correct: list[int]
    count: int

    @property
    def accuracy(self) -> list[float]:
        return [correct / self.count for correct in self.correct]


def default_steps(image_shape: Sequence[int]) -> list[float]:
    """Steps at which a pixel of images [3, H, W] changes by 0, ¼, ½, 1, ... 16 of 255 in the mean square.

    ‖x̃ - x‖_F grows with the image: 8/255 per pixel are a step of 0.43 at 8×8 and of 12 at 224×224.
    """
    return [rms / 255 * math.sqrt(math.prod(image_shape)) for rms in _PIXEL_RMS]


def perturbation_curve(
    model: nn.Module,
    data: Any,
    steps: Sequence[float] | None = None,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    processes: Processes = ALONE,
) -> PerturbationCurve:
    """Accuracy on x̃ = x + step · ∇_x ℓ / ‖∇_x ℓ‖_F, for a list of steps (paper, Figure 4).

    ℓ is the cross-entropy at the true label, and the gradient that of the model under evaluation, in
    eval mode and at x: one gradient per example, however many steps. Step 0 is the clean accuracy to
    the bit. As in the paper x̃ is not clipped to [0, 1]. An example without a gradient (0, or not
    finite) stays as it is. A negative step walks down the loss.

    steps   finite numbers; None: :func:`default_steps` of the first batch's images
    data, batch_size, device, processes    as in :func:`hrrl_ext.evaluation.predict`

    One forward and one backward pass to the input, then a forward pass per step. The model is borrowed:
    no parameter's .grad, flag or buffer changes. Raises ValueError as predict does, and for steps.
    """
    if steps is not None and not (len(steps) and all(map(math.isfinite, steps))):
        raise ValueError(f"perturbation_curve: steps must be finite numbers, got {list(steps)}")
    where = "perturbation_curve"
    check = PixelCheck(model, where)

    def measured(
        there: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[list[float], Tensor, int]]:
        """Of each batch the steps, how many are right at each [S], and how many there are."""
        nonlocal steps
        for row, images, labels in labelled_batches(data, batch_size, where, processes):
            steps = list(default_steps(images.shape[1:]) if steps is None else steps)
            x, target = as_input(images, there, dtype, check), labels.to(there, torch.int64)
            clean = checked_logits(model(x), target, row, where)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                losses = cross_entropy(wide(logits_of(model(leaf))), target)
                grad = input_gradient(losses, leaf)
            moved = (logits_of(model(ops.perturb(x, grad, s)[0])) if s else clean for s in steps)
            correct = torch.stack([(y.argmax(1) == target).sum() for y in moved])
            yield steps, correct.cpu(), len(target)

    with borrowed(model, device) as on:
        found = list(processes.in_order(measured(*on)))
    lengths, correct, count = zip(*found, strict=True)
    return PerturbationCurve(lengths[0], torch.stack(correct).sum(0).tolist(), sum(count))
