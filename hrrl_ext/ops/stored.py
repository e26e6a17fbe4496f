"""Directions that are stored in the coordinates of their images: moving along them, and storing them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._library import operator
from ._transforms import by_twin, transformed

_perturb_stored = operator("perturb_stored")
_store_directions = operator("store_directions")


def perturb_stored(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    row: Tensor,
    view: Tensor,
    tau: float,
    *,
    padding: int = 0,
    resolution: int = 1,
) -> Tensor:
    """x̃_i = x_i + τ A_i z_i / ‖A_i z_i‖_F, z_i: the stored direction of image i, A_i: its view.

    What is outside of the image moves by nothing, and does not count in the norm.

    Args:
        x: [B, C, H, W] float16, bfloat16, float32 or float64: the images as their views show them, in
            any layout; a dense one (contiguous, channels_last) is used as it lies, without a copy.
        values: [N, P], P = C ⌈H/r⌉ ⌈W/r⌉: int8; or [N, ⌈P/8⌉] uint8, packed signs, value p in bit
            p mod 8 of byte ⌊p/8⌋, set for +1.
        scale: [N] float32; 0 where nothing is known, and x̃_i = x_i. What else it is does not matter here.
        row: [B] int64, the row of each image. A number may come several times.
        view: [B, 3] int64: top and left of the crop in the image with ``padding`` pixels around it, and
            whether it is flipped then (:meth:`hrrl_ext.data.Augmentation.draw`). Any crop is allowed.
        tau: a finite number.
        padding: pixels around an image that crops may show.
        resolution: r, the side of the block of pixels that share a value.

    Returns:
        x̃, shape, dtype and layout of ``x``. An example without a direction is ``x`` to the bit.

    Gradients: where ``x`` requires them, x̃ has the identity in ``x``, by the plain-PyTorch path; nothing
    else has a gradient.

    Deterministic. Raises ValueError for shapes, dtypes or devices that do not match; on the CPU
    IndexError for a row out of range, while a GPU makes NaN of that example.

    Equivalent to, but for τ of any size::

        z = augment.apply((values[row] * scale[row, None]).view_as(x), view)
        x_perturbed = ops.perturb(x, z, tau)[0]
    """
    if transformed() or (torch.is_grad_enabled() and x.requires_grad):
        given = (x, values, scale, row, view, tau)
        return by_twin(
            "perturb_stored",
            lambda: reference.perturb_stored(*given, padding=padding, resolution=resolution),
            *given,
            padding,
            resolution,
        )
    moved: Tensor = _perturb_stored(x, values, scale, row, view, tau, padding, resolution)
    return moved


def store_directions(
    values: Tensor,
    scale: Tensor,
    grad: Tensor,
    row: Tensor,
    view: Tensor,
    *,
    padding: int = 0,
    resolution: int = 1,
) -> None:
    """z_i ← S(g_i / ‖g_i‖_F where A_i shows the pixel, z_i elsewhere),  g_i = A_iᵀ ∂ℓ/∂x̃_i.

    S rounds to -127 .. 127 in units of one scale a row, that of the largest value, ties to even; of
    packed signs each is that of g_i, and stays where g_i is 0 or not shown. With ``resolution`` r a value
    is the sum over its block, of which one pixel that is shown is enough.

    Args:
        values, scale: as in :func:`perturb_stored`, contiguous. Rows ``row`` are written to.
        grad: [B, C, H, W] gradients of x̃, of any floating dtype and in any layout. The scale of each does
            not matter, from the smallest number of its dtype to the largest.
        row: [B] int64, all different: equal ones leave one of theirs, or a mixture.
        view, padding, resolution: as in :func:`perturb_stored`.

    Returns:
        None. A row whose gradient is zero where it is shown, or has an Inf or NaN there, keeps its bits.

    Nothing here carries a gradient.

    Deterministic. Raises ValueError for shapes, dtypes or devices that do not match; on the CPU
    IndexError for a row out of range, before anything is written, while a GPU leaves that example out.

    Equivalent to, for a row that is shown whole::

        z = augment.undo(grad, view).flatten(1)
        z = z / z.norm(dim=1, keepdim=True)
        scale[row] = z.abs().amax(1) / 127
        values[row] = (z / scale[row, None]).round().to(torch.int8)
    """
    _store_directions(values, scale, grad.detach(), row, view, padding, resolution)
