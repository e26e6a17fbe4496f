"""The concept level of HRRL: projected gradient ascent on the simplex."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _autograd, reference
from ._library import operator, written_to
from ._transforms import by_twin, constants, transformed

_update_distribution = operator("update_distribution")
_step_distribution = operator("step_distribution")


def project_simplex(v: Tensor, *, dim: int = -1, radius: float = 1.0) -> Tensor:
    """min_p ‖p - v‖₂   s.t.   p ≥ 0, Σ p = radius, along ``dim``.

    The solution is p = max(v - ν, 0) with one ν per row, found by Newton's method in float64 without
    sorting (Michelot, 1986): linear in the size for any practical input, from 1 to millions.

    Args:
        v: [..., K, ...] float16, bfloat16, float32 or float64.
        dim: the projected dimension.
        radius: Σ p, positive. 1 for a probability distribution.

    Returns:
        p, shape and dtype of ``v``. P(v + a) = P(v) for a constant a, and entries of ±1e30 cost no
        precision. -Inf is an entry that gets nothing; NaN or +Inf makes its row NaN.

    Differentiable, to any order: dv = 1_S (dp - mean_S dp) with S = {p > 0}. Deterministic.
    Raises ValueError if ``v`` has no entry along ``dim``.

    Equivalent to :func:`hrrl_ext.ops.reference.project_simplex`, which sorts.
    """
    if dim not in (-1, v.dim() - 1):
        return project_simplex(v.movedim(dim, -1), radius=radius).movedim(-1, dim)
    if transformed():
        return by_twin(
            "project_simplex", lambda: reference.project_simplex(v, radius=radius), v, radius
        )
    if v.requires_grad and torch.is_grad_enabled():
        p: Tensor = _autograd.ProjectSimplex.apply(v, radius)
        return p
    return _autograd.project_simplex(v, radius)


def project_simplex_backward(p: Tensor, grad: Tensor) -> Tensor:
    """1_S (g - mean_S g) along the last dimension, S = {p > 0}: what :func:`project_simplex` hands back.

    Args:
        p: [..., K] what the projection returned, float16, bfloat16, float32 or float64.
        grad: [..., K] the gradient in p, of its dtype and device.

    Returns:
        the gradient in what was projected, shape and dtype of ``p``; computed in float64 and rounded
        once. A row without a positive entry (one of NaN) gets zeros.

    Differentiable in ``grad``, to any order: it is linear and its own transpose. Deterministic. Raises
    ValueError for shapes, dtypes or devices that do not match.

    Equivalent to::

        inside = torch.where(p > 0, grad, 0)
        torch.where(p > 0, grad - inside.sum(-1, True) / (p > 0).sum(-1, True), 0)
    """
    (p,) = constants(p)
    return _autograd.simplex_gradient(p, grad)


def update_distribution(
    q: Tensor, concept_loss: Tensor, q0: Tensor, eta: float | Tensor, lam: float
) -> Tensor:
    """q ← P_Δ(q + η_q (ĝ - λ (q - q0))): one ascent step of the adversary (HRRL, Eq. 6).

    Args:
        q, q0: [K] the adversary's and the reference distribution; q float32 or float64.
        concept_loss: [K] ĝ, as :func:`concept_cross_entropy` returns it.
        eta: η_q ≥ 0, a number or a tensor of one entry (on the device of ``q``, which is then not
            waited for).
        lam: λ ≥ 0.

    Returns:
        the new q [K] in the dtype of ``q``; ``q`` itself is left alone. Everything is computed in
        float64. A NaN or +Inf in ``concept_loss`` makes all of it NaN.

    Carries no gradient: the adversary's step is not differentiated through. Deterministic. Raises
    ValueError for shapes, dtypes or devices that do not match, and for a negative eta or lam.

    Equivalent to ``project_simplex(q + eta * (concept_loss - lam * (q - q0)))``.
    """
    q, concept_loss, q0 = constants(q, concept_loss, q0)
    if isinstance(eta, Tensor):
        return _update_distribution(q, concept_loss, q0, 1.0, lam, eta.detach())
    return _update_distribution(q, concept_loss, q0, eta, lam)


def step_distribution(
    q: Tensor, t: Tensor, concept_loss: Tensor, q0: Tensor, c: Tensor, *, lam: float, s: int
) -> None:
    """t ← t + 1;  q ← P_Δ(q + η_q (ĝ - λ (q - q0))),  η_q = 1/(c λ t) for t ≤ s, then 1/(λ t).

    Lines 3 to 7 and 11 of HRRL's Algorithm 1 in one launch, which leaves nothing to the host: the
    counter, the schedule, and the refusal of losses that would throw q out of the simplex.

    Args:
        q: [K] the adversary's distribution, float32 or float64, contiguous. It is written to.
        t: [] int64, the steps before this one. It is written to.
        concept_loss, q0: [K] ĝ and the reference distribution, as in :func:`update_distribution`.
        c: [] floating: the first steps are so many times slower.
        lam: λ > 0.
        s: how many first steps.

    Returns:
        None. Where ĝ has a NaN or +Inf, or the step overflows, q keeps its bits; t counts all the same.

    Carries no gradient. Deterministic. Raises ValueError for shapes, dtypes or devices that do not
    match, for a lam that is not positive, a negative s, and a ``q`` that requires a gradient.

    Equivalent to::

        t += 1
        eta = 1 / (lam * t.double())
        eta = torch.where(t <= s, eta / c, eta)
        stepped = ops.update_distribution(q, concept_loss, q0, eta, lam)
        q.copy_(torch.where(stepped.isfinite().all(), stepped, q))
    """
    if q.requires_grad:
        raise ValueError(
            "step_distribution: q is written to in place and carries no gradient; pass q.detach()"
        )
    concept_loss, q0, c = constants(concept_loss, q0, c)
    _step_distribution(q, t, concept_loss, q0, c, lam, s)
    written_to(q, t)
