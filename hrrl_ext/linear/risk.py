"""What descent goes down: the risk of a linear classifier on clean or attacked examples, its logarithm.

Examples come as signed rows a_i = y_i x_i, so that the margin of w is w·a_i. Attacked ones have the inner
maximum of adversarial training in closed form,

    max_{‖δ‖ ≤ ε} ζ(y w·(x + δ)) = ζ(w·a - ε ‖w‖*),

whose subgradient is that of ζ times a - ε v, with v the attack norm's steepest step along w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..norms import VectorNorm, vector_norm
from .losses import TailLoss, tail_loss


class Risk(Protocol):
    """A function of parameters θ [P, R, D]: of R runs on each of P problems, whose rows are [P, n, d]."""

    @property
    def rows(self) -> Tensor:
        """The signed rows, clean."""

    def linear(self, theta: Tensor) -> Tensor:
        """The linear classifier [P, R, d] that θ is."""

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """log f [P, R] and -∇ log f [P, R, D]."""


@dataclass(frozen=True)
class LinearRisk:
    """mean_i ζ(w·a_i - eps ‖w‖*), θ = w.

    Args:
        rows: [P, n, d], the signed rows.
        loss: :class:`Exponential`, :class:`Logistic` or :class:`FreeExponential`.
        attack: the norm of the perturbations.
        eps: their radius; 0 is plain training.
    """

    rows: Tensor
    loss: TailLoss
    attack: VectorNorm
    eps: float = 0.0

    def linear(self, theta: Tensor) -> Tensor:
        return theta

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        m = theta @ self.rows.mT
        if self.eps:
            m = m - self.eps * self.attack.dual.size(theta).unsqueeze(-1)
        shares = self.loss.log_shares(m)
        rise = shares @ self.rows
        if self.eps:
            rise = rise - self.eps * shares.sum(-1, keepdim=True) * self.attack.steepest(theta)
        return self.loss.log_value(m), rise


def linear_risk(
    rows: Tensor,
    loss: str | TailLoss = "exponential",
    *,
    attack: str | VectorNorm = "l2",
    eps: float = 0.0,
) -> LinearRisk:
    """:class:`LinearRisk` of rows [n, d] or [P, n, d]; ValueError for what is no such thing."""
    rows = checked_rows("linear_risk", rows)
    if not (isinstance(eps, int | float) and 0 <= eps < float("inf")):
        raise ValueError(f"linear_risk: eps must be at least 0 and finite, got {eps!r}")
    return LinearRisk(rows, tail_loss(loss), vector_norm(attack), float(eps))


def checked_rows(where: str, rows: Tensor) -> Tensor:
    """[P, n, d], of [n, d] too."""
    if rows.ndim not in (2, 3) or 0 in rows.shape or not rows.is_floating_point():
        raise ValueError(
            f"{where}: rows must be [n, d] or [problems, n, d] of floats with n and d at least 1, "
            f"got {list(rows.shape)} {rows.dtype}"
        )
    if not rows.isfinite().all():
        raise ValueError(f"{where}: rows must be finite; drop or impute NaN and infinite entries")
    return rows if rows.ndim == 3 else rows.unsqueeze(0)


# --- what a classifier withstands


def radius(w: Tensor, rows: Tensor, attack: str | VectorNorm) -> Tensor:
    """min_i w·a_i / ‖w‖*, the ε up to which no perturbation of that norm changes a decision.

    Args:
        w: [..., d]; rows: [..., n, d], which broadcast: [P, R, d] and [P, n, d] give [P, R].
        attack: the norm of the perturbation. ‖·‖* is its dual.

    Negative where an example is misclassified: the perturbation that would put it right. NaN for w = 0,
    which decides nothing.
    """
    attack, margin = vector_norm(attack), (w @ rows.mT).amin(-1)
    size = attack.dual.size(w)
    return torch.where(size > 0, margin / size, torch.nan)


def attacked(w: Tensor, rows: Tensor, eps: Tensor | float, attack: str | VectorNorm) -> Tensor:
    """Signed rows after the worst perturbation of radius eps: a - eps argmax of ⟨w, v⟩ over ‖v‖ ≤ 1.

    Args:
        w: [P, R, d]; rows: [P, n, d]; eps: a number, or [P, R].

    Returns [P, R, n, d]. One step is exact, since a linear classifier has the same gradient everywhere.
    """
    step = torch.as_tensor(eps, dtype=w.dtype, device=w.device).unsqueeze(-1)
    return rows.unsqueeze(1) - (step * vector_norm(attack).steepest(w)).unsqueeze(2)


def radius_by_attack(
    w: Tensor, rows: Tensor, attack: str | VectorNorm, *, tol: float = 1e-4
) -> Tensor:
    """:func:`radius` measured from outside: the largest ε whose attack leaves every decision as it is.

    By doubling, then bisection to a relative width of tol: each ε is attacked, and the attacked
    examples are classified. w: [P, R, d], rows: [P, n, d]. Returns [P, R]: 0 where an example is
    misclassified to begin with, NaN for w = 0.
    """
    w = w / w.abs().amax(-1, keepdim=True)  # its decisions do not depend on the scale

    def holds(eps: Tensor) -> Tensor:
        return ((attacked(w, rows, eps, attack) * w.unsqueeze(2)).sum(-1) > 0).all(-1)

    low, high = w.new_zeros(w.shape[:-1]), w.new_ones(w.shape[:-1])
    right = holds(low)
    while (growing := right & holds(high)).any():
        low, high = torch.where(growing, high, low), torch.where(growing, 2 * high, high)
    while (wide := right & (high - low > tol * high) & (high > 1e-12)).any():
        middle = (low + high) / 2
        held = holds(middle)
        low = torch.where(wide & held, middle, low)
        high = torch.where(wide & ~held, middle, high)
    middle = torch.where(right, (low + high) / 2, 0.0)
    return torch.where(w.isfinite().all(-1), middle, torch.nan)
