"""Losses of joint embeddings with hard negatives: VSE++ (Faghri et al. 2018).

f [I, D] are embeddings of images, g [C, D] of captions, taken as they are; s(f, g) = f · g, or
-‖max(0, g - f)‖₂ for "order". (i, c) runs over the pairs that belong together, and negatives of a pair
are items of another group:

    sum_hinge  Σ_(i,c) Σ_c' [α - s(i,c) + s(i,c')]₊ + Σ_i' [α - s(i,c) + s(i',c)]₊       (3.5)
    max_hinge  Σ_(i,c) max_c' [α - s(i,c) + s(i,c')]₊ + max_i' [α - s(i,c) + s(i',c)]₊   (3.6)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .._arrays import wide
from .._precision import full_float32
from ..ops import Similarity, hardest_negatives
from .hinges import MaxHinge, SumHinge, SumHingeOfEach, all_scores, pair_scores, tiles

Reduction = Literal["sum", "mean"]
ReductionOrNone = Literal["sum", "mean", "none"]
Matches = tuple[Tensor, Tensor]


class Keys(NamedTuple):
    """Negatives beside a batch's own: pairs as they were embedded before, without gradient."""

    image: Tensor
    """[Q, D]"""
    caption: Tensor
    """[Q, D]"""
    group: Tensor
    """[Q] int64: of row n of both"""


class _Batch(NamedTuple):
    image: Tensor
    caption: Tensor
    pairs: Matches | None
    """Rows of image and caption, or None: row n and row n."""
    image_group: Tensor
    caption_group: Tensor

    def paired(self) -> tuple[Tensor, Tensor]:
        if self.pairs is None:
            return self.image, self.caption
        return self.image[self.pairs[0]], self.caption[self.pairs[1]]


def pairs_of_groups(image_group: Tensor, caption_group: Tensor) -> Matches:
    """Every image with every caption of its group, of ids [I] and [C] int64.

    Returns:
        rows of images and rows of captions [P], in the order of the images, then of the captions.
    """
    for name, group in (("image_group", image_group), ("caption_group", caption_group)):
        if group.dim() != 1 or group.is_floating_point():
            raise ValueError(
                f"pairs_of_groups: {name} must be whole numbers [N], got {list(group.shape)} "
                f"{group.dtype}"
            )
    order = caption_group.argsort(stable=True)
    groups = caption_group[order]
    first = torch.searchsorted(groups, image_group)
    count = torch.searchsorted(groups, image_group, right=True) - first
    image = torch.arange(len(image_group), device=count.device).repeat_interleave(count)
    before = (count.cumsum(0) - count)[image]
    place = first[image] + torch.arange(len(image), device=count.device) - before
    return image, order[place]


def max_hinge(
    image: Tensor,
    caption: Tensor,
    *,
    pairs: Matches | None = None,
    image_group: Tensor | None = None,
    caption_group: Tensor | None = None,
    margin: float = 0.2,
    similarity: Similarity = "cosine",
    reduction: ReductionOrNone = "sum",
    semi_hard: bool = False,
    queue: Keys | None = None,
) -> Tensor:
    """The hinge of the hardest negative alone, in both directions (Eq. 3.6).

    Args:
        image: [I, D] embeddings, floating.
        caption: [C, D] embeddings, of the same dtype.
        pairs: rows of images and rows of captions [P] that belong together, as made by
            :func:`pairs_of_groups`; None: row n of both, and I = C.
        image_group, caption_group: [I] and [C] int64; items of one group are no negatives of each other.
            None: every row is a group of its own. Needed where ``pairs`` are given.
        margin: α.
        similarity: "cosine", the product (normalise before), or "order".
        reduction: "sum" over the pairs, as the public code has it, their "mean", or "none": of each pair,
            to be weighted.
        semi_hard: negatives that score below their pair alone, as FaceNet takes them: a warm-up where the
            hardest make everything collapse to one point.
        queue: negatives from elsewhere, such as the embeddings of earlier batches
            (:class:`hrrl_ext.retrieval.PairQueue`): a pair's hardest negative is then that of both. Of
            equal scores it is the batch's. It needs the groups, as a pair may be in the queue itself.

    Returns:
        the loss [], or of each pair [P], in float32, or float64 for float64. A pair without a negative
        counts 0. The gradient touches the pairs and their hardest negatives, and no matrix of scores is
        kept (:func:`hrrl_ext.ops.hardest_negatives`). NaN in a score gives NaN.

    Raises ValueError for shapes and dtypes that do not match and for groups that are missing, IndexError
    on the CPU for a pair of rows that there are not.
    """
    batch = _checked("max_hinge", image, caption, pairs, image_group, caption_group)
    if queue is not None:
        _check_queue(queue, batch.image, image_group)
    if semi_hard or queue is not None:
        positive = pair_scores(*batch.paired(), similarity)
        of = _negatives(batch, queue, similarity, positive.detach() if semi_hard else None)
        below = margin - positive
        loss = (below + of[0]).clamp(min=0) + (below + of[1]).clamp(min=0)
        if reduction != "none":
            loss = loss.sum()
    else:
        groups = batch.image_group, batch.caption_group
        rows = batch.pairs or (None, None)
        each = reduction == "none"
        loss = MaxHinge.apply(batch.image, batch.caption, *rows, *groups, margin, similarity, each)
    return reduced(loss, len(image if pairs is None else pairs[0]), reduction)


