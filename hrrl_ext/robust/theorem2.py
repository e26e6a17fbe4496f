"""The example level with the lengths of Theorem 2: each example moves as far as its gradient is long."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..losses import ClassificationLoss, Mixed
from ..perturbation import (
    BatchNormStatistics,
    ExamplePerturbation,
    frozen_statistics,
)
from ..processes import ALONE, Processes

_EVERY = (
    32  # steps from one estimate to the next: one more gradient pass, 2/5 of a step, costs 1.3 %
)
_NEW = 0.5  # share of a new estimate in the running one
_DISTANCE = 1 / (8 * 255)  # of an estimate, in each value of an image


class Theorem2Perturbation(ExamplePerturbation):
    """x̃_i = x_i + m ∇ℓ_i / (3 L_x),   ∇ℓ_i = ∇_{x_i} ℓ(x_i, y_i; θ)   (HRRL, Theorem 2).

    A length for each example, m ‖∇ℓ_i‖/(3 L_x): what the network is sure of moves less. L_x, how fast the
    input gradient changes, is measured in the steps 1, 2, 3, 5, 9, 17 and every 32nd from 33 on, by one
    more gradient at a distance r along the first::

        L_x² = Σ_i ‖∇ℓ_i‖² L_i² / Σ_i ‖∇ℓ_i‖²,   L_i = ‖∇ℓ_i(x_i + r z_i) - ∇ℓ_i(x_i)‖ / r

    over the whole batch, and averaged over time. r is an eighth of a grey level of 255 in each value of
    an image: 0.027 at 32×32, about as far as examples move (docs/algorithm.md says why no shorter).
    Until the first step is through nothing moves.

    ::

        x = perturbation(model, x, target)
        ...
        perturbation.update()                # once a step

    State (in ``state_dict``): ``l_x`` [] float64, NaN until it is known, and the number of steps. Never
    waits for the device; all processes have the same ``l_x``.

    Args:
        multiple: m.
        processes: that share each batch.
        batch_norm, label_smoothing, loss_scale, loss: see :class:`ExamplePerturbation`.
    """

    l_x: Tensor
    lengths: Tensor
    """[B] of the last call: ‖x̃_i - x_i‖_F"""
    _sums: Tensor
    """[2] of this step: Σ ‖∇ℓ_i‖² L_i² and Σ ‖∇ℓ_i‖²"""

    def __init__(
        self,
        multiple: float = 1.0,
        *,
        processes: Processes | None = None,
        batch_norm: BatchNormStatistics = "batch",
        label_smoothing: float = 0.0,
        loss_scale: float = 1.0,
        loss: ClassificationLoss | None = None,
    ) -> None:
        if not (math.isfinite(multiple) and multiple > 0):
            raise ValueError(f"tau_multiple must be finite and positive, got {multiple}")
        super().__init__(
            multiple,
            batch_norm=batch_norm,
            label_smoothing=label_smoothing,
            loss_scale=loss_scale,
            loss=loss,
        )
        self.multiple = float(multiple)
        self.processes = processes or ALONE
        self.register_buffer("l_x", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("_sums", torch.zeros(2, dtype=torch.float64), persistent=False)
        self.set_extra_state(0)

    def forward(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        """x [B, ...] in [0, 1], target [B] integers, or those of mixtures → x̃, detached."""
        x = self.checked(model, x)
        with frozen_statistics(model, self.batch_norm):
            grad = self.input_gradient(model, x, target)
            norm = _norms(grad) / self.loss_scale
            movable = torch.isfinite(norm) & (norm > 0)
            if self._due:
                self._measure(model, x, target, grad, torch.where(movable, norm, 0.0))
        # NaN where L_x is not known yet
        length = torch.where(movable, self.multiple * norm / (3 * self.l_x), 0.0)
        self.lengths = length.nan_to_num(0.0)
        return ops.perturb(x, grad, self.lengths)[0]

    def _measure(
        self, model: nn.Module, x: Tensor, target: Tensor | Mixed, grad: Tensor, norm: Tensor
    ) -> None:
        r = _DISTANCE * math.sqrt(math.prod(x.shape[1:]))
        there = self.input_gradient(model, ops.perturb(x, grad, r)[0], target)
        change = _norms(there - grad) / self.loss_scale
        seen = torch.isfinite(change)
        parts = torch.where(seen, norm * change / r, 0.0), torch.where(seen, norm, 0.0)
        self._sums += torch.stack([part.square().sum() for part in parts])

    @torch.no_grad()
    def update(self) -> None:
        """Ends a step: what was measured in it enters L_x. A gradient that did not change, or is not
        finite, leaves L_x as it is."""
        if self._due:
            weighted, weights = self.processes.sum(self._sums)
            l_x = torch.sqrt(weighted / weights)
            mean = torch.where(torch.isnan(self.l_x), l_x, torch.lerp(self.l_x, l_x, _NEW))
            self.l_x.copy_(torch.where(torch.isfinite(l_x) & (l_x > 0), mean, self.l_x))
            self._sums.zero_()
        self.set_extra_state(self._step + 1)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._step)

    def set_extra_state(self, state: Any) -> None:
        self._step = int(state)
        self._due = self._step % _EVERY == 0 or (
            self._step < _EVERY and self._step & (self._step - 1) == 0
        )

    def extra_repr(self) -> str:
        return f"multiple={self.multiple}, batch_norm={self.batch_norm!r}"


def _norms(grad: Tensor) -> Tensor:
    """[B] float64 ‖·‖_F of each."""
    return torch.linalg.vector_norm(grad.flatten(1), dim=1).double()
