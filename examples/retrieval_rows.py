"""The rows of examples/retrieval_evidence.py: their names, and what is paired by split and seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from hrrl_ext.transfer.differences import Difference, difference

BINS = np.linspace(0, 2, 81)
"""Of distances, 1 - cosine."""
MEASURES = {"rsum": "rsum", "i2t_r1": "R@1, captions", "t2i_r1": "R@1, images"}
WORST = "worst_concept"
WITH_Q, OF_Q = ", q", ", q at λ "
LAMBDAS = (0.1, 0.3, 1.0)
"""0.3 moves q by about 1/K on the nine concepts, where max_hinge has learned for some epochs."""
BY_QUEUE = " by queue"
CURVES = ("VSE++", "SH", "VSE0")
ENCODERS = ("frozen", "fine-tuned", "fresh")
Rows = Sequence[dict[str, Any]]
Values = dict[tuple[int, int], float]


def values(rows: Rows, variant: str, measure: str, when: str = "best") -> Values:
    """By split and seed."""
    return {tuple(row["at"]): row[when][measure] for row in rows if row["variant"] == variant}


def of_splits(values: Values) -> list[float]:
    """Mean over the seeds of each split: trials on the same test images are no independent ones."""
    found: dict[int, list[float]] = defaultdict(list)
    for (split, _), value in values.items():
        found[split].append(value)
    return [statistics.fmean(found[split]) for split in sorted(found)]


def paired(ours: Values, theirs: Values) -> Difference | None:
    shared = ours.keys() & theirs.keys()
    if not shared:
        return None
    return difference(of_splits({at: ours[at] - theirs[at] for at in shared}))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its interval."""
    one = difference(values)
    return one.mean, one.high - one.mean


def curves(rows: Rows, variant: str) -> dict[tuple[int, int], list[float]]:
    return {tuple(row["at"]): row["curve"] for row in rows if row["variant"] == variant}


def of_encoder(rows: Rows, encoder: str) -> Rows:
    """Trials of the losses with this encoder of images, named as those of features are."""
    end = f", {encoder}"
    with_it = [row for row in rows if row["variant"].endswith(end)]
    return [row | {"variant": row["variant"].removesuffix(end)} for row in with_it]


def lambda_chosen(rows: Rows) -> list[dict[str, Any]]:
    """With q, of each split and seed the row of the λ whose worst concept is best on validation pairs."""
    of: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        base, q, lam = row["variant"].partition(OF_Q)
        if q:
            of[base, tuple(row["at"])].append(row | {"variant": base + WITH_Q, "lam": lam})
    every = [each for each in of.values() if len(each) == len(LAMBDAS)]
    whole = [[row for row in each if "best" in row] for each in every]
    return [max(each, key=lambda row: row["worst_concept_rsum"]) for each in whole if each]


def of_sizes(rows: Rows) -> Rows:
    """Trials of the sizes of the set of negatives, and SH's, of the same splits and seeds."""
    by_size = [row for row in rows if " negatives" in row["variant"]]
    at = {tuple(row["at"]) for row in by_size}
    return by_size + [r for r in rows if r["variant"] in ("VSE++", "SH") and tuple(r["at"]) in at]


def in_common(rows: Rows) -> Rows:
    """Trials of the splits and seeds that all of these variants have."""
    at = {name: {tuple(r["at"]) for r in rows if r["variant"] == name} for name in negatives(rows)}
    shared = set.intersection(*at.values()) if at else set()
    return [row for row in rows if tuple(row["at"]) in shared]


def negatives(rows: Rows) -> list[str]:
    """Variants by the size of the set of negatives, those by queue last; that of VSE++ is the batch."""
    names = {row["variant"] for row in rows if row["variant"] != "SH"}
    return sorted(names, key=lambda name: (name.endswith(BY_QUEUE), set_size(name)))


def set_size(variant: str) -> int:
    return 128 if variant == "VSE++" else int(variant.split()[1])


def epochs_looked_at(rows: Rows) -> list[int]:
    return sorted({int(e) for row in rows for e in row["hardest"] if row["variant"] in CURVES})


def of_hardest(rows: Rows, variant: str, epoch: int, key: str) -> dict[Any, Any]:
    return {
        tuple(row["at"]): row["hardest"][str(epoch)][key]
        for row in rows
        if row["variant"] == variant and str(epoch) in row["hardest"]
    }
