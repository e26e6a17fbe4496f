"""Where the right answer stands among all others, for every query in both directions, by counting.

A score is computed once and counted for its image and for its caption; a block of scores is all that is
in memory. Nothing is sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .._arrays import unit_rows
from .._precision import full_float32
from .._products import inner_products
from ..ops._library import operator
from ..spec import not_known

SIMILARITIES = ("cosine", "dot", "order")
TIES = {"half": 0.5, "worst": 1.0}
"""What a wrong answer counts that is as good as the best right one."""
_DECIDED = 10
"""Up to here a place is a matter of recall, and what float32 cannot tell apart is told by float64."""

_BLOCK = {"cpu": (512, 8192), "cuda": (4096, 16384)}
"""Scores at once: so many that their product is as fast as one of all, and on the CPU so few that they
are in the last cache still when they are counted."""
_EXACT_COLUMNS = 1024
"""Of a block that float64 looks at, where a score takes several times the memory."""
_SPARSE = 16
"""Up to one score in so many is computed for itself in float64, rather than all by a product."""
_PIECE = 2**18  # numbers at once in what is no matrix product, which stay in cache

_count_scores = operator("_count_scores")


class Ranks(NamedTuple):
    """Of every image among the captions, and of every caption among the images; float64 on the CPU,
    NaN for a query that has no right answer."""

    image: Tensor
    caption: Tensor


def ranks(
    image: Tensor,
    caption: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
    *,
    similarity: str = "cosine",
    ties: str = "half",
) -> Ranks:
    """rank(q) = 1 + #{wrong: s > s*} + #{wrong: s = s*} / 2,    s* = max over the right answers of q.

    An image and a caption of the same group are right for each other. Other right answers never stand in
    the way. With ties="worst" those that are equal count whole.

    Two scores are equal where they differ by no more than the rounding of a sum of D products in float64,
    D 2^-53 ‖q‖ max ‖g‖. float32 counts with its own rounding, D 2^-24; a query whose rank that leaves
    open, with fewer than 10 above, is counted again in float64, so that recall is that of float64. Of
    larger ranks such answers count as equal, which moves them by their number, or half of it.

    Args:
        image, caption: [N, D], [M, D] float32 or float64, of one device.
        image_group, caption_group: [N], [M] int64 on that device.
    """
    # In the order of the groups the right answers of a query are neighbours.
    rows, columns = image_group.argsort(stable=True), caption_group.argsort(stable=True)
    image_group, caption_group = image_group[rows], caption_group[columns]
    right_i, right_c = _span(image_group, caption_group), _span(caption_group, image_group)
    f, g = (_Side.of(x, order, similarity) for x, order in ((image, rows), (caption, columns)))
    best_i, best_c = _best(f, g, right_i, similarity)

    count_i, count_c = (
        _Count(best, _rounding(query, gallery, similarity, image.dtype), image.dtype)
        for best, query, gallery in ((best_i, f, g), (best_c, g, f))
    )
    for r, c, score in _blocks(f, g, right_i, similarity):
        _add(score, count_i, r, count_c, c)
        del score  # before the next are made
    if image.dtype != torch.float64:
        _decide(count_i, f, g, right_i, similarity)
        _decide(count_c, g, f, right_c, similarity, captions=True)
    weight = TIES[ties]
    return Ranks(count_i.rank(weight, rows), count_c.rank(weight, columns))


def _decide(
    count: _Count,
    query: _Side,
    gallery: _Side,
    right: Tensor,
    similarity: str,
    captions: bool = False,
) -> None:
    """Counts again where it matters, by float64's scores of what float32 cannot tell from the best."""
    for q in count.undecided().split(_block(query)[0]):
        own, right_q = query.part(q), right[:, q]
        rounding = _rounding(own, gallery, similarity, torch.float64)
        again = _Count(count.best[q], rounding, torch.float64)
        above, least = count.bounds[:, q, None]
        of = similarity, captions
        for at, columns, score in _blocks(own, gallery, right_q, *of, width=_EXACT_COLUMNS):
            near = ~((score > above[at]) | (score < least[at]))
            exact = _exact(own, gallery, at, columns, near, *of)
            again.add(at, torch.where(near, exact, score.double()))
        count.counts[:, q] = again.counts


