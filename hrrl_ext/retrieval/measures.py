"""How well captions are found by images, and images by captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._arrays import to_numpy
from .._tables import aligned
from ..data.columns import numbered
from ..spec import listed, not_known
from .ranks import TIES, check_similarity, ranks

Ids: TypeAlias = "Tensor | np.ndarray | Sequence[int] | Sequence[str]"

CUTS = (1, 5, 10)
PROTOCOLS = {"coco-1k": (5, 5000)}
"""Folds, and the images that there must be: MS-COCO's 5,000 test images as five folds of 1,000."""

_COVER = 0.95


@dataclass(frozen=True)
class Retrieval:
    """What :func:`evaluate` found. i2t: an image seeks its captions; t2i: a caption seeks its images.

    measures   i2t_r1, i2t_r5, i2t_r10 (percent of queries), i2t_median (rank), the same of t2i, and
               rsum, the sum of the six recalls
    intervals  of each measure, 95 %, where bootstrap was asked for
    concepts   measures by concept, where concepts were given
    folds      measures of each fold, where there are folds; `measures` are their means
    protocol   what was measured, in words
    i2t_rank, t2i_rank   of every query, float64; NaN where it has no right answer, or is in no fold
    """

    measures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    concepts: dict[str, dict[str, float]]
    folds: list[dict[str, float]]
    protocol: str
    i2t_rank: np.ndarray
    t2i_rank: np.ndarray

    @property
    def worst_concept(self) -> str | None:
        """That of the smallest rsum; the first of equals. None without concepts."""
        return min(self.concepts, key=lambda name: self.concepts[name]["rsum"], default=None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all but the ranks."""
        return {
            "protocol": self.protocol,
            "measures": self.measures,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "folds": self.folds,
            "concepts": self.concepts,
            "worst_concept": self.worst_concept,
        }

    def __str__(self) -> str:
        rows = [["", *self.measures], _row("all", self.measures)]
        for i, end in enumerate(("lower", "upper") if self.intervals else ()):
            rows.append(_row(end, {name: ends[i] for name, ends in self.intervals.items()}))
        rows += [_row(f"fold {k}", fold) for k, fold in enumerate(self.folds, 1)]
        rows += [_row(name, found) for name, found in self.concepts.items()]
        return f"{self.protocol}\n{aligned(rows)}"


def evaluate(
    image: Any,
    caption: Any,
    image_group: Ids | None = None,
    caption_group: Ids | None = None,
    concepts: Ids | None = None,
    similarity: str | None = None,
    *,
    folds: int | str | None = None,
    ties: str = "half",
    bootstrap: int = 0,
    seed: int = 0,
) -> Retrieval:
    """Recall at 1, 5 and 10, median rank and rsum of any embeddings, in both directions.

        rank(q) = 1 + #{wrong: s > s*} + #{wrong: s = s*} / 2,   s* the best score of a right answer
        R@K     = 100 · share of queries with rank ≤ K

    so that among n wrong answers that all have the same score as the right one the rank is 1 + n/2, in
    whatever order they stand. See :func:`ranks` for when two scores are equal.

    Args:
        image, caption: [N, D] and [M, D], arrays or tensors; on the device of ``image``. float64 is
            computed in, all else in float32. ``evaluate(*load_embeddings(path))`` takes them of a file.
        image_group, caption_group: ids [N], [M], numbers or names: an image and a caption of the same
            group belong together. Without image_group an image is a group of its own, and caption_group
            says whose a caption is, 0..N-1; without both row i belongs to row i. Any number of captions
            may belong to an image. A query that nothing belongs to is none, but stands in the way of
            others.
        concepts: [N], of each image; the concept of a caption is that of its images. Recall by concept is
            of its queries, among all answers.
        similarity: "cosine", as if not given; "dot", of rows as they are; or "order",
            -‖max(0, caption - image)‖.
        folds: split the groups, in the order of their first images, into so many folds, each with answers
            of its own, and take means over folds; "coco-1k" is five folds of 5,000 images.
        ties: "worst" counts an equal wrong answer whole.
        bootstrap: samples of groups with replacement, a group with all its queries, for 95 % intervals
            (of the queries: the answers stay).
        seed: of these samples.

    Memory beyond the embeddings: a copy of them, and some 40 MB of scores on the CPU. No gradient, no
    autocast. The same numbers give the same result on one device. ValueError for bad shapes, ids, numbers
    that are not finite; no query at all.
    """
    similarity = "cosine" if similarity is None else similarity
    check_similarity(similarity)
    if ties not in TIES:
        raise ValueError(f"evaluate: ties {not_known(ties, TIES)}")
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 0:
        raise ValueError(f"evaluate: bootstrap must be a whole number from 0 on, got {bootstrap!r}")
    f = _embeddings(image, "image")
    g = _embeddings(caption, "caption", f)
    groups = _groups(len(f), len(g), image_group, caption_group)
    parts, protocol = _folds(groups, folds)
    rank = _Both(np.full(len(f), np.nan), np.full(len(g), np.nan))
    for part in parts:
        i, t = (torch.from_numpy(np.isin(ids, part).nonzero()[0]).to(f.device) for ids in groups)
        of = [
            torch.from_numpy(ids).to(f.device)[at] for ids, at in zip(groups, (i, t), strict=True)
        ]
        own = (f, g) if len(parts) == 1 else (f[i], g[t])
        with torch.autocast(f.device.type, enabled=False):
            found = ranks(*own, *of, similarity=similarity, ties=ties)
        rank.i2t[i.cpu().numpy()], rank.t2i[t.cpu().numpy()] = (r.numpy() for r in found)
    queries = [_in_part(rank, groups, part) for part in parts]
    if any(np.isnan(r).all() for one in queries for r in one.rank):
        raise ValueError(
            "evaluate: no image and caption have the same group; give owner ids as caption_group, such "
            "as numpy.arange(M) // 5 for five captions of each image, one after another"
        )
    every = [summary(*one.rank) for one in queries]
    return Retrieval(
        measures=_mean(every),
        intervals=_intervals(queries, bootstrap, seed),
        concepts=_by_concept(rank, groups, concepts),
        folds=every if len(every) > 1 else [],
        protocol=f"{protocol}; {similarity}, ties {ties}",
        i2t_rank=rank.i2t,
        t2i_rank=rank.t2i,
    )


# --- what is given


class _Both(NamedTuple):
    """Of images as queries, and of captions."""

    i2t: np.ndarray
    t2i: np.ndarray


def _embeddings(x: Any, what: str, like: Tensor | None = None) -> Tensor:
    x = torch.as_tensor(x).detach()
    if x.ndim != 2 or not (x.is_floating_point() and x.numel()):
        raise ValueError(
            f"evaluate: {what} must be floats [N, D], and not empty, got {list(x.shape)} {x.dtype}"
        )
    if like is not None and x.shape[1] != like.shape[1]:
        raise ValueError(
            f"evaluate: image has {like.shape[1]} columns and caption {x.shape[1]}; they must agree"
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if like is not None:
        x, dtype = x.to(like.device), like.dtype
    x = x.to(dtype)
    if not all(end.isfinite() for end in x.aminmax()):
        bad = int((~x.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"evaluate: row {bad} of {what} is not finite")
    return x


def _groups(n: int, m: int, image_group: Ids | None, caption_group: Ids | None) -> _Both:
    """Ids of the groups 0.. in the order of their first image, then of captions without one."""
    if image_group is not None and caption_group is None:
        raise ValueError("evaluate: image_group needs caption_group, the group of every caption")
    if caption_group is None and n != m:
        raise ValueError(
            f"evaluate: {n} images and {m} captions: say whose each caption is by caption_group, such as "
            "numpy.arange(M) // 5 for five captions of each image, one after another"
        )
    of_caption = _ids(np.arange(m) if caption_group is None else caption_group, "caption_group", m)
    if image_group is None and (of_caption.dtype.kind not in "iu" or (of_caption >= n).any()):
        raise ValueError(
            f"evaluate: without image_group, caption_group must be rows of image, 0..{n - 1}; got "
            f"{of_caption.max() if of_caption.dtype.kind in 'iu' else of_caption.dtype}"
        )
    of_image = _ids(np.arange(n) if image_group is None else image_group, "image_group", n)
    if (of_image.dtype.kind in "iu") != (of_caption.dtype.kind in "iu"):
        raise ValueError(
            "evaluate: image_group and caption_group must both be numbers, or both names"
        )
    _, first, ids = np.unique(
        np.concatenate([of_image, of_caption]), return_index=True, return_inverse=True
    )
    place = np.argsort(np.argsort(first))[ids].astype(np.int64)
    return _Both(place[:n], place[n:])


def _ids(ids: Ids, what: str, size: int) -> np.ndarray:
    array = np.asarray(to_numpy(ids))
    if array.shape != (size,):
        raise ValueError(f"evaluate: {what} must have shape [{size}], got {list(array.shape)}")
    if array.dtype.kind not in "iuUO":
        raise ValueError(f"evaluate: {what} must be whole numbers or names, got {array.dtype}")
    if array.dtype.kind == "O":
        array = array.astype(np.str_)
    elif array.dtype.kind in "iu":
        if (array < 0).any():
            raise ValueError(f"evaluate: {what} must be 0 or more, got {array.min()}")
        array = array.astype(np.int64)
    return array


def _folds(groups: _Both, folds: int | str | None) -> tuple[list[np.ndarray], str]:
    """Groups of each fold, and the protocol in words."""
    n, m = map(len, groups)
    if folds is None or folds == 1:
        return [np.unique(np.concatenate(groups))], f"{n} images, {m} captions"
    if isinstance(folds, str):
        if folds not in PROTOCOLS:
            raise ValueError(f"evaluate: folds {not_known(folds, PROTOCOLS)}, or a number")
        count, images = PROTOCOLS[folds]
        if images != n:
            raise ValueError(f"evaluate: folds {folds!r} is of {images} images, got {n}")
    else:
        count = folds
    with_image = int(groups.i2t.max()) + 1
    if not isinstance(count, int) or not 1 <= count <= with_image:
        raise ValueError(
            f"evaluate: folds must be 1 to {with_image}, a number of folds, got {folds!r}"
        )
    if len(lost := np.flatnonzero(groups.t2i >= with_image)):
        raise ValueError(
            f"evaluate: caption {lost[0]} has no image, and so no fold; leave it out, or folds"
        )
    parts = np.array_split(np.arange(with_image), count)
    sizes = sorted({int(np.isin(groups.i2t, part).sum()) for part in parts})
    name = f"{folds}: " if isinstance(folds, str) else ""
    return (
        parts,
        f"{name}mean of {count} folds of {' to '.join(map(str, sizes[:: len(sizes) - 1 or 1]))} images",
    )


# --- what is measured


class _Queries(NamedTuple):
    """Those of a fold: their ranks, and the number of their group within the fold."""

    rank: _Both
    group: _Both


def _in_part(rank: _Both, groups: _Both, part: np.ndarray) -> _Queries:
    kept = [np.isin(ids, part) & ~np.isnan(r) for r, ids in zip(rank, groups, strict=True)]
    return _Queries(
        _Both(*(r[at] for r, at in zip(rank, kept, strict=True))),
        _Both(*(np.searchsorted(part, ids[at]) for ids, at in zip(groups, kept, strict=True))),
    )


def summary(
    i2t: np.ndarray,
    t2i: np.ndarray,
    i2t_weight: np.ndarray | None = None,
    t2i_weight: np.ndarray | None = None,
) -> dict[str, float]:
    """The measures of ranks, each of which is there ``weight`` times."""
    found: dict[str, float] = {}
    for name, rank, weight in (("i2t", i2t, i2t_weight), ("t2i", t2i, t2i_weight)):
        weight = np.ones(len(rank), np.int64) if weight is None else weight
        order = np.argsort(rank)
        until = np.cumsum(weight[order])
        total = int(until[-1]) if len(until) and until[-1] else 0
        for k in CUTS:
            hits = int(weight[rank <= k].sum())
            found[f"{name}_r{k}"] = 100 * hits / total if total else float("nan")
        # The middle one of all, or of an even number the mean of the two.
        middle = np.searchsorted(until, [(total - 1) // 2, total // 2], side="right")
        found[f"{name}_median"] = float(rank[order[middle]].mean()) if total else float("nan")
    found["rsum"] = sum(found[f"{name}_r{k}"] for name in ("i2t", "t2i") for k in CUTS)
    return found


def _mean(every: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in every])) for name in every[0]}


def _intervals(
    queries: Sequence[_Queries], samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    if samples == 0:
        return {}
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        every = []
        for rank, group in queries:
            present = np.unique(np.concatenate(group))
            times = np.zeros(present[-1] + 1, np.int64)
            np.add.at(times, random.choice(present, len(present)), 1)
            every.append(summary(*rank, *(times[ids] for ids in group)))
        drawn.append(_mean(every))
    tail = 50 * (1 - _COVER)
    return {
        name: tuple(np.nanpercentile([one[name] for one in drawn], [tail, 100 - tail]).tolist())
        for name in drawn[0]
    }


def _by_concept(rank: _Both, groups: _Both, concepts: Ids | None) -> dict[str, dict[str, float]]:
    if concepts is None:
        return {}
    ids = _ids(concepts, "concepts", len(rank.i2t))
    index, names = numbered(map(str, ids.tolist()))
    of_image = index.numpy()
    count = max(int(ids.max()) for ids in groups) + 1
    of_group = np.full(count, -1)
    of_group[groups.i2t] = of_image
    mixed = np.flatnonzero(of_group[groups.i2t] != of_image)
    if len(mixed):
        i = mixed[0]
        pair = [names[c] for c in (of_image[i], of_group[groups.i2t[i]])]
        raise ValueError(
            f"evaluate: image {i} is of the concept {pair[0]!r}, another image of its group of "
            f"{pair[1]!r}; the captions of a group need one concept"
        )
    of = _Both(of_image, of_group[groups.t2i])
    found = {}
    for c, name in enumerate(names):
        own = [r[(ids == c) & ~np.isnan(r)] for r, ids in zip(rank, of, strict=True)]
        if all(len(r) for r in own):
            found[name] = summary(*own)
    if not found:
        raise ValueError(f"evaluate: none of the concepts {listed(names)} has a query")
    return found


def _row(name: str, found: dict[str, float]) -> list[str]:
    return [name, *(f"{value:.1f}" for value in found.values())]
