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
from ..spec import not_known

SIMILARITIES = ("cosine", "dot", "order")
TIES = {"half": 0.5, "worst": 1.0}
"""What a wrong answer counts that is as good as the best right one."""
_DECIDED = 10
"""Up to here a place is a matter of recall, and what float32 cannot tell apart is told by float64."""

_BLOCK = {"cpu": (512, 1024), "cuda": (4096, 16384)}  # scores at once: those of a CPU stay in cache
_PIECE = 2**18  # numbers at once in what is no matrix product, for the same reason


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
    image, caption = image[rows], caption[columns]
    if image.dtype == torch.float64:
        image, caption = embedded(image, similarity), embedded(caption, similarity)
    image_group, caption_group = image_group[rows], caption_group[columns]
    right_i, right_c = _span(image_group, caption_group), _span(caption_group, image_group)
    best_i, best_c = _best(image, caption, right_i, similarity)

    f, g = embedded(image, similarity), embedded(caption, similarity)
    count_i, count_c = (
        _Count(best, _rounding(query, gallery, similarity, f.dtype), f.dtype)
        for best, query, gallery in ((best_i, image, caption), (best_c, caption, image))
    )
    for r, c, score in _blocks(f, g, right_i, similarity):
        count_i.add(r, score)
        count_c.add(c, score.T)
    if image.dtype != torch.float64:
        _decide(count_i, image, caption, right_i, similarity)
        _decide(count_c, caption, image, right_c, similarity, captions=True)
    weight = TIES[ties]
    return Ranks(count_i.rank(weight, rows), count_c.rank(weight, columns))


def _decide(
    count: _Count,
    query: Tensor,
    gallery: Tensor,
    right: Tensor,
    similarity: str,
    captions: bool = False,
) -> None:
    """Counts in float64 where it matters."""
    q = count.undecided()
    query, right = query[q], right[:, q]
    rounding = _rounding(query, gallery, similarity, torch.float64)
    again = _Count(count.best[q], rounding, torch.float64)
    for at, _, score in _blocks(query, gallery, right, similarity, captions=captions, exact=True):
        again.add(at, score)
    count.above[q], count.equal[q] = again.above, again.equal


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


def _exact(x: Tensor, similarity: str) -> Tensor:
    """:func:`embedded` in float64, where no square of a float32 is out of range."""
    return x.to(torch.float64, copy=True).div_(_norm(x, similarity)[:, None])


def _norm(x: Tensor, similarity: str) -> Tensor:
    """[N] float64: what rows are divided by."""
    if similarity != "cosine":
        return x.new_ones(len(x), dtype=torch.float64)
    at_once = max(1, _PIECE // max(1, x.shape[1]))
    norm = torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in x.split(at_once)])
    return norm.masked_fill_(norm == 0, 1)