def _exact(
    query: _Side,
    gallery: _Side,
    at: slice,
    of: slice,
    near: Tensor,
    similarity: str,
    captions: bool,
) -> Tensor:
    """float64's scores of a block, where they are asked for."""
    if near.sum() * _SPARSE < near.numel():
        row, column = near.nonzero(as_tuple=True)
        sides = (query, row + at.start), (gallery, column + of.start)
        found = _of_pairs(*(sides[::-1] if captions else sides), similarity)
        return found.new_zeros(near.shape).index_put_((row, column), found)
    x, y = query.exact(at), gallery.exact(of)
    return scores(y, x, similarity).T if captions else scores(x, y, similarity)


def check_similarity(similarity: str) -> None:
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity {not_known(similarity, SIMILARITIES)}")


def embedded(x: Tensor, similarity: str) -> Tensor:
    """Rows as they are compared: of norm 1 for the cosine."""
    if similarity != "cosine":
        return x
    out = torch.empty_like(x)
    at_once = max(1, _PIECE // max(1, x.shape[1]))
    for rows, part in zip(out.split(at_once), x.split(at_once), strict=True):
        rows.copy_(unit_rows(part))
    return out


class _Side(NamedTuple):
    """Images, or captions, in the order of their groups."""

    rows: Tensor
    order: Tensor
    """[n] int64: which of the rows, that are as they were given, they are."""
    length: Tensor
    """[n] float64, their norms."""
    divisor: Tensor
    """[n] float64: what they are divided by to be compared."""
    compared: Tensor
    """[n, D], the one copy that there is of them."""

    @staticmethod
    def of(rows: Tensor, order: Tensor, similarity: str) -> _Side:
        compared = torch.empty_like(rows, memory_format=torch.contiguous_format)
        length = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        at_once = max(1, _PIECE // max(1, rows.shape[1]))
        for first in range(0, len(rows), at_once):
            here = slice(first, first + at_once)
            part = rows[order[here]]
            compared[here] = embedded(part, similarity)
            exact = compared[here] if rows.dtype == torch.float64 else part
            torch.linalg.vector_norm(exact.double(), dim=1, out=length[here])
        if rows.dtype == torch.float64:
            rows, order = compared, torch.arange(len(order), device=order.device)
        divisor = length.where(length > 0, 1) if similarity == "cosine" else torch.ones_like(length)
        return _Side(rows, order, length, divisor, compared)

    def part(self, at: Tensor) -> _Side:
        """Some of them."""
        rows, *of_each = self
        return _Side(rows, *(t[at] for t in of_each))

    def exact(self, at: slice) -> Tensor:
        """In float64, where no square of a float32 is out of range."""
        return self.rows[self.order[at]].double().div_(self.divisor[at, None])


def scores(image: Tensor, caption: Tensor, similarity: str) -> Tensor:
    """[N, M] of :func:`embedded` rows: f·g, or -‖max(0, g - f)‖ for "order" (Vendrov et al., 2016)."""
    if similarity != "order":
        with full_float32(image.device):
            return inner_products(image, caption)
    out = image.new_empty(len(image), len(caption))
    width = max(1, _PIECE // max(1, image.shape[1]))
    height = max(1, width // max(1, len(caption)))
    for columns, g in zip(out.split(width, dim=1), caption.split(width), strict=True):
        for part, f in zip(columns.split(height), image.split(height), strict=True):
            over = (g - f[:, None]).clamp_min_(0)
            part.copy_(torch.linalg.vector_norm(over, dim=2))
    return out.neg_()


class _Count:
    """Of each query: wrong answers above its best right one, and those at least as good as it."""

    def __init__(self, best: Tensor, rounding: Tensor | float, dtype: torch.dtype) -> None:
        self.best = best
        self.bounds = torch.stack([best + rounding, best - rounding]).to(dtype)
        self.counts = torch.zeros_like(self.bounds, dtype=torch.int64)

    def add(self, at: slice, score: Tensor) -> None:
        """Scores of the queries ``at`` [q, m]; those of right answers are -inf."""
        # A comparison into floats and a product with ones: 3 times as fast as the sum of a mask, and
        # exact, as no block is 2^24 wide.
        mask, ones = torch.empty_like(score), score.new_ones(score.shape[1])
        above, least = self.bounds[:, at, None]
        self.counts[0, at] += (torch.gt(score, above, out=mask) @ ones).long()
        self.counts[1, at] += (torch.ge(score, least, out=mask) @ ones).long()

    def undecided(self) -> Tensor:
        """Queries whose place among the first depends on the rounding."""
        above, at_least = self.counts
        return ((at_least > above) & (above < _DECIDED)).nonzero().flatten()

    def rank(self, weight: float, order: Tensor) -> Tensor:
        """In the order that the queries were given in: row i of this one is query order[i]."""
        above, at_least = self.counts
        rank = 1 + above + weight * (at_least - above).double()
        rank[self.best.isinf()] = torch.nan
        return torch.empty_like(rank).index_copy_(0, order, rank).cpu()


def _add(score: Tensor, images: _Count, rows: slice, captions: _Count, columns: slice) -> None:
    """What a block of scores counts for both sides; on the CPU in one pass over it."""
    if score.device.type != "cpu":
        images.add(rows, score)
        captions.add(columns, score.T)
        return
    _count_scores(
        score,
        images.bounds[:, rows],
        captions.bounds[:, columns],
        images.counts[:, rows],
        captions.counts[:, columns],
    )


def _rounding(query: _Side, gallery: _Side, similarity: str, dtype: torch.dtype) -> Tensor | float:
    """By how much scores of a query may differ that are equal: the bound of a sum of D products. Rows of
    a collapsed model do come near it, as the same number is added D times."""
    unit = torch.finfo(dtype).eps / 2 * query.rows.shape[1]
    if similarity == "cosine":
        return unit
    own, largest = query.length, gallery.length.amax() if len(gallery.length) else 0.0
    return unit * (own + largest if similarity == "order" else own * largest)


def _span(query_group: Tensor, gallery_group: Tensor) -> Tensor:
    """[2, Q]: where the right answers of each query begin and end in a gallery sorted by group."""
    return torch.stack(
        [torch.searchsorted(gallery_group, query_group, right=r) for r in (False, True)]
    )


def _pairs(right: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Rows of ``right`` [2, q] and the columns in first..last-1 that are right for them."""
    start, end = right.clamp(first, last)
    many = end - start
    row = torch.arange(len(many), device=many.device).repeat_interleave(many)
    column = torch.arange(len(row), device=many.device) - (many.cumsum(0) - many - start)[row]
    return row, column


def _best(image: _Side, caption: _Side, right: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """The largest score of a right answer, [N] and [M] float64; inf where there is none."""
    best = [x.length.new_full((len(x.order),), -torch.inf) for x in (image, caption)]
    for rows, columns in _tiles(image, caption):
        row, column = _pairs(right[:, rows], columns.start, columns.stop)
        pairs = row + rows.start, column
        score = _of_pairs((image, pairs[0]), (caption, pairs[1]), similarity)
        for top, at in zip(best, pairs, strict=True):
            top.scatter_reduce_(0, at, score, "amax")
    for top in best:
        top[top == -torch.inf] = torch.inf  # nothing is above it, nor as good
    return best[0], best[1]


def _of_pairs(
    images: tuple[_Side, Tensor], captions: tuple[_Side, Tensor], similarity: str
) -> Tensor:
    """[P] float64: the scores of images and captions, of each side those of these numbers [P]."""
    (image, row), (caption, column) = images, captions
    score = image.length.new_empty(len(row))
    at_once = max(1, _PIECE // max(1, image.rows.shape[1]))
    for out, r, c in zip(*(t.split(at_once) for t in (score, row, column)), strict=True):
        f, g = (x.rows[x.order[at]].double() for x, at in ((image, r), (caption, c)))
        if similarity == "order":
            out.copy_(torch.linalg.vector_norm(g.sub_(f).clamp_min_(0), dim=1)).neg_()
        else:
            out.copy_(f.mul_(g).sum(1)).div_(image.divisor[r] * caption.divisor[c])
    return score


def _block(query: _Side) -> tuple[int, int]:
    return _BLOCK.get(query.rows.device.type, _BLOCK["cpu"])


def _tiles(query: _Side, gallery: _Side, width: int | None = None) -> Iterator[tuple[slice, slice]]:
    n, m = len(query.order), len(gallery.order)
    height, widest = _block(query)
    width = widest if width is None else min(width, widest)
    for a in range(0, n, height):
        for b in range(0, m, width):
            yield slice(a, min(a + height, n)), slice(b, min(b + width, m))


def _blocks(
    query: _Side,
    gallery: _Side,
    right: Tensor,
    similarity: str,
    captions: bool = False,
    width: int | None = None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of scores, -inf where an answer is right. Queries are images, or ``captions``."""
    first, last = right.tolist()  # in order, as queries and gallery are
    for at, of in _tiles(query, gallery, width):
        x, y = query.compared[at], gallery.compared[of]
        score = scores(y, x, similarity).T if captions else scores(x, y, similarity)
        if first[at.start] < of.stop and last[at.stop - 1] > of.start:
            row, column = _pairs(right[:, at], of.start, of.stop)
            score[row, column - of.start] = -torch.inf
        yield at, of, score
        del score
