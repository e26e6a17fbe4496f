"""Adversarial training, its inner maximum in closed form (Faghri's thesis, Eq. 5.2).

    min_w mean_i max_{‖δ‖ ≤ ε} ζ(y_i w·(x_i + δ))  =  min_w mean_i ζ(w·a_i - ε ‖w‖*)

For the exponential loss the attack is a factor that all examples share, so that in the log domain
adversarial training with radius ε is explicit regularisation with λ = ε, in the dual of the attack
norm:

    log mean_i exp(-(w·a_i - ε ‖w‖*))  =  log mean_i exp(-w·a_i) + ε ‖w‖*

A prox step takes the second term, at whose kinks the steps of a subgradient stall. The problem has no
minimum for ε < ε*: w grows in directions that withstand ε, of which there are many while ε is less than
ε*, and one as it reaches it. For ε > ε* there is a minimum at finite w, which is no separator of
largest margin.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..norms import VectorNorm, vector_norm
from .losses import Exponential, LogOf
from .proximal import Regularised, shrink


def train_adversarially(
    rows: Tensor,
    attack: str | VectorNorm,
    eps: float | Sequence[float] | Tensor,
    *,
    y: Tensor | None = None,
    steps: int = 10_000,
) -> Regularised:
    """Accelerated proximal gradient on the log of the adversarial exponential risk.

    Args:
        rows: [n, d] or [P, n, d] signed rows y_i x_i.
        attack: the norm of the perturbations that are trained against.
        eps: ε > 0, one, R radii or [P, R], which are trained in one loop; the largest that can be
            withstood is :func:`hrrl_ext.linear.radius` of the maximally robust classifier.
        y: [n] ±1, for a bias.
        steps: w grows as their square.

    Returns w [P, R, d] with its bias; w = 0 where the radius is so large that nothing pays. The gap is
    NaN, since there is no minimum to be near to. For another loss, or other steps, :func:`descend` on
    ``linear_risk(rows, "logistic", attack=..., eps=...)`` follows the subgradient.
    """
    dual = vector_norm(attack).dual
    return shrink(rows, dual, eps, loss=LogOf(Exponential()), y=y, tol=None, max_steps=steps)
