"""Both sums of hinges with their gradients, in one piece, and the scores that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._precision import full_float32
from .._products import inner_products
from ..ops import (
    Similarity,
    hardest_negatives,
    hinge_coefficients,
    pair_gradients,
    reference,
)
from ..ops._autograd import is_one
from ..ops._library import operator

Back = Callable[[Tensor], tuple[Tensor, Tensor]]

_max_hinge, _pair_scores = operator("_max_hinge"), operator("_pair_scores")

TILE = 2**20
"""Scores that are kept at a time: few enough for a cache, and rows enough for products of matrices."""


class MaxHinge(torch.autograd.Function):
    """All pairs and negatives at once: at the size of a batch, calls cost more than what they compute.

    With ``each`` the hinges of every pair, [P], else their sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        caption: Tensor,
        row: Tensor | None,
        column: Tensor | None,
        image_group: Tensor,
        caption_group: Tensor,
        margin: float,
        similarity: Similarity,
        each: bool,
    ) -> Tensor:
        pairs = image, caption, row, column, image_group, caption_group
        if image.is_cpu:
            hinge, *of = _max_hinge(*pairs, margin, similarity == "order")
        else:
            hinge, *of = max_hinge_by_torch(*pairs, margin, similarity)
        ctx.save_for_backward(image, caption, *of)
        ctx.similarity = similarity
        return hinge.sum(0) if each else hinge.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, caption, row, column, weight = ctx.saved_tensors
        if not is_one(grad):
            weight = (weight.view(3, -1) * grad).view(-1)
        grads = pair_gradients(image, caption, row, column, weight, ctx.similarity)
        return *grads, *(None,) * 7


def max_hinge_by_torch(
    image: Tensor,
    caption: Tensor,
    row: Tensor | None,
    column: Tensor | None,
    image_group: Tensor,
    caption_group: Tensor,
    margin: float,
    similarity: Similarity,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator _max_hinge where it has no kernel: the hinges [2, P] of both directions, and the pairs
    [3 P] whose scores, weighted, are their sum."""
    caption_index, of_image, image_index, of_caption = hardest_negatives(
        image, caption, image_group, caption_group, similarity
    )
    f, g = image, caption
    if row is None or column is None:
        row = column = torch.arange(len(image), device=image.device)
    else:
        f, caption_index, of_image = (t[row] for t in (f, caption_index, of_image))
        g, image_index, of_caption = (t[column] for t in (g, image_index, of_caption))
    positive = pair_scores(f, g, similarity)
    hinge = torch.stack((of_image, of_caption)).add_(margin - positive).clamp_(min=0)
    weight = (hinge > 0).to(hinge.dtype)
    return (
        hinge,
        torch.cat((row, row, image_index)),
        torch.cat((column, caption_index, column)),
        torch.cat((weight.sum(0).neg_(), weight.view(-1))),
    )


class SumHinge(torch.autograd.Function):
    """Σ_n Σ_m v_m [α - s(n,n) + s(n,m)]₊ + u_n [α - s(m,m) + s(n,m)]₊ over n, m of different groups,
    s(n,m) of image n and caption m."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        caption: Tensor,
        image_group: Tensor,
        caption_group: Tensor,
        image_weight: Tensor,
        caption_weight: Tensor,
        margin: float,
        similarity: Similarity,
    ) -> Tensor:
        below = margin - _constant_scores(image, caption, similarity)
        of = image_weight, caption_weight, image_group, caption_group
        if similarity == "cosine" and len(image) * len(caption) <= TILE:
            loss, *grads = _sum_hinge_of_tile(image, caption, below, *of)
            ctx.save_for_backward(*grads)
            return loss
        loss, of_pair = below.new_zeros(()), torch.zeros_like(below)
        to_image, to_caption = torch.empty_like(image), torch.empty_like(caption)
        with full_float32(image.device):
            for rows in tiles(len(image), len(caption), image.shape[1], similarity):
                weights = image_weight[rows], caption_weight
                of_tile = below[rows], below, *weights, image_group[rows], caption_group
                if similarity == "cosine":
                    hinges = hinge_coefficients(image[rows], caption, *of_tile)
                    to_image[rows] = inner_products(hinges.coefficient, caption.T)
                    of_captions = inner_products(hinges.coefficient.T, image[rows].T)
                else:
                    scores, back = all_scores(image[rows], caption, similarity)
                    hinges = reference.hinges_of(scores, *of_tile)
                    to_image[rows], of_captions = back(hinges.coefficient)
                to_caption = of_captions if rows.start == 0 else to_caption.add_(of_captions)
                loss += hinges.loss
                of_pair[rows] -= hinges.of_image
                of_pair -= hinges.of_caption
        if similarity == "cosine":
            to_image.addcmul_(caption, of_pair[:, None])
            to_caption.addcmul_(image, of_pair[:, None])
        else:
            n = torch.arange(len(image), device=image.device)
            of_pairs = pair_gradients(image, caption, n, n, of_pair, similarity)
            to_image += of_pairs[0]
            to_caption += of_pairs[1]
        ctx.save_for_backward(to_image, to_caption)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_image, to_caption = ctx.saved_tensors
        if not is_one(grad):
            to_image, to_caption = grad * to_image, grad * to_caption
        return to_image, to_caption, *(None,) * 6


