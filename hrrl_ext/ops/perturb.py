"""The example level of HRRL: move each example along its own normalised input gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._library import operator
from ._transforms import by_twin, transformed

_perturb = operator("perturb")


def perturb(x: Tensor, grad: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    """x̃_i = x_i + τ g_i / ‖g_i‖_F for every example i (HRRL, Algorithm 1, line 9).

    The norm is taken over all dimensions but the first, so ‖x̃_i - x_i‖_F = τ: ``tau`` has the unit
    of ``x``, which in this library is an image in [0, 1]. Nothing is clipped.

    Args:
        x: [B, ...] float16, bfloat16, float32 or float64, in any layout; a dense one (contiguous,
            channels_last) is used as it lies, without a copy.
        grad: ∇_x ℓ, same shape and dtype. Its scale does not matter, from the smallest number of
            its dtype to the largest: the sum of the losses, their mean or a scaled loss give the
            same direction.
        tau: a finite number, or a [B] tensor with one value per example.

    Returns:
        ``x_perturbed``, shape, dtype and layout of ``x``; and ``grad_norm`` [B], ‖g_i‖_F in float32
        (float64 for float64), without gradient.

    An example whose gradient is zero, or holds an Inf or NaN, is returned unchanged to the bit, and
    no other example is touched: a gradient that overflowed under mixed precision costs that example
    its perturbation and no more. ``grad_norm`` shows it (0, Inf or NaN).

    Gradients: where an input requires them, x̃ is differentiable, with the identity in ``x``,
    τ/‖g‖ (I - z zᵀ) in ``grad`` (z = g/‖g‖) and z in ``tau``; that path is the plain-PyTorch one.
    In training nothing requires them, and the call costs no autograd.

    Deterministic. Raises ValueError for shapes, dtypes or devices that do not match.

    Equivalent to, but for the care at 0 and Inf and at extreme scales::

        norm = grad.flatten(1).norm(dim=1)
        x_perturbed = x + tau * grad / norm.view(-1, *[1] * (x.dim() - 1))
    """
    differentiable = transformed() or (
        torch.is_grad_enabled()
        and (
            x.requires_grad or grad.requires_grad or (isinstance(tau, Tensor) and tau.requires_grad)
        )
    )
    if differentiable and x.shape == grad.shape and x.dtype == grad.dtype:  # else refused below
        scale = (1.0, tau) if isinstance(tau, Tensor) else (tau,)
        return by_twin("perturb", lambda: reference.perturb(x, grad, tau), x, grad, *scale)
    if isinstance(tau, Tensor):
        return _perturb(x, grad, 1.0, tau if tau.dim() else tau.expand(len(x)))
    return _perturb(x, grad, tau)
