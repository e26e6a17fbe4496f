"""The hardest negatives of matched pairs, images and captions: no matrix of scores is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _autograd, reference
from ._transforms import by_twin, transformed
from ._types import HardestNegatives, Similarity


def hardest_negatives(
    image: Tensor,
    caption: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
    similarity: Similarity = "cosine",
) -> HardestNegatives:
    """c'(i) = argmax_c s(i, c)  and  i'(c) = argmax_i s(i, c)   over the pairs of different groups.

    s(i, c) = f_i · g_c ("cosine") or -‖max(0, g_c - f_i)‖₂ ("order"). The embeddings are taken as they
    are: the product is the cosine where both have length 1. Normalising is left to the caller, since
    VSE0 does not normalise images. Images and captions need not be as many, nor come in pairs.

    Args:
        image: [I, D] f, float16, bfloat16, float32 or float64.
        caption: [C, D] g, of the same dtype.
        image_group: [I] int64. An image and a caption of one group are no negatives of each other.
        caption_group: [C] int64.
        similarity: "cosine" or "order".

    Returns:
        caption_index [I] and caption_score [I], the hardest caption of each image; image_index [C] and
        image_score [C], the hardest image of each caption. Of equal scores it is the lowest index;
        "order" compares the squares, before the root. -1 and -Inf where there is no negative, or none
        above -Inf. A NaN among the scores of its negatives gives -1 and NaN, so that none is passed
        over in silence. Scores are float32, computed in float32 at least, and float64 for float64; the
        square of a distance has to fit.

    Gradients: both scores have one, in ``image`` and ``caption``, to any order, that touches the chosen
    pairs alone, O((I + C) D). It is 0 where there is no index, and for "order" where the caption lies
    below the image.

    Deterministic, on any number of threads. Raises ValueError for shapes, dtypes or devices that do not
    match, and for a similarity that is not known.

    Equivalent to, for "cosine"::

        score = image @ caption.T
        score = score.masked_fill(image_group[:, None] == caption_group, -torch.inf)
        caption_score, caption_index = score.max(1)
        image_score, image_index = score.max(0)
    """
    if similarity not in ("cosine", "order"):
        raise ValueError(
            f'hardest_negatives: similarity must be "cosine" or "order", got {similarity!r}'
        )
    if transformed():
        given = (image, caption, image_group, caption_group)
        return by_twin(
            "hardest_negatives",
            lambda: reference.hardest_negatives(*given, similarity),
            *given,
            similarity == "order",
        )
    # torch.compile takes no Function that is handed one tensor twice.
    if caption is image:
        caption = caption.view_as(caption)
    if caption_group is image_group:
        caption_group = caption_group.view_as(caption_group)
    arguments = (image, caption, image_group, caption_group, similarity == "order")
    if torch.is_grad_enabled() and (image.requires_grad or caption.requires_grad):
        return HardestNegatives(*_autograd.HardestNegatives.apply(*arguments))
    return HardestNegatives(*_autograd.hardest_negatives(*arguments))