def scores(image: Tensor, caption: Tensor, similarity: str) -> Tensor:
    """[N, M] of :func:`embedded` rows: f·g, or -‖max(0, g - f)‖ for "order" (Vendrov et al., 2016)."""
    if similarity != "order":
        with full_float32(image.device):
            return inner_products(image, caption)
    out = image.new_empty(len(image), len(caption))
    at_once = max(1, _PIECE // max(1, caption.numel()))
    for rows, f in zip(out.split(at_once), image.split(at_once), strict=True):
        over = (caption - f[:, None]).clamp_min_(0)
        torch.linalg.vector_norm(over, dim=2, out=rows)
    return out.neg_()


class _Count:
    """Of each query: wrong answers above its best right one, and as good as it."""

    def __init__(self, best: Tensor, rounding: Tensor | float, dtype: torch.dtype) -> None:
        self.best = best
        self.high, self.low = (b.to(dtype) for b in (best + rounding, best - rounding))
        self.above = torch.zeros_like(best)
        self.equal = torch.zeros_like(best)

    def add(self, at: slice, score: Tensor) -> None:
        """Scores of the queries ``at`` [q, m]; those of right answers are -inf."""
        # A comparison into floats and a product with ones: 3 times as fast as the sum of a mask, and
        # exact, as no block is 2^24 wide.
        mask, ones = torch.empty_like(score), score.new_ones(score.shape[1])
        above = torch.gt(score, self.high[at, None], out=mask) @ ones
        as_good = torch.ge(score, self.low[at, None], out=mask) @ ones
        self.above[at] += above
        self.equal[at] += as_good.sub_(above)

    def undecided(self) -> Tensor:
        """Queries whose place among the first depends on the rounding."""
        return ((self.equal > 0) & (self.above < _DECIDED)).nonzero().flatten()

    def rank(self, weight: float, order: Tensor) -> Tensor:
        """In the order that the queries were given in: row i of this one is query order[i]."""
        rank = 1 + self.above + weight * self.equal
        rank[self.best.isinf()] = torch.nan
        return torch.empty_like(rank).index_copy_(0, order, rank).cpu()


def _rounding(
    query: Tensor, gallery: Tensor, similarity: str, dtype: torch.dtype
) -> Tensor | float:
    """By how much scores of a query may differ that are equal: the bound of a sum of D products. Rows of
    a collapsed model do come near it, as the same number is added D times."""
    unit = torch.finfo(dtype).eps / 2 * query.shape[1]
    if similarity == "cosine":
        return unit
    own, other = (torch.linalg.vector_norm(x, dim=1).double() for x in (query, gallery))
    largest = other.amax() if len(other) else 0.0
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


def _best(image: Tensor, caption: Tensor, right: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """The largest score of a right answer, [N] and [M] float64; inf where there is none."""
    best = [x.new_full((len(x),), -torch.inf, dtype=torch.float64) for x in (image, caption)]
    norm_i, norm_c = (_norm(x, similarity) for x in (image, caption))
    at_once = max(1, _PIECE // max(1, image.shape[1]))
    for rows, columns in _tiles(image, caption):
        row, column = _pairs(right[:, rows], columns.start, columns.stop)
        for r, c in zip((row + rows.start).split(at_once), column.split(at_once), strict=True):
            f, g = image[r].double(), caption[c].double()
            if similarity == "order":
                score = -torch.linalg.vector_norm(g.sub_(f).clamp_min_(0), dim=1)
            else:
                score = f.mul_(g).sum(1) / (norm_i[r] * norm_c[c])
            for top, at in zip(best, (r, c), strict=True):
                top.scatter_reduce_(0, at, score, "amax")
    for top in best:
        top[top == -torch.inf] = torch.inf  # nothing is above it, nor as good
    return best[0], best[1]


def _tiles(query: Tensor, gallery: Tensor) -> Iterator[tuple[slice, slice]]:
    q_rows, g_rows = _BLOCK.get(query.device.type, _BLOCK["cpu"])
    for a in range(0, len(query), q_rows):
        for b in range(0, len(gallery), g_rows):
            yield slice(a, min(a + q_rows, len(query))), slice(b, min(b + g_rows, len(gallery)))


def _blocks(
    query: Tensor,
    gallery: Tensor,
    right: Tensor,
    similarity: str,
    *,
    captions: bool = False,
    exact: bool = False,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of scores, -inf where an answer is right. Queries are images, or ``captions``; rows are
    :func:`embedded`, or with ``exact`` as they are given, and become so in float64, block by block."""
    first, last = right.tolist()  # in order, as queries and gallery are
    for at, of in _tiles(query, gallery):
        x, y = query[at], gallery[of]
        if exact:
            x, y = _exact(x, similarity), _exact(y, similarity)
        score = scores(y, x, similarity).T if captions else scores(x, y, similarity)
        if first[at.start] < of.stop and last[at.stop - 1] > of.start:
            row, column = _pairs(right[:, at], of.start, of.stop)
            score[row, column - of.start] = -torch.inf
        yield at, of, score
