"""Distances between per-example gradients and rank-1 centres: the A step of gradient clustering.

The gradient of a linear layer is a sum of outer products, and so is a centre C_k = c_k d_kᵀ. Neither
is formed: ‖C_k - g_b‖² = ‖C_k‖² - 2 ⟨C_k, g_b⟩ + ‖g_b‖² takes inner products alone.
"""

from __future__ import annotations

from torch import Tensor

from ._library import operator, written_to
from ._transforms import constants
from ._types import NearestCentre

_rank1_dot = operator("rank1_dot")
_rank1_argmin = operator("rank1_argmin")


def rank1_dot(cross: Tensor, p: Tensor, q: Tensor) -> None:
    """cross_bk += Σ_g Σ_m p_bgkm q_bgkm: what a layer adds to ⟨C_k, g_b⟩ (Faghri's thesis, Eq. 4.5, A.3).

    A linear layer with inputs A, output gradients D and centres c_k d_kᵀ has ⟨C_k, g_b⟩ =
    (A_b·c_k)(D_b·d_k): p = A cᵀ and q = D dᵀ, both [B, K], and M = G = 1. A convolution sums over the
    positions t (A.3) and over its groups: p_bgkt = A_bgt·c_gk and q_bgkt = D_bgt·d_gk.

    Args:
        cross: [B, K] float64, contiguous. Added to in place; not the memory of ``p`` or ``q``.
        p: [B, G, K, M] float32 or float64. Contiguous, or it is copied.
        q: shape, dtype and device of ``p``.

    Returns:
        nothing: the result is in ``cross``. A size of 0 anywhere adds nothing.

    Products and sums are formed in float64, whatever the dtype: the distance is a difference of
    nearly equal terms.

    No gradient is offered. Those of ``p`` and ``q`` are ignored; a ``cross`` that requires one is
    refused, since it is overwritten.

    Deterministic: the order of the sums follows from the shape of one example, so it is the same for
    any number of threads and any batch around it. Raises ValueError for shapes, dtypes, devices or a
    ``cross`` that do not match.

    Equivalent to ``cross += (p.double() * q.double()).sum((1, 3))``.
    """
    if cross.requires_grad:
        raise ValueError(
            "rank1_dot: cross is written to in place and carries no gradient; pass cross.detach()"
        )
    p, q = constants(p, q)
    _rank1_dot(cross, p, q)
    written_to(cross)


def rank1_argmin(
    cross: Tensor, square: Tensor, centre_square: Tensor, weight: Tensor, *, rtol: float = 1e-6
) -> NearestCentre:
    """a_b = argmin_k N_k ‖C_k - g_b‖² (Faghri's thesis, Eq. 4.3), from the terms of the squared distance.

        S_bk = max(‖C_k‖² - 2 ⟨C_k, g_b⟩ + ‖g_b‖², 0)
        a_b  = the lowest k with w_k S_bk ≤ min_j w_j S_bj + rtol w_k (‖C_k‖² + ‖g_b‖²)

    S is a difference of terms of the size ‖C_k‖² + ‖g_b‖², so that is what rounding upstream can hide:
    scores closer than ``rtol`` of it are a tie, and a tie goes to the lowest k. Nothing is compared
    with an absolute number: gradients 2^n times as large give the same assignment.

    Args:
        cross: [B, K] float64, ⟨C_k, g_b⟩ as :func:`rank1_dot` collects it. K ≥ 1.
        square: [B] float64, ‖g_b‖².
        centre_square: [K] float64, ‖C_k‖².
        weight: [K] float64, w_k > 0: the sizes N_k of the clusters, frozen for the pass. With equal
            weights this is k-means. Not checked, for that would wait for the device.
        rtol: what counts as rounding, finite and not negative. The default suits products of float32;
            0 breaks exact ties alone.

    Returns:
        :class:`NearestCentre` ``(assignment, distance, gap)``, each [B]. ``distance`` is S, without the
        weight. ``gap`` tells how clear the choice was: the lowest score of the other clusters less
        that of the assigned one, over w_a (‖C_a‖² + ‖g_b‖²). Not below -rtol; inf for K = 1; 0 for 0/0.

    An example with a NaN or infinite number among ``square`` and its row of ``cross`` has assignment
    -1 and NaN for distance and gap, and no other example is touched. So has one whose scores
    overflow. ``centre_square`` and ``weight`` belong to every example: one number there that is not
    finite makes all of them -1.

    No gradient: those of the inputs are ignored. Deterministic, and an example does not depend on its
    batch. Does not wait for the device. Raises ValueError for shapes, dtypes, devices or an ``rtol``
    that do not fit.

    Equivalent to, but for numbers that are not finite::

        squared = (centre_square - 2 * cross + square[:, None]).clamp(min=0)
        score, scale = weight * squared, weight * (centre_square + square[:, None])
        near = score <= score.amin(1, keepdim=True) + rtol * scale
        assignment = near.long().cumsum(1).eq(0).sum(1)  # the first k that is near
        distance = squared.gather(1, assignment[:, None]).squeeze(1)
    """
    given = constants(cross, square, centre_square, weight)
    return NearestCentre(*_rank1_argmin(*given, rtol))
