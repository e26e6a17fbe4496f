"""The loss of HRRL: cross-entropy weighted by concept, with the losses that move the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _autograd, reference
from ._transforms import by_twin, transformed
from ._types import ConceptLoss


def concept_cross_entropy(
    logits: Tensor,
    target: Tensor,
    concept: Tensor,
    q: Tensor,
    concept_count: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> ConceptLoss:
    """Cross-entropy weighted by concept (HRRL, Eq. 5), and the concept losses that move q (Eq. 6).

        loss = 1/B Σ_i w_i ℓ_i        w_i = q_k / p_k,  p_k = N_k / N,  k = concept[i]
        ĝ_k  = 1/B Σ_{i in k} ℓ_i / p_k

    ĝ is unbiased under uniform sampling: E ĝ_k is the mean loss of concept k. A concept without an
    example in the batch has ĝ_k = 0.

    Args:
        logits: [B, C] float16, bfloat16, float32 or float64. Read once and never written to.
        target: [B] int64 in [0, C).
        concept: [B] int64 in [0, K).
        q: [K] float32 or float64, the adversary's distribution. No gradient.
        concept_count: [K] N_k, the number of training examples of each concept, any number type;
            N is its sum.
        label_smoothing: ε in [0, 1), as in :func:`torch.nn.functional.cross_entropy`.

    Returns:
        :class:`ConceptLoss` ``(loss [], concept_loss [K], example_loss [B])``. ``loss`` and
        ``example_loss`` are float32 (float64 for float64 logits), ``concept_loss`` has the dtype of
        ``q``. Only ``loss`` is differentiable, in the logits and once. B = 0 gives zeros.

    The gradient leaves with the forward pass, and backward scales it by what comes from above: on CUDA
    in place, and not at all where that is 1. With ``retain_graph=True`` it stays as it is for the next
    backward pass, and the scaled one is new memory. ``create_graph=True`` raises RuntimeError.

    Identities: ``loss == (q * concept_loss).sum()`` to rounding; with ``q = concept_count / N``
    every weight is exactly 1 and ``loss`` is the plain mean cross-entropy.

    Deterministic: per-concept sums are taken in float64 in a fixed order, whatever the number of
    threads. A non-finite loss shows in ``loss`` and in its own concept only.

    On the CPU a target or concept out of range raises IndexError, before anything is computed. On
    CUDA it is never used as an index and makes ``loss`` NaN, without a synchronisation; call
    :func:`check_labels` to have it raised.

    Equivalent to::

        example_loss = F.cross_entropy(logits, target, reduction="none")
        p = concept_count / concept_count.sum()
        loss = ((q / p)[concept] * example_loss).mean()
        concept_loss = torch.zeros_like(q).index_add(0, concept, example_loss.detach()) / (p * B)
    """
    if q.requires_grad:
        raise ValueError(
            "concept_cross_entropy: q carries no gradient (the adversary moves it by "
            "update_distribution); pass q.detach()"
        )
    arguments = (logits, target, concept, q, concept_count, label_smoothing)
    if transformed():
        return by_twin(
            "concept_cross_entropy",
            lambda: reference.concept_cross_entropy(
                logits, target, concept, q, concept_count, label_smoothing=label_smoothing
            ),
            *arguments,
            False,
        )
    if logits.requires_grad and torch.is_grad_enabled():
        return ConceptLoss(*_autograd.ConceptCrossEntropy.apply(*arguments))
    return ConceptLoss(*_autograd.concept_cross_entropy(*arguments, False)[:3])


def check_labels(target: Tensor, concept: Tensor, *, num_classes: int, num_concepts: int) -> None:
    """Raises IndexError where a target or a concept is out of range, on any device.

    Waits for the device. A training loop calls it once on the labels of its data set, not per step.
    """
    for name, ids, limit in (("target", target, num_classes), ("concept", concept, num_concepts)):
        wrong = ((ids < 0) | (ids >= limit)).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise IndexError(
                f"{name} must lie in [0, {limit}), got {int(ids[i])} at example {i} "
                f"({len(wrong)} of {len(ids)} are out of range)"
            )
