"""The operators of HRRL, of gradient clustering and of retrieval as plain functions, on CPU and CUDA.

================================ ===================================================================
:func:`perturb`                  x̃ = x + τ g/‖g‖_F, per example
:func:`perturb_stored`           x̃ = x + τ A z/‖A z‖_F, z stored in bytes or signs
:func:`store_directions`         z ← Aᵀ g/‖g‖_F, in place
:func:`concept_cross_entropy`    Σ_i (N/N_k) q_k ℓ_i / B, and the losses per concept
:func:`update_distribution`      q ← P_Δ(q + η_q (ĝ - λ (q - q0)))
:func:`step_distribution`        the same in place, with the counter and the schedule of Algorithm 1
:func:`chi_square_response`      argmax_q Σ q_k ℓ_k - (λ/2) Σ (q_k - q0_k)²/q0_k, in a ball, below a cap
:func:`project_simplex`          the projection P_Δ itself, batched and differentiable
:func:`project_simplex_backward` its gradient, 1_S (g - mean_S g)
:func:`rank1_assign`             a_i = argmin_k N_k Σ_l ‖C_kl - G_il‖², gradients by their factors
:func:`rank1_products`           Σ_l ⟨C_k, G_i⟩ and Σ_l ‖G_i‖², what those distances are made of
:func:`rank1_dot`                ⟨C_k, g_b⟩ of one layer, for all examples and centres
:func:`rank1_argmin`             a_b = argmin_k N_k ‖C_k - g_b‖² from their sums
:func:`hardest_negatives`        argmax_c s(i, c) and argmax_i s(i, c) over pairs of different groups
:func:`pair_gradients`           the gradient of Σ_n w_n s(i_n, c_n), a sum over chosen pairs
:func:`hinge_coefficients`       Σ_ic [b_i + s(i, c)]₊ + [d_c + s(i, c)]₊, and its derivative in s(i, c)
:func:`mix_chains`               (1 - m) x + m Σ_j w_j chain_j(x), chains of operations on 8-bit images
:func:`check_labels`             raises for labels out of range, on any device
:mod:`reference`                 the same functions in plain PyTorch
================================ ===================================================================
"""

from . import _fakes, reference  # noqa: F401  (what torch needs to trace them)
from ._types import (
    ConceptLoss,
    Convolution,
    HardestNegatives,
    HingeCoefficients,
    LayerGradient,
    NearestCentre,
    Rank1Centre,
    Similarity,
)
from .chi_square_response import chi_square_response
from .concept_cross_entropy import check_labels, concept_cross_entropy
from .hardest_negatives import hardest_negatives
from .hinge_coefficients import hinge_coefficients
from .mix_chains import IMAGE_OPERATIONS, mix_chains
from .pair_gradients import pair_gradients
from .perturb import perturb
from .rank1 import rank1_argmin, rank1_dot
from .rank1_assign import Rank1Products, centre_products, rank1_assign, rank1_products
from .simplex import (
    project_simplex,
    project_simplex_backward,
    step_distribution,
    update_distribution,
)
from .stored import perturb_stored, store_directions

__all__ = [
    "IMAGE_OPERATIONS",
    "ConceptLoss",
    "Convolution",
    "HardestNegatives",
    "HingeCoefficients",
    "LayerGradient",
    "NearestCentre",
    "Rank1Centre",
    "Rank1Products",
    "Similarity",
    "centre_products",
    "check_labels",
    "chi_square_response",
    "concept_cross_entropy",
    "hardest_negatives",
    "hinge_coefficients",
    "mix_chains",
    "pair_gradients",
    "perturb",
    "perturb_stored",
    "project_simplex",
    "project_simplex_backward",
    "rank1_argmin",
    "rank1_assign",
    "rank1_dot",
    "rank1_products",
    "reference",
    "step_distribution",
    "store_directions",
    "update_distribution",
]
