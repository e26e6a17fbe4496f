"""The A step of gradient clustering: which rank-1 centre each example's gradient is nearest to.

The gradient of one example in one layer is G_i = Σ_t D_it A_itᵀ over the positions t of the layer's
output, with A_it what the layer read there and D_it the gradient of what it wrote. It is never
stored for all examples; two of its products are all that a distance needs:

============ ====================================== =====================================
              by positions                           by gradients
============ ====================================== =====================================
⟨C_k, G_i⟩    Σ_t (A_it·c_k)(D_it·d_k)     Eq. A.3   Σ_uv C_kuv G_iuv           Eq. A.2
‖G_i‖²        Σ_st (A_is·A_it)(D_is·D_it)            Σ_uv G_iuv²
============ ====================================== =====================================

A linear layer has one position, and the left column is Eq. 4.5. For a convolution the cheaper column
is taken, by the numbers of positions, channels and centres. Neither unfolds patches: A_it·c_k is a
convolution with c_k, and G_i, in chunks of examples, the weight gradient of one with a group per
example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._arrays import wide
from .._precision import full_float32
from .._products import inner_products
from ._types import Convolution, LayerGradient, NearestCentre, Rank1Centre
from .rank1 import rank1_argmin, rank1_dot

_CHUNK = {"cpu": 2**22, "cuda": 2**26}  # elements of an intermediate: on the CPU it stays in cache
_WEIGHT_GRADIENT = (
    2  # times as slow as a convolution, by operations (measured, one group per example)
)


def rank1_assign(
    gradients: Sequence[LayerGradient],
    centres: Sequence[Rank1Centre],
    weight: Tensor,
    *,
    square: Tensor | None = None,
    rtol: float = 1e-6,
) -> NearestCentre:
    """a_i = argmin_k w_k Σ_l ‖C_kl - G_il‖²_F,  C_kl = Σ_r d_klr c_klrᵀ   (Faghri, Eqs. 4.3 and 4.5).

    One assignment over all layers l. Examples' gradients, G_il, are given by what the layer read and
    by the gradient of the *sum* of the losses with respect to what it wrote (a mean loss would scale
    them by the size of their batch); see :class:`LayerGradient`. Each must depend on its own example
    alone, which batch normalisation by the batch's statistics breaks.

    Args:
        gradients: one per layer, of the same B examples.
        centres: one per layer, of the same K centres, of rank R >= 1.
        weight: [K] positive, w_k; N_k in the paper, ones for ordinary k-means.
        square: [B] float64, Σ_l ‖G_il‖² where it is known (:func:`rank1_products`); computed else.
        rtol: clusters whose scores differ by less, relative to the terms that a distance is the
            difference of, are tied; the lowest k wins.

    Returns:
        assignment [B] int64, distance [B] float64 (Σ_l ‖C_kl - G_il‖², without w) and gap [B]
        float64, how clear the choice was; see :func:`rank1_argmin`, also for values that are not
        finite.

    Products are in the dtype of the gradients (float32 at least, and not TensorFloat-32, whatever
    torch's switches allow), sums over positions, layers and ranks in float64. Nothing carries a
    gradient. Deterministic on the CPU. Memory beyond the arguments: [B, K] float64 and intermediates of
    a fixed size.

    Equivalent, with all gradients stored::

        G = [g.materialize() for g in gradients]                            # [B, G, O, J]
        C = [torch.einsum("gkro,gkrj->kgoj", d, c) for c, d in centres]     # [K, G, O, J]
        S = sum(((C - G[:, None]) ** 2).flatten(2).sum(2) for C, G in zip(C, G))
        assignment = (weight * S).argmin(1)
    """
    return rank1_products(gradients, centres, square=square).nearest(weight, rtol=rtol)


class Rank1Products(NamedTuple):
    """What the distances of B gradients to K centres are made of, float64 sums over layers."""

    cross: Tensor
    """Σ_l ⟨C_kl, G_il⟩ [B, K]"""
    square: Tensor
    """Σ_l ‖G_il‖²_F [B]"""
    centre_square: Tensor
    """Σ_l ‖C_kl‖²_F [K]"""

    def distance(self, *, rtol: float = 1e-6) -> Tensor:
        """S_ik = Σ_l ‖C_kl - G_il‖²_F, [B, K] float64; NaN where a gradient is not finite.

        A difference of larger terms, ‖C‖² + ‖G‖² - 2 ⟨C, G⟩; what is below rtol of them is rounding,
        and 0 here.
        """
        terms = self.centre_square + self.square[:, None]
        distance = terms - 2 * self.cross
        return torch.where(distance <= rtol * terms, 0.0, distance)

    def nearest(self, weight: Tensor, *, rtol: float = 1e-6) -> NearestCentre:
        """a_i = argmin_k w_k S_ik; arguments and result as those of :func:`rank1_assign`."""
        if weight.shape != self.centre_square.shape:
            raise ValueError(
                f"rank1_assign: weight must be [{len(self.centre_square)}], one per centre, got "
                f"{list(weight.shape)}"
            )
        return rank1_argmin(*self, weight.double(), rtol=rtol)


def rank1_products(
    gradients: Sequence[LayerGradient],
    centres: Sequence[Rank1Centre],
    *,
    square: Tensor | None = None,
) -> Rank1Products:
    """The sums that :func:`rank1_assign` chooses by; arguments and cost as there.

    For distances, and for squares to hand on where the same gradients meet other centres.
    """
    _check(gradients, centres)
    batch, device = len(gradients[0].act), gradients[0].act.device
    clusters = centres[0].centre_in.shape[1]
    cross = torch.zeros(batch, clusters, dtype=torch.float64, device=device)
    squares = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    with torch.no_grad(), full_float32(device):
        for gradient, centre in zip(gradients, centres, strict=True):
            _add_products(gradient, centre, cross, squares if square is None else None)
    square = squares.squeeze(1) if square is None else square
    return Rank1Products(cross, square, centre_square(centres))


def centre_products(centres: Sequence[Rank1Centre]) -> Tensor:
    """Σ_l ⟨C_jl, C_kl⟩ of every two centres, [K, K] float64, from their factors."""
    total = torch.zeros((), dtype=torch.float64)
    for centre in centres:
        inner, outer = (factor.double().flatten(1, 2) for factor in centre)  # [G, K R, ·]
        both = (inner @ inner.transpose(1, 2)) * (outer @ outer.transpose(1, 2))
        rank = centre.centre_in.shape[2]
        total = total.to(both) + both.unflatten(1, (-1, rank)).unflatten(3, (-1, rank)).sum(
            (0, 2, 4)
        )
    return total


def centre_square(centres: Sequence[Rank1Centre]) -> Tensor:
    """Σ_l ‖C_kl‖²_F of every centre, [K] float64."""
    total = torch.zeros((), dtype=torch.float64)
    for centre in centres:
        groups, clusters, rank, _ = centre.centre_in.shape
        # ⟨c_r, c_s⟩ and ⟨d_r, d_s⟩ of the ranks of one centre: their products are ⟨d_r c_rᵀ, d_s c_sᵀ⟩.
        both = torch.ones((), dtype=torch.float64)
        for factor in centre:
            pairs = groups, clusters, rank, rank, factor.shape[3]
            one, other = factor.unsqueeze(3).expand(pairs), factor.unsqueeze(2).expand(pairs)
            both = both.to(factor.device) * _row_products(one.flatten(0, 3), other.flatten(0, 3))
        total = total.to(both.device) + both.view(groups, clusters, -1).sum((0, 2))
    return total


def _row_products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of the rows of two matrices [B, J], [B] float64."""
    products = torch.zeros(len(one), 1, dtype=torch.float64, device=one.device)
    rank1_dot(products, wide(one)[:, None, None], wide(other)[:, None, None])
    return products.squeeze(1)


def _check(gradients: Sequence[LayerGradient], centres: Sequence[Rank1Centre]) -> None:
    if not gradients or len(gradients) != len(centres):
        raise ValueError(
            "rank1_assign: needs as many centres as gradients, one of each per layer and at least "
            f"one; got {len(gradients)} gradients and {len(centres)} centres"
        )
    batch, shape = len(gradients[0].act), centres[0].centre_in.shape
    clusters = shape[1] if len(shape) == 4 else 0
    if clusters == 0:
        raise ValueError(
            f"rank1_assign: centre_in must be [G, K, R, J] with K >= 1, got {list(shape)}"
        )
    for layer, (gradient, (centre_in, centre_out)) in enumerate(
        zip(gradients, centres, strict=True)
    ):
        if len(gradient.act) != batch or len(gradient.dout) != batch:
            raise ValueError(
                f"rank1_assign: every layer must hold the same {batch} examples; layer {layer} has "
                f"act {list(gradient.act.shape)} and dout {list(gradient.dout.shape)}"
            )
        groups, outputs, inputs = gradient.shape
        rank = centre_in.shape[2] if centre_in.dim() == 4 else 1
        both = (groups, clusters, rank, inputs), (groups, clusters, rank, outputs)
        if (centre_in.shape, centre_out.shape) != both:
            raise ValueError(
                f"rank1_assign: layer {layer} has gradients of {groups} group(s), {outputs} outputs "
                f"and {inputs} inputs (the bias among them), so its centres must be centre_in "
                f"[{groups}, {clusters}, R, {inputs}] and centre_out [{groups}, {clusters}, R, "
                f"{outputs}]; got {list(centre_in.shape)} and {list(centre_out.shape)}"
            )


def _add_products(
    gradient: LayerGradient,
    centre: Rank1Centre,
    cross: Tensor,
    squares: Tensor | None,
) -> None:
    """Adds ⟨C_k, G_i⟩ of one layer to cross [B, K], and ‖G_i‖² to squares [B, 1] if given."""
    act, dout = wide(gradient.act), wide(gradient.dout)
    gradient = gradient._replace(act=act, dout=dout)
    centre = Rank1Centre(*(factor.to(act.dtype) for factor in centre))
    if gradient.conv is None:
        _linear(gradient, centre, cross, squares)
        return
    if _by_gradients(gradient, centre):
        _products_by_gradients(gradient, centre, cross, squares)
        return
    _cross_by_positions(gradient, centre, cross)
    if squares is not None:
        _square_by_positions(gradient, squares)


def _linear(
    gradient: LayerGradient,
    centre: Rank1Centre,
    cross: Tensor,
    squares: Tensor | None,
) -> None:
    act, dout, _, bias = gradient
    if squares is not None:
        squares += ((_row_products(act, act) + bias) * _row_products(dout, dout))[:, None]
    (centre_in, centre_out), shape = centre, (len(act), 1, *centre.centre_in.shape[1:3])
    weight, constant = _split_bias(centre_in, bias)
    inner = inner_products(act, weight.flatten(0, 2), constant)  # A·c + bias, [B, K R]
    outer = inner_products(dout, centre_out.flatten(0, 2))  # D·d
    rank1_dot(cross, inner.view(shape), outer.view(shape))


# --- convolutions


def _by_gradients(gradient: LayerGradient, centre: Rank1Centre) -> bool:
    """Whether Eq. A.2 takes fewer operations than Eq. A.3 and the ghost norm do.

    Also where ‖G‖² is known: ⟨C, G⟩ then has the same bits as where it is not, and forming gradients
    is the faster way to do as many operations.
    """
    assert gradient.conv is not None
    _, outputs, inputs = gradient.shape
    positions, pixels = (math.prod(t.shape[2:]) for t in (gradient.dout, gradient.act))
    clusters, rank = centre.centre_in.shape[1:3]
    window = gradient.conv.kernel[0] * gradient.conv.kernel[1]
    formed = inputs * outputs * (_WEIGHT_GRADIENT * positions + clusters)
    ghost = pixels**2 * inputs // window + positions**2 * (window + outputs)
    return formed < clusters * rank * positions * (inputs + outputs) + ghost


def _products_by_gradients(
    gradient: LayerGradient, centre: Rank1Centre, cross: Tensor, squares: Tensor | None
) -> None:
    size = math.prod(gradient.shape)
    whole = list(_whole_centres(centre, size))
    for part in _chunks(gradient, size):
        formed = gradient.part(part).materialize().flatten(1)  # [b, G O J]
        if squares is not None:
            row = formed[:, None, None]
            rank1_dot(squares[part], row, row)
        for clusters, rows in whole:
            cross[part, clusters] += inner_products(formed, rows)


def _whole_centres(centre: Rank1Centre, size: int) -> Iterator[tuple[slice, Tensor]]:
    """C_k = Σ_r d_kr c_krᵀ as rows [k, G O J], so many of them at a time."""
    clusters = centre.centre_in.shape[1]
    step = max(1, _CHUNK[_device(centre.centre_in)] // size)
    for first in range(0, clusters, step):
        here = slice(first, min(first + step, clusters))
        c, d = (factor[:, here] for factor in centre)
        yield here, torch.einsum("gkro,gkrj->kgoj", d, c).flatten(1)


def _cross_by_positions(gradient: LayerGradient, centre: Rank1Centre, cross: Tensor) -> None:
    conv = gradient.conv
    assert conv is not None
    groups, clusters, rank, _ = centre.centre_in.shape
    weight, constant = _split_bias(centre.centre_in, gradient.bias)
    weight = weight.reshape(groups * clusters * rank, -1, *conv.kernel)
    pointwise = centre.centre_out.reshape(groups * clusters * rank, -1, 1, 1)
    positions = math.prod(gradient.dout.shape[2:])
    for part in _chunks(gradient, groups * clusters * rank * positions):
        inner = conv(gradient.act[part], weight, constant)  # A_it·c_kr
        outer = F.conv2d(gradient.dout[part], pointwise, groups=groups)  # D_it·d_kr
        shape = (len(inner), groups, clusters, rank * positions)
        rank1_dot(cross[part], inner.reshape(shape), outer.reshape(shape))


def _square_by_positions(gradient: LayerGradient, squares: Tensor) -> None:
    """The ghost norm. A_is·A_it is a sum over the window of products of pixels."""
    conv = gradient.conv
    assert conv is not None
    groups = conv.groups
    pixels, positions = (math.prod(t.shape[2:]) for t in (gradient.act, gradient.dout))
    for part in _chunks(gradient, groups * (pixels**2 + positions**2)):
        act, dout = gradient.act[part], gradient.dout[part]
        inner = _patch_gram(act, conv, dout.shape[2:])  # [b, G, T, T]
        if gradient.bias:
            inner = inner + 1
        outer = _gram(dout, groups)
        shape = (len(act), groups, 1, positions**2)
        rank1_dot(squares[part], inner.reshape(shape), outer.reshape(shape))


def _gram(x: Tensor, groups: int) -> Tensor:
    """[b, G C, H, W] → [b, G, H W, H W]."""
    channels = x.reshape(len(x), groups, -1, x.shape[2] * x.shape[3])
    return channels.transpose(2, 3) @ channels


def _patch_gram(act: Tensor, conv: Convolution, out: torch.Size) -> Tensor:
    """[b, G C, H, W] → [b, G, T, T], the inner products of the patches of every two positions."""
    height, width = act.shape[2:]
    gram = _gram(act, conv.groups).view(-1, height, width, height, width)
    for axis in (0, 1):  # the window is a rectangle: its rows first, then its columns
        gram = _window_sums(gram, 1 + axis, conv, axis, out[axis])
    return gram.reshape(len(act), conv.groups, math.prod(out), -1)


def _window_sums(gram: Tensor, dim: int, conv: Convolution, axis: int, out: int) -> Tensor:
    """Σ_o of the products of pixels p + o and q + o of dimensions dim and dim + 2, along one axis.

    p and q are where two windows begin; what is beyond the image is 0.
    """
    size, stride = gram.shape[dim], conv.stride[axis]
    shape = list(gram.shape)
    shape[dim] = shape[dim + 2] = out
    total = gram.new_zeros(shape)
    for tap in range(conv.kernel[axis]):
        offset = tap * conv.dilation[axis] - conv.padding[axis]
        first, last = max(0, -(offset // stride)), min(out, (size - 1 - offset) // stride + 1)
        if first < last:
            inside = slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
            _at(total, dim, slice(first, last)).add_(_at(gram, dim, inside))
    return total


def _at(gram: Tensor, dim: int, here: slice) -> Tensor:
    """Of both dimensions dim and dim + 2."""
    return gram[(slice(None),) * dim + (here, slice(None), here)]


# --- small things


def _split_bias(centre_in: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """The last input is the constant 1 that the bias is the weight of."""
    if not bias:
        return centre_in, None
    return centre_in[..., :-1], centre_in[..., -1].flatten()


def _chunks(gradient: LayerGradient, size: int) -> Iterator[slice]:
    """Slices of the batch whose intermediates, ``size`` elements per example, are bounded."""
    step = max(1, _CHUNK[_device(gradient.act)] // max(size, 1))
    for first in range(0, len(gradient.act), step):
        yield slice(first, first + step)


def _device(t: Tensor) -> str:
    return "cuda" if t.device.type == "cuda" else "cpu"
