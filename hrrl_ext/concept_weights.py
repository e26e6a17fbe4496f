"""The concept level: the adversary that weights the concepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from . import ops
from .losses import Mixed

CALIBRATION_BATCHES = 8
"""Mini-batches that c="auto" is estimated from."""


def slow_phase_divisor(s: int, mu: float, lam: float) -> float:
    """c = (μ/λ) √(log s / (2s)): the divisor of η_q that is best for Theorem 3, and never below 1.

    ``mu`` bounds ‖g_q‖₂. c ≤ 1 means that the first s steps need not be slowed down.
    """
    _check_schedule(s, lam)
    return max(1.0, mu / lam * math.sqrt(math.log(s) / (2 * s))) if s > 0 else 1.0


def variance_gain(s: int | float | Tensor, mu: float, lam: float) -> Any:
    """h(s) = μ √(log s / (2λ)) - √(s λ): what s slow steps gain (HRRL, Proposition 1; Figure 2).

    The bound of Theorem 3 falls by h(s)²/T where h ≥ 0, that is where the best c is at least 1. h is
    largest where s log s = μ²/(2λ²). ``s`` is a number or a tensor, ≥ 1; so is the result.
    """
    if isinstance(s, Tensor):
        return mu * torch.sqrt(torch.log(s) / (2 * lam)) - torch.sqrt(s * lam)
    return mu * math.sqrt(math.log(s) / (2 * lam)) - math.sqrt(s * lam)


class ConceptWeights(nn.Module):
    """A distribution q over the K concepts and what it makes an example count for.

    Base of :class:`ConceptDistribution` and of the baselines, which differ in :meth:`update`.

    State (buffers): ``q``, ``q0`` and ``concept_count``, all [K] float64.
    """

    wants_seen: ClassVar[bool] = False
    """Whether :meth:`update` makes use of ``seen``."""
    concept_count: Tensor
    q0: Tensor
    q: Tensor

    def __init__(
        self, concept_count: Tensor | Sequence[int], q0: Tensor | Sequence[float] | None
    ) -> None:
        super().__init__()
        count = torch.as_tensor(concept_count).detach().to(torch.float64)
        if count.dim() != 1 or len(count) == 0:
            raise ValueError(
                f"concept_count must have shape [K] with K >= 1, got {list(count.shape)}"
            )
        if not bool((count > 0).all() & torch.isfinite(count).all()):
            k = int((~(count > 0) | ~torch.isfinite(count)).nonzero()[0])
            raise ValueError(
                f"concept_count must be positive, got {count[k].item():g} for concept {k}: a concept "
                "without a training example has no weight N/N_k; leave it out or merge it"
            )
        self.register_buffer("concept_count", count.clone())
        self.register_buffer("q0", count / count.sum() if q0 is None else _distribution(q0, count))
        self.register_buffer("q", self.q0.clone())

    @property
    def weight(self) -> Tensor:
        """[K] N q_k / N_k, what an example of concept k counts for in the loss; 1 at q = N_k/N."""
        return self.q / (self.concept_count / self.concept_count.sum())

    @property
    def effective_concepts(self) -> Tensor:
        """[] exp of the entropy of q: K where q is uniform, 1 where one concept has everything."""
        return effective_number(self.q)

    def concentration(self, names: Sequence[str]) -> str | None:
        """What is to be said where q has run into a corner of the simplex, if it has."""
        here, there = (effective_number(q).item() for q in (self.q, self.q0))
        if here > there / 2:
            return None
        k = int(self.q.argmax())
        return (
            f"q has concentrated on {here:.1f} of {there:.1f} concepts: {names[k]!r} has q = "
            f"{self.q[k].item():.2f}, each of its examples counts {self.weight[k].item():.0f}-fold. "
            "Training can collapse"
        )

    def seen(self, concept: Tensor | Mixed) -> Tensor:
        """[K] how often a batch, ``concept`` [B], has each concept, over how often it is expected to:
        N B_k / (N_k B). It is ĝ of losses of 1, so as ĝ it is averaged over parts of a batch."""
        if isinstance(concept, Mixed):
            batch, (ids, share) = len(concept.share), concept.flat()
        else:
            batch, ids, share = len(concept), concept, torch.ones_like(concept)
        count = self.q.new_zeros(len(self.q)).index_add_(0, ids, share.to(self.q))
        return count / (self.concept_count / self.concept_count.sum()) / max(batch, 1)

    def update(self, concept_loss: Tensor, seen: Tensor | None = None) -> None:
        """One step of q with ĝ [K], the ``concept_loss`` of the loss that also moves the model, and
        where ``wants_seen`` what :meth:`seen` says of the same batch."""
        raise NotImplementedError


class ConceptDistribution(ConceptWeights):
    """The adversary's distribution over the K concepts, and its projected gradient ascent.

        max_{q in Δ}  Σ_k q_k ℓ̄_k - (λ/2) ‖q - q0‖²           ℓ̄_k: the mean loss of concept k
        q ← P_Δ(q + η_q (ĝ - λ (q - q0)))                     one step, HRRL, Eq. 6
        η_q = 1/(c λ t) for t ≤ s, then 1/(λ t)               t = 1, 2, ... (Algorithm 1)

    At fixed losses q tends to P_Δ(q0 + ℓ̄/λ): where no entry is clipped, q_k - q0_k = (ℓ̄_k - mean ℓ̄)/λ.
    So λ is in units of the loss. With λ = K σ, σ the spread of the concepts' losses, q_k moves by
    about 1/K, one entry of a uniform q0; with λ far below K σ it runs into a corner of the simplex,
    where a few concepts have all the weight and training can collapse.

    Args:
        concept_count: [K] N_k, how many training examples (not classes) each concept has.
        lam: λ > 0; or None, which keeps q at q0: no concept level.
        s, c: the first s steps are c times slower. ``c="auto"`` takes it from μ, to be estimated
            by :meth:`calibrate` before the first step.
        q0: [K] the reference distribution; N_k/N by default. Set to a target task's mix of concepts
            it tells the features what they will be used for.

    State (all buffers, in ``state_dict``): ``q``, ``q0``, ``concept_count`` and ``c`` in float64, the
    step counter ``t`` in int64. Nothing here waits for the device.
    """

    t: Tensor
    c: Tensor

    def __init__(
        self,
        concept_count: Tensor | Sequence[int],
        *,
        lam: float | None,
        s: int = 1000,
        c: float | Literal["auto"] = 10.0,
        q0: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(concept_count, q0)
        if lam is not None:
            _check_schedule(s, lam)
        if c != "auto" and not (math.isfinite(c) and c >= 1):
            raise ValueError(
                f"c must be 'auto' or at least 1 (it slows the first s steps), got {c}"
            )
        self.lam = None if lam is None else float(lam)
        self.s = int(s)
        self.register_buffer("t", torch.zeros((), dtype=torch.int64))
        c_value = math.nan if c == "auto" else float(c)
        self.register_buffer("c", torch.tensor(c_value, dtype=torch.float64))
        self._calibrated = c != "auto"
        self.register_load_state_dict_post_hook(_note_calibration)

    @torch.no_grad()
    def update(self, concept_loss: Tensor, seen: Tensor | None = None) -> None:
        """One ascent step with ĝ [K], the ``concept_loss`` of the loss that also moves the model.

        Losses that are not finite (one overflow would throw q into a corner for good) leave q as it
        is; the counter still advances.
        """
        if self.lam is None:
            return
        if not self._calibrated:
            raise RuntimeError(
                'c="auto" needs calibrate(concept_losses) with the losses of a few mini-batches first'
            )
        ops.step_distribution(self.q, self.t, concept_loss, self.q0, self.c, lam=self.lam, s=self.s)

    @torch.no_grad()
    def calibrate(self, concept_losses: Sequence[Tensor]) -> float:
        """Sets c from the ĝ of several mini-batches, as the paper does; returns μ.

        μ = √(mean ‖ĝ - λ (q - q0)‖²), c = max(1, (μ/λ) √(log s / (2s))).
        """
        if self.lam is None:
            raise ValueError("lam is None: q does not move and needs no c")
        if not concept_losses:
            raise ValueError("calibrate needs the concept losses of at least one mini-batch")
        pull = self.lam * (self.q - self.q0)
        squares = [(loss.to(self.q) - pull).square().sum() for loss in concept_losses]
        mu = math.sqrt(torch.stack(squares).mean().item())
        if not math.isfinite(mu):
            raise ValueError("calibrate got concept losses that are not finite")
        self.c.fill_(slow_phase_divisor(self.s, mu, self.lam))
        self._calibrated = True
        return mu

    def advised_lam(self, concept_loss: Tensor, first_steps: int) -> float:
        """K σ of the concepts' mean losses; of c times less where only ``first_steps``, which are short,
        are to keep q out of a corner."""
        advised: float = len(self.q) * concept_loss.std(correction=0).item()
        return advised / self.c.item() if self.t <= min(first_steps, self.s) else advised

    def extra_repr(self) -> str:
        return f"num_concepts={len(self.q)}, lam={self.lam}, s={self.s}, c={self.c.item():g}"


def effective_number(q: Tensor) -> Tensor:
    """[] exp of the entropy of a distribution: how many entries a uniform one of its entropy has."""
    return torch.special.entr(q).sum().exp()


def _check_schedule(s: int, lam: float) -> None:
    if not (math.isfinite(lam) and lam > 0):
        raise ValueError(
            f"lam must be positive and finite, got {lam}; None switches the concept level off"
        )
    if s < 0 or s != int(s):
        raise ValueError(f"s must be a whole number of steps, not negative, got {s}")


def _distribution(q0: Tensor | Sequence[float], count: Tensor) -> Tensor:
    q = torch.as_tensor(q0).detach().to(torch.float64)
    if q.shape != count.shape:
        raise ValueError(
            f"q0 must have one entry per concept, shape {list(count.shape)}, got {list(q.shape)}"
        )
    if not bool((q >= 0).all()) or abs(q.sum().item() - 1.0) > 1e-6:
        raise ValueError(
            f"q0 must be a distribution (entries >= 0 that sum to 1), got a sum of {q.sum().item():g} "
            f"and a smallest entry of {q.min().item():g}"
        )
    return q / q.sum()


def _note_calibration(module: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(module, ConceptDistribution)
    module._calibrated = bool(torch.isfinite(module.c))
