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