def sum_hinge(
    image: Tensor,
    caption: Tensor,
    *,
    pairs: Matches | None = None,
    image_group: Tensor | None = None,
    caption_group: Tensor | None = None,
    margin: float = 0.2,
    similarity: Similarity = "cosine",
    reduction: ReductionOrNone = "sum",
) -> Tensor:
    """The hinges of all negatives, in both directions (Eq. 3.5); arguments as of :func:`max_hinge`.

    Negatives are the images and captions that have a pair, each once however many it has. Scores exist a
    tile at a time: the gradient leaves with the forward pass, and is differentiable no further.
    """
    batch = _checked("sum_hinge", image, caption, pairs, image_group, caption_group)
    image, caption = batch.paired()
    groups = batch.image_group, batch.caption_group
    if batch.pairs is None:
        weights = [
            image.new_ones(len(image)) for _ in range(2)
        ]  # torch.compile: not one tensor twice
    else:
        row, column = batch.pairs
        groups = groups[0][row], groups[1][column]
        weights = [_shares(rows).to(image.dtype) for rows in batch.pairs]
    kind = SumHingeOfEach if reduction == "none" else SumHinge
    loss: Tensor = kind.apply(image, caption, *groups, *weights, margin, similarity)
    return reduced(loss, len(image), reduction)


