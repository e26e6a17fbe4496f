"""The concept level with the chi-square distance: λ in nats, whatever K and the concepts' sizes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..concept_weights import ConceptWeights

LEAST_HORIZON = 100
"""Steps; those of a small set's epoch are too few: docs/tuning.md has what came of 3 and 12."""


class ChiSquare(ConceptWeights):
    """The game of Eq. 4 with the distance that knows how large a concept is.

        max_{q in Δ}  Σ_k q_k ℓ̄_k - (λ/2) Σ_k (q_k - q0_k)²/q0_k      ℓ̄_k: the mean loss of concept k
                      over  Σ_k (q_k - q0_k)²/q0_k ≤ ρ²  and  q_k ≤ W q0_k
        q_k = q0_k clip(1 + (m_k - η)/λ', 0, W)                       m_k: a running mean of ℓ̄_k

    λ' is λ, or above it where the ball of radius ρ binds. So an example of a concept whose loss is λ
    above the mean counts one more time, whatever K is; the pressure fades with the losses, and no
    example counts more than W-fold. Every step is the best response to m, not a step towards it: no
    step size, and nothing that one bad batch could throw into a corner for good.

    m_k is the ratio of two running sums over about ``horizon`` steps, of the losses of concept k and of
    its examples, so that how often the concept was drawn is not taken for how hard it is. What is yet to
    come of the first ``horizon`` steps counts as the mean of all concepts: the first batches, noisy as
    they are, move q little.

    Args:
        concept_count: [K] N_k.
        lam: λ ≥ 0, in units of the loss; 0 needs a ball or a cap.
        rho: ρ > 0, or None: no ball.
        max_weight: W > 1, or None: no cap.
        horizon: steps, ≥ 1. The trainer takes those of an epoch, in which every example is seen once,
            and no fewer than 100: a response that is faster than the model learns chases its own tail.
        q0: [K] the reference distribution; N_k/N by default.

    State: ``loss_sum`` and ``seen_sum`` [K] float64 besides that of :class:`ConceptWeights`. Nothing here
    waits for the device.
    """

    wants_seen: ClassVar[bool] = True
    loss_sum: Tensor
    seen_sum: Tensor

    def __init__(
        self,
        concept_count: Tensor | Sequence[int],
        *,
        lam: float,
        rho: float | None = None,
        max_weight: float | None = 4.0,
        horizon: int = LEAST_HORIZON,
        q0: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(concept_count, q0)
        require_regularised(lam, rho, max_weight)
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        self.lam, self.rho, self.max_weight = float(lam), rho, max_weight
        self.horizon = horizon
        self.register_buffer("loss_sum", torch.zeros_like(self.q))
        self.register_buffer("seen_sum", torch.zeros_like(self.q))

    @property
    def mean_loss(self) -> Tensor:
        """[K] m; 0 before the first step."""
        share = self.concept_count / self.concept_count.sum()
        begun = share @ self.seen_sum  # 1 - (1 - 1/horizon)^t
        mean = share @ self.loss_sum / begun.clamp(min=_TINY)
        own = torch.where(self.seen_sum > 0, self.loss_sum / self.seen_sum, mean)
        return mean + begun * (own - mean)

    @property
    def spread(self) -> Tensor:
        """[] standard deviation of m over the examples: with λ so large a concept that much above the
        mean counts one more time."""
        return (self.q0 @ (self.mean_loss - self.q0 @ self.mean_loss).square()).sqrt()

    @property
    def distance(self) -> Tensor:
        """[] √Σ_k (q_k - q0_k)²/q0_k, which rho bounds: how far the weights q_k/q0_k spread about 1."""
        off = (self.q - self.q0).square() / self.q0.clamp(min=_TINY)
        return off.sum().sqrt()

    @torch.no_grad()
    def update(self, concept_loss: Tensor, seen: Tensor | None = None) -> None:
        """One step with ĝ [K] and, so that m is less noisy, what :meth:`seen` says of the batch. Losses
        that are not finite leave q as it is."""
        loss = concept_loss.to(self.q)
        seen = torch.ones_like(loss) if seen is None else seen.to(loss)
        usable = torch.isfinite(loss).all()
        for total, new in ((self.loss_sum, loss), (self.seen_sum, seen)):
            total.copy_(torch.where(usable, total.lerp(new, 1 / self.horizon), total))
        q = ops.chi_square_response(
            self.mean_loss, self.q0, self.lam, rho=self.rho, max_weight=self.max_weight
        )
        self.q.copy_(torch.where(torch.isfinite(q).all(), q, self.q))

    def extra_repr(self) -> str:
        return (
            f"num_concepts={len(self.q)}, lam={self.lam}, rho={self.rho}, "
            f"max_weight={self.max_weight}, horizon={self.horizon}"
        )


def require_regularised(lam: float, rho: float | None, max_weight: float | None) -> None:
    """Raises where the settings are out of range, or nothing holds q at q0."""
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(
            f"lam must be finite and not negative, got {lam}; None switches the concept level off"
        )
    if rho is not None and not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be positive and finite, got {rho}; None is without a ball")
    if max_weight is not None and not (math.isfinite(max_weight) and max_weight > 1):
        raise ValueError(
            f"max_weight must be above 1, the mean of the weights, and finite, got {max_weight}; None is "
            "without a cap"
        )
    if lam == 0 and rho is None and max_weight is None:
        raise ValueError(
            "lam is 0, and there is neither a ball nor a cap: one concept would have all the weight; "
            "give lam > 0, rho or max_weight"
        )


_TINY = torch.finfo(torch.float64).tiny