def _sum_hinge_of_tile(
    image: Tensor, caption: Tensor, below: Tensor, *of: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of so few pairs that the own score of each has a place among the scores, to which its derivative
    is added: a group leaves it empty."""
    hinges = hinge_coefficients(image, caption, below, below, *of)
    hinges.coefficient.diagonal().sub_(hinges.of_image + hinges.of_caption)
    with full_float32(image.device):
        to_image = inner_products(hinges.coefficient, caption.T)
        return hinges.loss, to_image, inner_products(hinges.coefficient.T, image.T)


class SumHingeOfEach(torch.autograd.Function):
    """The terms of :class:`SumHinge`, [P], of every pair n:

        Σ_m v_m [α - s(n,n) + s(n,m)]₊ + Σ_m u_m [α - s(n,n) + s(m,n)]₊

    What each counts for is known as the gradient comes, for which scores are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        caption: Tensor,
        image_group: Tensor,
        caption_group: Tensor,
        image_weight: Tensor,
        caption_weight: Tensor,
        margin: float,
        similarity: Similarity,
    ) -> Tensor:
        below = margin - _constant_scores(image, caption, similarity)
        of = below, image_group, caption_group
        ctx.save_for_backward(image, caption, *of, image_weight, caption_weight)
        ctx.similarity = similarity
        loss = torch.zeros_like(below)
        with full_float32(image.device):
            for rows, (of_image, of_caption), _ in _hinges(image, caption, of, similarity):
                loss[rows] += of_image.clamp_(min=0) @ caption_weight
                loss += image_weight[rows] @ of_caption.clamp_(min=0)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, caption, *of, image_weight, caption_weight = ctx.saved_tensors
        to_image, to_caption = torch.empty_like(image), torch.zeros_like(caption)
        of_pair = torch.zeros_like(grad)
        with full_float32(image.device):
            for rows, (of_image, of_caption), back in _hinges(image, caption, of, ctx.similarity):
                row = (of_image > 0) * (grad[rows, None] * caption_weight)
                column = (of_caption > 0) * (image_weight[rows, None] * grad)
                to_image[rows], of_captions = back(row + column)
                to_caption += of_captions
                of_pair[rows] -= row.sum(1)
                of_pair -= column.sum(0)
        n = torch.arange(len(image), device=image.device)
        of_pairs = pair_gradients(image, caption, n, n, of_pair, ctx.similarity)
        return to_image + of_pairs[0], to_caption + of_pairs[1], *(None,) * 6


def pair_scores(image: Tensor, caption: Tensor, similarity: Similarity) -> Tensor:
    """[P] of row n and row n; with the subgradient 0 where the caption lies below its image."""
    if similarity == "cosine":
        return (image * caption).sum(1)
    return -torch.linalg.vector_norm((caption - image).relu_(), dim=1)


def _constant_scores(image: Tensor, caption: Tensor, similarity: Similarity) -> Tensor:
    """The same within a Function, of wide embeddings and without a graph; by a kernel on the CPU."""
    if not image.is_cpu:
        return pair_scores(image, caption, similarity)
    scores: Tensor = _pair_scores(image, caption, similarity == "order")
    return scores


def all_scores(image: Tensor, caption: Tensor, similarity: Similarity) -> tuple[Tensor, Back]:
    """All scores [I, C], and what gradients of them are in image and caption."""
    if similarity == "cosine":
        return image @ caption.T, lambda grad: (grad @ caption, grad.T @ image)
    beyond = (caption - image[:, None]).clamp_(min=0)
    norm = torch.linalg.vector_norm(beyond, dim=2)

    def back(grad: Tensor) -> tuple[Tensor, Tensor]:
        unit = beyond * (grad / torch.where(norm == 0, torch.inf, norm))[:, :, None]
        return unit.sum(1), -unit.sum(0)

    return -norm, back


def _hinges(
    image: Tensor, caption: Tensor, of: Sequence[Tensor], similarity: Similarity
) -> Iterator[tuple[slice, tuple[Tensor, Tensor], Back]]:
    """Rows, the hinges of them with all captions before they are cut at 0, in both directions, and the
    gradient of their scores."""
    below, image_group, caption_group = of
    for rows in tiles(len(image), len(caption), image.shape[1], similarity):
        scores, back = all_scores(image[rows], caption, similarity)
        scores = scores.masked_fill(image_group[rows, None] == caption_group, -torch.inf)
        yield rows, (scores + below[rows, None], scores + below), back


def tiles(rows: int, columns: int, size: int, similarity: Similarity) -> Iterator[slice]:
    of_row = max(columns, 1) * (max(size, 1) if similarity == "order" else 1)
    step = max(TILE // of_row, 1)
    return (slice(first, first + step) for first in range(0, rows, step))
