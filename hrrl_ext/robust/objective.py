"""Both players in one module, for any training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import ops
from ..concept_weights import ConceptDistribution, ConceptWeights
from ..losses import ClassificationLoss, Mixed
from ..perturbation import BatchNormStatistics, ExamplePerturbation
from ..processes import Processes
from .theorem2 import Theorem2Perturbation


class HRRLObjective(nn.Module):
    """min_θ max_{q in Δ}  Σ_k (q_k/N_k) Σ_{i in k} ℓ(x̃_i, y_i; θ) - (λ/2) ‖q - q0‖²   (HRRL, Eq. 4).

    One step of Algorithm 1 in a loop of one's own::

        x = objective.perturb(model, x, target)          # line 9, example level
        out = objective(model(x), target, concept)       # the losses at θ_t, weighted by q_t
        optimizer.zero_grad(); out.loss.backward(); optimizer.step()     # line 10
        objective.update(out.concept_loss)               # line 11, concept level

    Both updates use the losses at θ_t: there is no second forward pass.

    ================ ======= ==========
    name             tau     lam
    ================ ======= ==========
    ERM              0       None
    EL               > 0     None
    CL               0       > 0
    HRRL             > 0     > 0
    ================ ======= ==========

    With tau = 0 and lam = None (and the default q0) every weight is exactly 1 and the loss is the
    plain mean cross-entropy.

    Args:
        concept_count: [K] training examples per concept; None is one concept, for tau alone.
        tau, batch_norm, loss_scale: see :class:`ExamplePerturbation`; "theorem2", with
            ``tau_multiple``, is :class:`Theorem2Perturbation`.
        lam, s, c, q0: see :class:`ConceptDistribution`.
        distribution: another adversary in its place, such as :class:`ChiSquare` or :class:`CVaR`, to
            which concept_count, lam (pass None), s, c and q0 do not apply.
        label_smoothing: of the loss, in both passes.
        steps: see :class:`ExamplePerturbation`.
        loss: another ℓ than the cross-entropy, for both players, which has its own label_smoothing.
        processes: that share each batch, which tau="theorem2" must know.
    """

    def __init__(
        self,
        concept_count: Tensor | Sequence[int] | None = None,
        *,
        tau: float | Literal["theorem2"],
        lam: float | None,
        s: int = 1000,
        c: float | Literal["auto"] = 10.0,
        q0: Tensor | Sequence[float] | None = None,
        batch_norm: BatchNormStatistics = "batch",
        label_smoothing: float = 0.0,
        loss_scale: float = 1.0,
        distribution: ConceptWeights | None = None,
        steps: int = 1,
        loss: ClassificationLoss | None = None,
        tau_multiple: float = 1.0,
        processes: Processes | None = None,
    ) -> None:
        super().__init__()
        self.loss = ClassificationLoss.given(loss, label_smoothing)
        self.perturbation: ExamplePerturbation
        of_both: dict[str, Any] = {
            "batch_norm": batch_norm,
            "loss_scale": loss_scale,
            "loss": self.loss,
        }
        if tau == "theorem2":
            self.perturbation = Theorem2Perturbation(tau_multiple, processes=processes, **of_both)
        else:
            self.perturbation = ExamplePerturbation(tau, steps=steps, **of_both)
        if distribution is None:
            count = [1] if concept_count is None else concept_count
            distribution = ConceptDistribution(count, lam=lam, s=s, c=c, q0=q0)
        self.distribution: ConceptWeights = distribution

    def perturb(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        """x̃ [B, ...], detached; ``x`` itself where tau = 0. See :class:`ExamplePerturbation`."""
        x_perturbed: Tensor = self.perturbation(model, x, target)
        return x_perturbed

    def forward(
        self, logits: Tensor, target: Tensor | Mixed, concept: Tensor | Mixed | None = None
    ) -> ops.ConceptLoss:
        """logits [B, C], target [B], concept [B] → :class:`hrrl_ext.ops.ConceptLoss`, weighted by q.

        ``concept`` may be left out where there is one concept, and no mixtures: of these both are
        :class:`hrrl_ext.losses.Mixed`.
        """
        if concept is None:
            if len(self.distribution.q) > 1:
                raise ValueError(
                    f"concept is needed: there are {len(self.distribution.q)} concepts"
                )
            concept = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        q, count = self.distribution.q, self.distribution.concept_count
        return self.loss.weighted(logits, target, concept, q, count)

    def update(self, concept_loss: Tensor, *seen: Tensor) -> None:
        """One step of q with ``concept_loss`` [K] of the same losses; none where lam is None. ``seen``
        is what :meth:`ConceptWeights.seen` says of the batch, for an adversary that wants it."""
        self.distribution.update(concept_loss, *seen)
        self.perturbation.update()