def _negatives(
    batch: _Batch, queue: Keys | None, similarity: Similarity, positive: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[P] of every pair the scores of its image's and of its caption's hardest negative, in the batch and
    the queue; with ``positive`` [P] of those that score below it. -inf where there is none.

    They are searched for without gradient, and scored again: what is kept is O(P D)."""
    image, caption = batch.paired()
    row, column = batch.pairs or (slice(None), slice(None))
    of_pairs = batch.image_group[row], batch.caption_group[column]
    tables = [(batch.image, batch.caption, batch.image_group, batch.caption_group)]
    if queue is not None and len(queue.group):
        older = [rows.detach().to(image.dtype) for rows in (queue.image, queue.caption)]
        tables.append((older[0], older[1], queue.group, queue.group))
    pairs = image, caption
    found = [negatives_among(pairs, of_pairs, keys, similarity, positive) for keys in tables]
    if len(found) == 1:
        return found[0]
    of_image, of_caption = (
        torch.where(new >= old, new, old) for new, old in zip(*found, strict=True)
    )
    return of_image, of_caption


def negatives_among(
    pairs: tuple[Tensor, Tensor],
    of_pairs: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor, Tensor, Tensor],
    similarity: Similarity,
    positive: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same among ``keys`` alone: images, captions, and the groups of either."""
    (image, caption), (images, captions, *groups) = pairs, keys
    captions_at, images_at = _search(pairs, of_pairs, keys[:2], groups, similarity, positive)
    of_image = captions_at.scored(captions, lambda g: pair_scores(image, g, similarity))
    return of_image, images_at.scored(images, lambda f: pair_scores(f, caption, similarity))


class _Chosen(NamedTuple):
    """Of each query its negative."""

    row: Tensor
    """[P] of the keys; -1 where there is none"""
    score: Tensor
    """[P]; -inf where there is none, NaN where one could not be compared"""

    def scored(self, keys: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The scores once more, with their gradient."""
        again = score(keys[self.row.clamp(min=0)])
        return torch.where(self.row >= 0, again, self.score)


@torch.no_grad()
def _search(
    queries: tuple[Tensor, Tensor],
    of_queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    of_keys: Sequence[Tensor],
    similarity: Similarity,
    positive: Tensor | None,
) -> tuple[_Chosen, _Chosen]:
    """Of every image [P] among the captions of ``keys``, and of every caption among their images."""
    (image, caption), (images, captions) = queries, keys
    if positive is None:
        of = hardest_negatives(image, captions, of_queries[0], of_keys[1], similarity)
        other = hardest_negatives(images, caption, of_keys[0], of_queries[1], similarity)
        return _Chosen(*of[:2]), _Chosen(*other[2:])

    def of_images(f: Tensor, g: Tensor) -> Tensor:
        return all_scores(f, g, similarity)[0]

    def of_captions(g: Tensor, f: Tensor) -> Tensor:
        return all_scores(f, g, similarity)[0].T

    return (
        _highest_below(
            (image, captions), (of_queries[0], of_keys[1]), positive, of_images, similarity
        ),
        _highest_below(
            (caption, images), (of_queries[1], of_keys[0]), positive, of_captions, similarity
        ),
    )


def _highest_below(
    embeddings: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    positive: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    similarity: Similarity,
) -> _Chosen:
    """Of every query its key of another group that scores highest below its positive."""
    query, keys = embeddings
    index = query.new_zeros(len(query), dtype=torch.int64)
    best = torch.full_like(positive, -torch.inf)
    with full_float32(query.device):
        for rows in tiles(len(query), len(keys), query.shape[1], similarity):
            scores = score(query[rows], keys)
            masked = groups[0][rows, None] == groups[1]
            scores.masked_fill_(masked | (scores >= positive[rows, None]), -torch.inf)
            best[rows], index[rows] = scores.max(1)
    return _Chosen(index.where(best != -torch.inf, -1), best)


def _check_queue(queue: Keys, image: Tensor, group: Tensor | None) -> None:
    size = image.shape[1]
    shapes = [list(rows.shape) for rows in queue]
    if shapes != [[len(queue.group), size], [len(queue.group), size], [len(queue.group)]]:
        raise ValueError(
            f"max_hinge: queue must have image and caption [Q, {size}] and group [Q], got {shapes}"
        )
    if group is None:
        raise ValueError(
            "max_hinge: a queue needs image_group and caption_group: without them a pair that is in it "
            "would be a negative of itself"
        )


def _shares(rows: Tensor) -> Tensor:
    """1 / the number of times that each entry occurs."""
    _, which, count = rows.unique(return_inverse=True, return_counts=True)
    return count[which].double().reciprocal()


def reduced(loss: Tensor, pairs: int, reduction: ReductionOrNone) -> Tensor:
    if reduction not in get_args(ReductionOrNone):
        raise ValueError(f'reduction must be "sum", "mean" or "none", got {reduction!r}')
    return loss / max(pairs, 1) if reduction == "mean" else loss


def _checked(
    name: str,
    image: Tensor,
    caption: Tensor,
    pairs: Matches | None,
    image_group: Tensor | None,
    caption_group: Tensor | None,
) -> _Batch:
    if image.dim() != 2 or caption.dim() != 2 or image.shape[1] != caption.shape[1]:
        shapes = f"{list(image.shape)} and {list(caption.shape)}"
        raise ValueError(
            f"{name}: image and caption must have shapes [I, D] and [C, D], got {shapes}"
        )
    if pairs is None and len(image) != len(caption):
        raise ValueError(
            f"{name}: {len(image)} images and {len(caption)} captions are no pairs row by row; say which "
            "belong together: pairs=pairs_of_groups(image_group, caption_group)"
        )
    if (image_group is None) != (caption_group is None) or (pairs and image_group is None):
        raise ValueError(
            f"{name}: image_group and caption_group go together, and pairs need both: without them a "
            "pair's own items would be its negatives"
        )
    if pairs is not None:
        pairs = _checked_pairs(name, pairs, image, caption)
    if image_group is None or caption_group is None:
        image_group = caption_group = torch.arange(len(image), device=image.device)
    for side, group, rows in (("image", image_group, image), ("caption", caption_group, caption)):
        if group.shape != rows.shape[:1] or group.is_floating_point():
            raise ValueError(
                f"{name}: {side}_group must be whole numbers [{len(rows)}], got {list(group.shape)} "
                f"{group.dtype}"
            )
    if caption_group is image_group:
        # torch.compile takes no Function that is handed one tensor twice
        caption_group = caption_group.view_as(caption_group)
    # Widened once: a gradient is then summed in float32 before it is rounded.
    return _Batch(wide(image), wide(caption), pairs, image_group.long(), caption_group.long())


def _checked_pairs(name: str, pairs: Matches, image: Tensor, caption: Tensor) -> Matches:
    row, column = pairs
    if row.dim() != 1 or row.shape != column.shape:
        raise ValueError(
            f"{name}: pairs must be rows of images and rows of captions, both [P], got {list(row.shape)} "
            f"and {list(column.shape)}"
        )
    for of, place, rows in (("images", row, image), ("captions", column, caption)):
        if place.is_floating_point() or place.dtype == torch.bool:
            raise ValueError(f"{name}: pairs must be whole numbers, got {place.dtype} of {of}")
        # A device would have to be waited for, and a trace has no values: there torch's own check is.
        if place.is_cpu and len(place) and not torch.compiler.is_compiling():
            least, most = (int(end) for end in place.aminmax())
            if least < 0 or most >= len(rows):
                raise IndexError(
                    f"{name}: pairs must be rows of the {len(rows)} {of}, got {least} to {most}"
                )
    return row.long(), column.long()
