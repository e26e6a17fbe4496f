"""Batches of pairs: all of them once an epoch, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from retrieval_cases import pairs, pictures
from torch import Tensor

from hrrl_ext.data import ArrayImages, Augmentation
from hrrl_ext.processes import Processes
from hrrl_ext.retrieval import Pairs, Words
from hrrl_ext.retrieval.batches import EncodedPairs, PairBatches


def encoded(of: Pairs, processes: Processes | None = None) -> EncodedPairs:
    texts = Words.of(of.captions, min_count=1).encode(of.captions)
    return EncodedPairs(of, texts, device=torch.device("cpu"), processes=processes or Processes())


def seen(batch: tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    """Each pair of a batch: its features, and its words without the padding."""
    x, tokens, lengths, _ = batch
    return [
        (*row.tolist(), *text[:n].tolist())
        for row, text, n in zip(x, tokens, lengths.tolist(), strict=True)
    ]


def test_an_epoch_goes_once_through_all_captions_each_with_its_image() -> None:
    of = pairs(31)
    whole = encoded(of)
    batches = PairBatches(whole, 16, seed=3)
    tokens, lengths = whole.texts
    expected = seen((of.images[of.owner], tokens, lengths, of.owner))
    for epoch in (0, 1):
        rows = [pair for batch in batches.epoch(epoch) for pair in seen(batch)]
        assert sorted(rows) == sorted(expected) and rows != expected
    first, second = (next(batches.epoch(epoch)) for epoch in (0, 1))
    assert seen(first) != seen(second)


def test_a_batch_depends_on_seed_epoch_and_number_alone() -> None:
    batches, again = (PairBatches(encoded(pairs()), 16, seed=3) for _ in range(2))
    all_of_it = list(batches.epoch(4))
    for got, want in zip(again.epoch(4, start=2), all_of_it[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    other = next(PairBatches(encoded(pairs()), 16, seed=4).epoch(4))
    assert seen(other) != seen(all_of_it[0])


@pytest.mark.parametrize("of", [pairs(31, groups=7), pictures()], ids=["features", "images"])
def test_processes_share_the_batch_of_one(of: Pairs) -> None:
    """Also augmented; every process knows the groups of the whole."""
    augment = Augmentation(2) if isinstance(of.images, ArrayImages) else None
    (alone,) = (list(PairBatches(encoded(of), 16, augment=augment).epoch(1)),)
    parts = [
        list(PairBatches(encoded(of, Processes(rank, 3)), 16, augment=augment).epoch(1))
        for rank in range(3)
    ]
    for number, batch in enumerate(alone):
        shared = [process[number] for process in parts]
        assert torch.equal(torch.cat([s[0] for s in shared]), batch[0])
        assert torch.equal(torch.cat([s[2] for s in shared]), batch[2])
        assert all(torch.equal(s[3], batch[3]) for s in shared)


@pytest.mark.parametrize(
    ("count", "sizes"), [(32, [16, 16]), (33, [16, 17]), (34, [16, 16, 2]), (2, [2])]
)
def test_no_pair_is_left_alone(count: int, sizes: list[int]) -> None:
    """A last batch of two pairs stays; a single pair joins the batch before it."""
    of = Pairs(torch.randn(count, 3), ["a"] * count, range(count))
    assert PairBatches(encoded(of), 16).sizes == sizes
