"""What joint embeddings with hard negatives are compared with: the losses of CLIP and of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._arrays import wide
from .losses import ReductionOrNone, reduced


def info_nce(
    image: Tensor,
    caption: Tensor,
    *,
    group: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    reduction: ReductionOrNone = "mean",
) -> Tensor:
    """CLIP's loss: the mean of two cross-entropies, in which row n belongs to row n.

    Args:
        image, caption: [B, D] embeddings, floating.
        group: [B] int64; other rows of one group are left out. None: every row is a group of its own.
        temperature: what scores are divided by, a number or [].
        reduction: "sum" over the pairs, their "mean", or "none": of each pair.

    Returns:
        the loss [], or of each pair [B], in float32, or float64 for float64. Plain PyTorch, which keeps
        [B, B] scores.

    Raises ValueError where the shapes are others.
    """
    _check_rows("info_nce", image, caption, group)
    score = _others_of_group_left_out(wide(image) @ wide(caption).T / temperature, group)
    row = torch.arange(len(image), device=image.device)
    of_image = F.cross_entropy(score, row, reduction=reduction)
    return (of_image + F.cross_entropy(score.T, row, reduction=reduction)) / 2


def sigmoid_loss(
    image: Tensor,
    caption: Tensor,
    *,
    group: Tensor | None = None,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    reduction: ReductionOrNone = "mean",
) -> Tensor:
    """SigLIP's loss: every score is a yes or no of its own, -Σ_nm log σ(±(scale s(n,m) + bias)) / B.

    Args:
        image, caption, group: as for :func:`info_nce`.
        scale, bias: of the scores, each a number or [].
        reduction: as for :func:`info_nce`; a score of two pairs is half of each.

    Returns:
        the loss [], or of each pair [B], in float32, or float64 for float64. Plain PyTorch, which keeps
        [B, B] scores.

    Raises ValueError where the shapes are others.
    """
    _check_rows("sigmoid_loss", image, caption, group)
    score = wide(image) @ wide(caption).T * scale + bias
    sign = 1 - 2 * torch.eye(len(image), dtype=score.dtype, device=image.device)
    terms = F.softplus(_others_of_group_left_out(sign * score, group))
    loss = (terms.sum(0) + terms.sum(1)) / 2 if reduction == "none" else terms.sum()
    return reduced(loss, len(image), reduction)


def _check_rows(name: str, image: Tensor, caption: Tensor, group: Tensor | None) -> None:
    if image.dim() != 2 or image.shape != caption.shape:
        raise ValueError(
            f"{name}: image and caption must both be [B, D], row n of one with row n of the other, got "
            f"{list(image.shape)} and {list(caption.shape)}; max_hinge and sum_hinge take other pairs"
        )
    if group is not None and group.shape != image.shape[:1]:
        raise ValueError(f"{name}: group must be [{len(image)}], got {list(group.shape)}")


def _others_of_group_left_out(score: Tensor, group: Tensor | None) -> Tensor:
    if group is None:
        return score
    others = (group[:, None] == group).fill_diagonal_(False)
    return score.masked_fill(others, -torch.inf)
