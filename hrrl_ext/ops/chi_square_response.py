"""The concept level with the chi-square distance: the adversary's best response."""

from __future__ import annotations

import math

from torch import Tensor

from ._library import operator
from ._transforms import constants

_chi_square_response = operator("chi_square_response")


def chi_square_response(
    concept_loss: Tensor,
    q0: Tensor,
    lam: float,
    *,
    rho: float | None = None,
    max_weight: float | None = None,
) -> Tensor:
    """argmax_q  Σ_k q_k ℓ_k - (λ/2) Σ_k (q_k - q0_k)²/q0_k   over the distributions q with
    Σ_k (q_k - q0_k)²/q0_k ≤ ρ²  and  q_k ≤ W q0_k.

    The solution is q_k = q0_k clip(1 + (ℓ_k - η)/λ', 0, W), with one η, and λ' = λ or, where the ball
    of radius ρ binds, above it. λ' and η are found by Newton's method in float64, without sorting.

    Args:
        concept_loss: [K] ℓ, float16 to float64.
        q0: [K] the reference distribution, float32 or float64. An entry of 0 stays 0.
        lam: λ ≥ 0, in units of the loss. At 0 the ball or the cap alone holds q, and of the
            solutions it is the one nearest to q0: what is left for concepts of equal loss goes to them
            in proportion to q0. With the cap W = 1/α that is the conditional value at risk of level α.
        rho: ρ ≥ 0, or None: no ball.
        max_weight: W ≥ 1, or None: no cap.

    Returns:
        q [K] in the dtype of ``q0``, with its sum; computed in float64. A loss that is not finite, or an
        entry of q0 that is negative or not finite, makes all of it NaN.

    q does not change with ℓ + a for a constant a, nor where ℓ and λ are scaled alike, and no scale of ℓ
    costs precision. Losses that differ by less than 1e-150 of their range count as equal for the ball.

    Carries no gradient: q is itself the gradient of the maximum in ℓ. Deterministic. Raises ValueError
    for shapes, dtypes or devices that do not match, and for lam, rho or max_weight out of range.

    Equivalent to :func:`hrrl_ext.ops.reference.chi_square_response`, which sorts.
    """
    concept_loss, q0 = constants(concept_loss, q0)
    radius = math.inf if rho is None else rho
    cap = math.inf if max_weight is None else max_weight
    return _chi_square_response(concept_loss, q0, lam, radius, cap)
