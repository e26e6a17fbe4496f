"""The hinges of all negatives at once, and their derivative in every score."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import operator
from ._types import HingeCoefficients

_native = operator("hinge_coefficients")


@torch.no_grad()
def hinge_coefficients(
    image: Tensor,
    caption: Tensor,
    image_below: Tensor,
    caption_below: Tensor,
    image_weight: Tensor,
    caption_weight: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
) -> HingeCoefficients:
    """loss = Σ_ic v_c [b_i + s_ic]₊ + u_i [d_c + s_ic]₊   over different groups, s_ic = f_i · g_c.

    With b and d the margin less the score of a pair this is the sum of hinges (Faghri et al. 2018,
    Eq. 5); ``coefficient @ caption`` and ``coefficient.T @ image`` are its gradients. No score is kept.

    Args:
        image: [I, D] f, float16, bfloat16, float32 or float64.
        caption: [C, D] g, of the same dtype.
        image_below: [I] b, float32, or float64 for float64; what follows alike.
        caption_below: [C] d.
        image_weight: [I] u, the weight of an image as a negative of captions; finite.
        caption_weight: [C] v, of a caption as a negative of images.
        image_group: [I] int64. An image and a caption of one group are no negatives of each other.
        caption_group: [C] int64.

    Returns:
        loss [], coefficient [I, C] = v_c [b_i + s_ic > 0] + u_i [d_c + s_ic > 0], of_image [I], the sum
        of its first terms along a row, and of_caption [C], of its second ones along a column; of the
        dtype of image_below, in which scores are computed. A NaN among the scores gives a loss of NaN.

    Gradients: none; it returns them. Deterministic, on any number of threads. Raises ValueError for
    shapes, dtypes or devices that do not match.

    Equivalent to::

        score = (image @ caption.T).masked_fill(image_group[:, None] == caption_group, -torch.inf)
        of_pair, of_other, u = score + image_below[:, None], score + caption_below, image_weight[:, None]
        loss = (of_pair.clamp(min=0) * caption_weight + of_other.clamp(min=0) * u).sum()
        row, column = (of_pair > 0) * caption_weight, (of_other > 0) * u
        coefficient, of_image, of_caption = row + column, row.sum(1), column.sum(0)
    """
    return HingeCoefficients(
        *_native(
            image,
            caption,
            image_below,
            caption_below,
            image_weight,
            caption_weight,
            image_group,
            caption_group,
        )
    )
