"""The model under attack, borrowed: what it says about images, and which way its loss grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._arrays import wide
from ..._modes import in_mode
from ..._pixels import in_range, warn_unnormalised
from ...layers import logits_of
from ...norms import Ball, Norm
from ...processes import Processes
from ..input_gradient import input_gradient
from ..predictions import usable_logits
from .fourier import check_precision
from .losses import CLASSES_NEEDED, Loss, attack_loss
from .threats import find_norm


class Look(NamedTuple):
    """What the model says about images z [N, C, H, W]."""

    loss: Tensor
    """[N]; -inf where the logits are not finite, so that such an image is never preferred"""
    fooled: Tensor
    """[N] bool: another class has the largest logit, and all are finite"""
    grad: Tensor
    """a positive multiple of ∂loss/∂z in float32 or wider, 0 for an example where it is not finite, and
    if not asked for"""


class Victim:
    """A model that `borrowed` holds in eval mode. Logits are widened to float32."""

    def __init__(self, where: str, model: nn.Module) -> None:
        self.where = where
        self.model = model
        self._seen = False

    def logits(self, z: Tensor, target: Tensor) -> Tensor:
        """[N, num_classes] without gradient."""
        with torch.no_grad():
            return self._forward(z, target)

    def all_logits(
        self, x: Tensor, target: Tensor, batch_size: int, processes: Processes
    ) -> Tensor:
        """Those of many images, batch by batch, and their values checked in all of them."""
        batches = processes.turns(zip(x.split(batch_size), target.split(batch_size), strict=True))
        found = processes.in_order(self.logits(*batch).cpu() for batch in batches)
        logits = torch.cat(list(found)).to(x.device)
        self._check_values(logits, target)
        return logits

    def fooled(self, z: Tensor, target: Tensor) -> Tensor:
        """[N] bool: another class has the largest logit, and all logits are finite."""
        return _fooled(self.logits(z, target), target)

    def look(
        self,
        z: Tensor,
        target: Tensor,
        loss: Loss,
        *,
        towards: Tensor | None = None,
        gradient: bool = True,
    ) -> Look:
        """One forward pass, and one backward pass to the images if a gradient is asked for."""
        with torch.set_grad_enabled(gradient):
            leaf = z.detach().requires_grad_(gradient)
            logits = self._forward(leaf, target)
            check_loss(self.where, loss, logits.shape[1])
            losses = attack_loss(loss, logits, target, towards)
            grad = input_gradient(losses, leaf) if gradient else z.new_zeros(())
            grad = _finite_examples(wide(grad).expand(z.shape))
        logits, losses = logits.detach(), losses.detach()
        losses = torch.where(usable_logits(logits), losses, -math.inf)
        return Look(losses, _fooled(logits, target), grad)

    def _forward(self, z: Tensor, target: Tensor) -> Tensor:
        logits = logits_of(self.model(z))
        if logits.ndim != 2 or len(logits) != len(z):
            raise ValueError(
                f"{self.where}: the model must return logits [{len(z)}, num_classes] for images "
                f"{list(z.shape)}, got {list(logits.shape)}; wrap it in a module that returns its logits "
                "alone"
            )
        if not self._seen:  # values are looked at once: on a GPU that waits for it
            self._check_values(logits, target)
            self._seen = True
        return wide(logits)

    def _check_values(self, logits: Tensor, target: Tensor) -> None:
        if int(target.max()) >= logits.shape[1]:
            raise ValueError(
                f"{self.where}: target must lie in 0..{logits.shape[1] - 1}, the classes of the "
                f"model, got {int(target.max())}"
            )
        usable = usable_logits(logits)
        if not usable.all():
            bad = int(usable.logical_not().nonzero()[0])
            raise ValueError(
                f"{self.where}: the model's logits for example {bad} are not finite before the first "
                "step; check its weights and its input, which is in [0, 1]"
            )


def check_loss(where: str, loss: Loss, classes: int) -> None:
    if loss not in CLASSES_NEEDED:
        raise ValueError(f"{where}: loss must be one of {', '.join(CLASSES_NEEDED)}, got {loss!r}")
    if classes < CLASSES_NEEDED[loss]:
        raise ValueError(
            f"{where}: the loss {loss!r} needs {CLASSES_NEEDED[loss]} classes, "
            f"the model has {classes}; use loss='ce'"
        )


@contextmanager
def borrowed(where: str, model: nn.Module, device: torch.device) -> Iterator[Victim]:
    """The model in eval mode. Training flags, gradients, buffers, hooks and the random state are as
    before afterwards, also by an exception: nothing here writes to them."""
    warn_unnormalised(model, where)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), in_mode(model, "eval"):
        yield Victim(where, model)


def attackable(where: str, x: Tensor, target: Tensor, eps: float, norm: str | Norm) -> Ball:
    """The ball around x, its pixels within [0, 1]. TypeError, ValueError: cannot be attacked."""
    ball_norm = find_norm(norm)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{where}: eps must be finite and not negative, got {eps}")
    if not x.is_floating_point():
        raise TypeError(
            f"{where}: x must be float in [0, 1], got {x.dtype}; "
            "convert uint8 images with images.float() / 255"
        )
    if x.ndim != 4:
        raise ValueError(f"{where}: x must be images [N, 3, H, W], got {list(x.shape)}")
    check_precision(where, ball_norm, x.dtype)
    whole = not (target.is_floating_point() or target.dtype == torch.bool)
    if target.shape != x.shape[:1] or not whole or target.device != x.device:
        raise ValueError(
            f"{where}: target must be [{len(x)}] integers on {x.device}, one class per image, "
            f"got {list(target.shape)} {target.dtype} on {target.device}"
        )
    if len(x) and int(target.min()) < 0:
        raise ValueError(f"{where}: target must not be negative, got {int(target.min())}")
    return Ball.around(in_range(x.detach(), f"{where}: x"), eps, ball_norm)


def _fooled(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.argmax(1) != target) & usable_logits(logits)


def _finite_examples(grad: Tensor) -> Tensor:
    """0 for an example that holds an Inf or NaN anywhere."""
    # The sum keeps an Inf or makes it NaN; gradients so large that it overflows are of no use either.
    return torch.where(grad.sum((1, 2, 3), keepdim=True).isfinite(), grad, 0.0)
