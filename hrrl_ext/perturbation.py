"""The example level: each example moves along its own input gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from . import ops
from ._pixels import PixelCheck
from .losses import ClassificationLoss, Mixed

BatchNormStatistics = Literal["batch", "running"]

FP16_LOSS_SCALE = 1024.0
"""Of the input-gradient pass under float16 autocast: keeps float16 gradients normal."""


class ExamplePerturbation(nn.Module):
    """x̃_i = x_i + τ z_i,   z_i = ∇_{x_i} ℓ(x_i, y_i; θ) / ‖∇_{x_i} ℓ‖_F   (HRRL, Algorithm 1, line 9).

    One forward and one backward pass to the input: no gradient of a weight is computed, no buffer of
    the model changes. The loss is the plain sum over the batch, without the concepts' weights: any
    positive factor of an example's loss cancels in z, and a weight of 0 would switch it off.

    Args:
        tau: ‖x̃ - x‖_F, in the units of ``x``. Models here take images in [0, 1], so it is in pixel
            units; a τ meant for normalised inputs is about 4 times as large (1/std of ImageNet). The norm
            is over the whole image and grows with its side: 0.03 at 32×32 is about 0.2 at 224×224.
            tau = 0 returns ``x`` itself and costs nothing. Nothing is clipped.
        batch_norm: which statistics batch normalisation uses during the pass. "batch": those of the
            batch, as in the training pass that follows (then z_i depends, weakly, on the other
            images of the batch); "running": the running averages (then it does not). The paper does
            not say. Running statistics stay as they are in both cases.
        label_smoothing: of ℓ, as in the training loss.
        loss_scale: multiplies the loss before the pass. The direction does not depend on it; under
            float16 autocast it keeps small gradients from vanishing.
        steps: of projected gradient ascent on ℓ within the ball ‖x̃ - x‖_F ≤ τ (PGD, Madry et al.,
            ICLR 2018), a pass each. 1 is line 9. More have a length of 2.5 τ/steps, τ at most, begin at
            x, and the last iterate is taken. As in line 9 nothing is clipped, and nothing drawn.
        loss: another ℓ than the cross-entropy, which has its own label_smoothing.

    Dropout, if the model has it, draws its own mask in this pass.

    The first images that come are looked at, which waits for their device: outside [0, 1] they are
    refused where the model normalises, and a warning where it does not.
    """

    def __init__(
        self,
        tau: float,
        *,
        batch_norm: BatchNormStatistics = "batch",
        label_smoothing: float = 0.0,
        loss_scale: float = 1.0,
        steps: int = 1,
        loss: ClassificationLoss | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(tau) and tau >= 0):
            raise ValueError(f"tau must be finite and not negative, got {tau}")
        if batch_norm not in get_args(BatchNormStatistics):
            raise ValueError(f"batch_norm must be 'batch' or 'running', got {batch_norm!r}")
        if not (math.isfinite(loss_scale) and loss_scale > 0):
            raise ValueError(f"loss_scale must be finite and positive, got {loss_scale}")
        if steps < 1 or steps != int(steps):
            raise ValueError(f"steps must be a whole number, at least 1, got {steps}")
        self.tau = float(tau)
        self.batch_norm: BatchNormStatistics = batch_norm
        self.loss = ClassificationLoss.given(loss, label_smoothing)
        self.loss_scale = loss_scale
        self.steps = steps
        self._seen = False

    def forward(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        """x [B, ...] in [0, 1], target [B] integers, or those of mixtures → x̃, detached."""
        if self.tau == 0:
            return x
        x = self.checked(model, x)
        with frozen_statistics(model, self.batch_norm):
            if self.steps > 1:
                return self._ascended(model, x, target)
            grad = self.input_gradient(model, x, target)
        return ops.perturb(x, grad, self.tau)[0]

    def _ascended(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        length = self.tau * min(1.0, 2.5 / self.steps)
        pixels = tuple(range(1, x.ndim))
        delta = torch.zeros_like(x)
        for _ in range(self.steps):
            grad = self.input_gradient(model, x + delta, target)
            delta = ops.perturb(delta, grad, length)[0]
            norm = torch.linalg.vector_norm(delta, dim=pixels, keepdim=True)
            delta = delta * (self.tau / norm).clamp(max=1)  # the nearest point of the ball
        return x + delta

    def input_gradient(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        """∇_x Σ_i ℓ(x_i, y_i; θ) [B, ...], detached, in the modes that ``model`` is in."""

        def loss(x: Tensor) -> Tensor:
            losses: Tensor = self.loss(model(x), target)
            return losses.sum() * self.loss_scale

        if torch.compiler.is_compiling():  # which traces this form in one graph, and not the other
            with torch.no_grad():  # of the gradient itself: to the weights it is a constant
                return torch.func.grad(loss)(x)
        return gradient_in(loss, x)

    def checked(self, model: nn.Module, x: Tensor) -> Tensor:
        """``x``, detached, which must be floating point; the first that comes is looked at."""
        if not x.is_floating_point():
            raise ValueError(f"x must be a floating-point image in [0, 1], got {x.dtype}")
        if not (self._seen or torch.compiler.is_compiling()):
            PixelCheck(model, "perturb: x", trained=True)(x)
            self._seen = True
        return x.detach()

    def update(self) -> None:
        """Ends a step, for a perturbation that learns of it: this one does not."""

    def extra_repr(self) -> str:
        return f"tau={self.tau}, batch_norm={self.batch_norm!r}, steps={self.steps}"


def gradient_in(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∇_x of ``loss(x)`` [], detached; no weight gets a gradient."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf)
    return grad


@contextmanager
def frozen_statistics(model: nn.Module, use: BatchNormStatistics) -> Iterator[None]:
    """Within, no normalisation layer updates its running statistics; afterwards all is as before."""
    layers = [
        m
        for m in model.modules()
        if isinstance(m, _NormBase) and m.training and m.track_running_stats
    ]
    held = [(m.running_mean, m.running_var) for m in layers]
    for m in layers:
        if use == "running":
            m.training = False
        else:  # a layer without running statistics uses those of the batch and has none to update
            m.track_running_stats = False
            m.running_mean = m.running_var = None
    try:
        yield
    finally:
        for m, (mean, var) in zip(layers, held, strict=True):
            m.training = m.track_running_stats = True
            m.running_mean, m.running_var = mean, var
