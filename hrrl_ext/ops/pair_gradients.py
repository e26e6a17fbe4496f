"""The gradient of a weighted sum of the scores of chosen pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._library import operator
from ._transforms import by_twin, transformed
from ._types import Similarity

_native = operator("pair_gradients")


def pair_gradients(
    image: Tensor,
    caption: Tensor,
    row: Tensor,
    column: Tensor,
    weight: Tensor,
    similarity: Similarity = "cosine",
) -> tuple[Tensor, Tensor]:
    """∂/∂f and ∂/∂g of Σ_n w_n s(f_row(n), g_column(n)).

    s(f, g) = f · g ("cosine"), whose gradient is g and f; or -‖r‖₂, r = max(0, g - f) ("order"): r/‖r‖
    and -r/‖r‖, and 0 at r = 0, where the maximum of the score lies.

    Args:
        image: [I, D] f, float16, bfloat16, float32 or float64.
        caption: [C, D] g, of the same dtype.
        row: [N] int64, a row of image. A pair is none where its row or column is below 0.
        column: [N] int64, a row of caption.
        weight: [N] w, float32, or float64 for float64. A pair of weight 0 adds nothing, whatever its rows
            hold.
        similarity: "cosine" or "order", as for :func:`hardest_negatives`.

    Returns:
        (grad_image [I, D], grad_caption [C, D]), of the dtype of weight.

    Gradients: where image, caption or weight requires one, :mod:`reference` computes this instead, which
    is differentiable to any order.

    Deterministic, on any number of threads: terms are added in the order of the pairs. Raises ValueError
    for shapes, dtypes or devices that do not match, and for a similarity that is not known; IndexError on
    the CPU for an index out of range, beside which CUDA gives NaN.

    Equivalent to, for "cosine" and indices from 0 on::

        grad_image = torch.zeros_like(image).index_add(0, row, weight[:, None] * caption[column])
        grad_caption = torch.zeros_like(caption).index_add(0, column, weight[:, None] * image[row])
    """
    if similarity not in ("cosine", "order"):
        raise ValueError(
            f'pair_gradients: similarity must be "cosine" or "order", got {similarity!r}'
        )
    differentiable = torch.is_grad_enabled() and any(
        t.requires_grad for t in (image, caption, weight)
    )
    if differentiable or transformed():
        given = (image, caption, row, column, weight)
        return by_twin(
            "pair_gradients",
            lambda: reference.pair_gradients(*given, similarity),
            *given,
            similarity == "order",
        )
    found: tuple[Tensor, Tensor] = _native(
        image, caption, row, column, weight, similarity == "order"
    )
    return found
