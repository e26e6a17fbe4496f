from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ConceptLoss(NamedTuple):
    """What :func:`hrrl_ext.ops.concept_cross_entropy` returns. Only ``loss`` carries a gradient."""

    loss: Tensor
    """[] what the model descends on: 1/B Σ_i (N/N_k) q_k ℓ_i."""
    concept_loss: Tensor
    """[K] what the adversary ascends on: ĝ_k = 1/B Σ_{i in k} (N/N_k) ℓ_i; 0 for an absent concept."""
    example_loss: Tensor
    """[B] ℓ_i, unweighted."""


class NearestCentre(NamedTuple):
    """What :func:`hrrl_ext.ops.rank1_argmin` returns. None of it carries a gradient."""

    assignment: Tensor
    """[B] int64 a_b, the cluster of each example; -1 where a number was not finite."""
    distance: Tensor
    """[B] float64 S_ba = ‖C_a - g_b‖², not weighted; NaN where the assignment is -1."""
    gap: Tensor
    """[B] float64 how far the next cluster is behind, over w_a (‖C_a‖² + ‖g_b‖²); inf for K = 1."""
