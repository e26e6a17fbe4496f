"""The k nearest of many embeddings: exact, or by faiss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .ranks import check_similarity, embedded, scores

_QUERIES, _ROWS = 512, 16384  # of a block of scores


class Found(NamedTuple):
    """[Q, k], the best first. With faiss a row is -1, and its score -inf, where no more were found."""

    score: Tensor
    row: Tensor


class Index:
    """Embeddings of captions or of images, to be searched.

    Exact without ``faiss``: all are compared, a block at a time, and among equal scores, as computed, the
    earlier rows come first. ``faiss`` names an index of that package, such as "HNSW32", for millions of
    rows; what it finds is approximate but for "Flat", and on the CPU. It is the extra ``faiss``.

    Args:
        embeddings: [N, D], an array or a tensor; float32 or float64, anything else becomes float32.
        similarity: "cosine", "dot" or "order", as for `evaluate`. "order" needs ``of``, has no faiss.
        of: "captions" or "images", what the rows are.
        faiss: of faiss.index_factory; None is exact.
    """

    def __init__(
        self,
        embeddings: Any,
        *,
        similarity: str = "cosine",
        of: str = "captions",
        faiss: str | None = None,
    ) -> None:
        check_similarity(similarity)
        if of not in ("captions", "images"):
            raise ValueError(f"Index: of must be captions or images, got {of!r}")
        self._similarity, self._of = similarity, of
        self._rows = embedded(_float(embeddings, "embeddings"), similarity)
        if not len(self._rows):
            raise ValueError("Index: embeddings are empty")
        self._faiss = None if faiss is None else _build(self._rows, similarity, faiss)

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, query: Any, k: int = 10) -> Found:
        """The k rows of the highest scores for every row of query [Q, D]; all where there are fewer."""
        query = _float(query, "query").to(self._rows)
        if query.shape[1] != self._rows.shape[1]:
            raise ValueError(
                f"Index: query has {query.shape[1]} columns, the index {self._rows.shape[1]}"
            )
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"Index: k must be a whole number from 1 on, got {k!r}")
        query, k = embedded(query, self._similarity), min(k, len(self))
        if self._faiss is not None:
            score, row = self._faiss.search(
                np.ascontiguousarray(query.cpu().numpy(), np.float32), k
            )
            found = Found(torch.from_numpy(score), torch.from_numpy(row))
            return Found(found.score.masked_fill_(found.row < 0, -torch.inf), found.row)
        parts = [self._exact(part, k) for part in query.split(_QUERIES)]
        if not parts:
            return Found(query.new_empty(0, k), query.new_empty(0, k, dtype=torch.int64))
        return Found(*(torch.cat(one) for one in zip(*parts, strict=True)))

    def _exact(self, query: Tensor, k: int) -> Found:
        best = query.new_empty(len(query), 0)
        at = query.new_empty(len(query), 0, dtype=torch.int64)
        for first in range(0, len(self), _ROWS):
            rows = self._rows[first : first + _ROWS]
            if self._of == "captions":
                score = scores(query, rows, self._similarity)
            else:
                score = scores(rows, query, self._similarity).T
            column = _largest(score, k)
            best = torch.cat([best, score.gather(1, column)], 1)
            at = torch.cat([at, column + first], 1)
            # Stable, and earlier rows stand in front.
            order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
            best, at = best.gather(1, order), at.gather(1, order)
        return Found(best, at)


def _largest(score: Tensor, k: int) -> Tensor:
    """Columns of the k largest of a row, ascending; of equals the first, which topk does not promise."""
    columns = score.shape[1]
    if k >= columns:
        return torch.arange(columns, device=score.device).expand(len(score), columns)
    value, column = score.topk(k + 1)
    tied = value[:, k - 1] == value[:, k]
    column = column[:, :k]
    if tied.any():
        column[tied] = score[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return column.sort(dim=1).values


def _float(x: Any, what: str) -> Tensor:
    x = torch.as_tensor(x).detach()
    if x.ndim != 2:
        raise ValueError(f"Index: {what} must be [N, D], got {list(x.shape)}")
    x = x if x.dtype == torch.float64 else x.float()
    if not x.isfinite().all():
        raise ValueError(f"Index: {what} must be finite")
    return x


def _build(rows: Tensor, similarity: str, name: str) -> Any:
    if similarity == "order":
        raise ValueError("Index: faiss has no order similarity; leave faiss out")
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'Index: faiss is not installed: pip install "hrrl_ext[faiss]", or leave faiss out, which '
            "searches exactly"
        ) from error
    try:
        index = faiss.index_factory(rows.shape[1], name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"Index: faiss makes no index {name!r}: {error}") from error
    x = np.ascontiguousarray(rows.cpu().numpy(), np.float32)
    index.train(x)
    index.add(x)
    return index
