"""Other adversaries over the concepts, behind the interface of :class:`ConceptDistribution`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..concept_weights import ConceptWeights


class GroupDRO(ConceptWeights):
    """Group DRO (Sagawa et al., ICLR 2020): exponentiated ascent without an anchor.

        max_{q in Δ}  Σ_k q_k ℓ̄_k
        q_k ← q_k exp(η_q (ĝ_k + C/√N_k)) / Σ          ℓ̄_k: the mean loss of concept k, E ĝ_k

    ĝ_k carries N/N_k, so it is unbiased under uniform sampling and a concept absent from the batch has
    0: no sampler by groups is needed. As in HRRL q moves after the model, with the same losses; the
    authors' code moves it before.

    q is kept as its logarithm, so that no entry vanishes for good or overflows. Starts uniform.

    Args:
        concept_count: [K] N_k.
        eta_q: step size, > 0; the paper's is 0.01.
        adjustment: C ≥ 0, the generalisation adjustment.
        q0: [K] where q starts; uniform by default.

    State: ``log_q`` [K] float64 besides that of :class:`ConceptWeights`.
    """

    log_q: Tensor

    def __init__(
        self,
        concept_count: Tensor | Sequence[int],
        *,
        eta_q: float = 0.01,
        adjustment: float = 0.0,
        q0: Tensor | Sequence[float] | None = None,
    ) -> None:
        if q0 is None:
            q0 = torch.full((len(concept_count),), 1 / len(concept_count), dtype=torch.float64)
        super().__init__(concept_count, q0)
        if not (math.isfinite(eta_q) and eta_q > 0):
            raise ValueError(f"eta_q must be positive and finite, got {eta_q}")
        if not (math.isfinite(adjustment) and adjustment >= 0):
            raise ValueError(f"adjustment must be finite and not negative, got {adjustment}")
        self.eta_q = float(eta_q)
        self.adjustment = float(adjustment)
        self.register_buffer("log_q", self.q0.log())

    @torch.no_grad()
    def update(self, concept_loss: Tensor, seen: Tensor | None = None) -> None:
        """One step with ĝ [K]. Losses that are not finite leave q as it is."""
        gain = concept_loss.to(self.q) + self.adjustment / self.concept_count.sqrt()
        log_q = torch.log_softmax(self.log_q + self.eta_q * gain, 0)
        usable = torch.isfinite(gain).all()
        self.log_q.copy_(torch.where(usable, log_q, self.log_q))
        self.q.copy_(self.log_q.exp())

    def extra_repr(self) -> str:
        return f"num_concepts={len(self.q)}, eta_q={self.eta_q}, adjustment={self.adjustment}"


class CVaR(ConceptWeights):
    """Conditional value at risk over the concepts: the mean loss of the worst share α of the data.

        q = argmax  Σ_k q_k ℓ̄_k   over   Σ q = 1, 0 ≤ q_k ≤ p_k/α         p_k = N_k/N

    The maximum is greedy: by falling ℓ̄_k each concept gets p_k/α until 1 is given away. ℓ̄ is a running
    mean of ĝ, since that of one mini-batch is too noisy for a maximum. α = 1 is ERM. Concepts outside
    the worst share weigh 0 and are forgotten until they are in it: where classes are concepts of a
    network far from converged, small α can keep it from learning any (docs/tuning.md).

    Args:
        concept_count: [K] N_k.
        alpha: in (0, 1].
        momentum: of the running mean, in [0, 1).

    State: ``mean_loss`` [K] float64 and the counter ``t`` besides that of :class:`ConceptWeights`.
    """

    mean_loss: Tensor
    t: Tensor

    def __init__(
        self, concept_count: Tensor | Sequence[int], *, alpha: float = 0.2, momentum: float = 0.9
    ) -> None:
        super().__init__(concept_count, None)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.alpha = float(alpha)
        self.momentum = float(momentum)
        self.register_buffer("mean_loss", torch.zeros_like(self.q))
        self.register_buffer("t", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, concept_loss: Tensor, seen: Tensor | None = None) -> None:
        """One step with ĝ [K]. Losses that are not finite leave q as it is."""
        loss = concept_loss.to(self.q)
        usable = torch.isfinite(loss).all()
        mean = torch.lerp(loss, self.mean_loss, self.momentum)
        self.mean_loss.copy_(torch.where(usable, mean, self.mean_loss))
        self.t += usable
        # That the mean starts at 0 is one factor for all concepts, which leaves their order as it is.
        order = self.mean_loss.argsort(descending=True, stable=True)
        most = (self.q0 / self.alpha)[order]
        given = (1.0 - (most.cumsum(0) - most)).clamp(min=0.0)  # what is left before each
        q = torch.empty_like(self.q).scatter_(0, order, torch.minimum(most, given))
        self.q.copy_(torch.where(self.t > 0, q / q.sum(), self.q0))

    def extra_repr(self) -> str:
        return f"num_concepts={len(self.q)}, alpha={self.alpha}, momentum={self.momentum}"
