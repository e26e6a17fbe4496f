"""Balanced sampling and a shuffle buffer: the draws, the edges, and the epochs that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hrrl_ext._streams import random_stream
from hrrl_ext.data import ArrayImages, Augmentation, Batches, GroupSampling
from hrrl_ext.data.image_sets import ImageSet
from hrrl_ext.data.sampling import through_buffer
from hrrl_ext.processes import Processes
from hrrl_ext.retrieval.config import RetrievalTraining
from hrrl_ext.training import TrainingConfig

GROUP = torch.tensor([2, 0, 0, 2, 3, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0])
SIZE = [16, 0, 4, 1]  # of the groups


@pytest.mark.parametrize(
    ("balance", "share"),
    [(0.0, [16 / 21, 0, 4 / 21, 1 / 21]), (0.5, [4 / 7, 0, 2 / 7, 1 / 7]), (1.0, [1 / 3, 0, 1 / 3, 1 / 3])],
)  # fmt: skip
def test_the_probabilities(balance: float, share: list[float]) -> None:
    sampling = GroupSampling(GROUP, balance)
    assert sampling.share.tolist() == pytest.approx(share, rel=1e-15)
    draws = [21 * share[k] / SIZE[k] for k in GROUP.tolist()]
    assert sampling.draws.tolist() == pytest.approx(draws, rel=1e-15)
    if balance == 0:
        assert sampling.draws.tolist() == pytest.approx([1.0] * 21, rel=1e-15)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_draws_follow_them(balance: float) -> None:
    """χ² over the 21 examples: 20 in the mean, and 45.3 is passed once in 1000 seeds."""
    sampling = GroupSampling(GROUP, balance)
    epochs = 2000
    rows = torch.cat([sampling.order(random_stream(0, epoch)) for epoch in range(epochs)])
    expected = epochs * sampling.draws
    chi_square = ((torch.bincount(rows, minlength=21) - expected).square() / expected).sum()
    assert chi_square < 45.3
    # Draws of an epoch do not hang on one another: the count of group 3 is binomial.
    count = (GROUP[rows.view(epochs, 21)] == 3).sum(1).double()
    p = sampling.share[3]
    variance = 21 * p * (1 - p)
    # The sample variance of 2000 counts is off by √((κ - 1)/2000) of it, κ = 3 to 4: 4 %. Five of them.
    assert count.var() == pytest.approx(variance.item(), rel=0.2)


@pytest.mark.parametrize("group", [[0, 0, 2], [1, 1, 1], [0, 0, 0], [3]])
def test_the_ends_of_the_unit_interval(group: list[int], monkeypatch: Any) -> None:
    """The smallest and the largest u choose the first and the last example; empty groups are passed by."""
    first, last = 0, len(group) - 1
    for u, row in ((0.0, first), (1 - 2**-53, last)):
        value = torch.full((2, len(group)), u, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *a, value=value, **k: value)
        for balance in (0.0, 1.0):
            order = GroupSampling(torch.tensor(group), balance).order(torch.Generator())
            assert order.tolist() == [row] * len(group)


def test_a_draw_at_the_border_is_of_the_next_group(monkeypatch: Any) -> None:
    half = torch.full((2, 3), 0.5, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *a, **k: half)
    order = GroupSampling(torch.tensor([0, 0, 2])).order(torch.Generator())
    assert order.tolist() == [2, 2, 2]  # not of group 1, which is empty, nor of 0, which ends there


def test_no_examples() -> None:
    sampling = GroupSampling(torch.zeros(0, dtype=torch.int64))
    assert len(sampling.order(torch.Generator())) == len(sampling.draws) == 0


# --- a shuffle buffer

SHARDS = torch.randperm(40, generator=torch.Generator().manual_seed(1)).split([0, 13, 1, 26])


@pytest.mark.parametrize("buffer", [1, 2, 7, 39, 40, 1000])
def test_through_a_buffer_one_after_the_other(buffer: int) -> None:
    """With the same draws: what all rows at once come to."""
    generator, same_draws = (torch.Generator().manual_seed(2) for _ in range(2))
    turn = torch.randperm(4, generator=same_draws)
    walk = torch.cat([SHARDS[k] for k in turn]).tolist()
    held, coming = walk[:buffer], walk[buffer:]
    places = torch.randint(len(held), (len(coming),), generator=same_draws).tolist()
    drawn = []
    for place, row in zip(places, coming, strict=True):
        drawn.append(held[place])
        held[place] = row
    drawn += [held[at] for at in torch.randperm(len(held), generator=same_draws).tolist()]
    order = through_buffer(SHARDS, buffer, generator).tolist()
    assert order == drawn
    assert sorted(order) == list(range(40))
    assert all(walk.index(row) < at + buffer for at, row in enumerate(order))
    if buffer == 1:
        assert order == walk


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(count: int) -> None:
    assert through_buffer([torch.arange(count)], 5, torch.Generator()).tolist() == [0] * count


# --- epochs


class Fetched(ImageSet):
    """Images made when they are fetched, which is counted."""

    def __init__(self, n: int = 21) -> None:
        super().__init__(
            torch.arange(n) % 5, (3, 6, 8), classes=list("abcde"), concept_map=None, name="made"
        )
        g = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (n, 3, 6, 8), generator=g, dtype=torch.uint8)
        self.fetches: list[int] = []

    def __getitems__(self, indices: Any) -> tuple[Tensor, Tensor]:
        rows = self._rows(indices)
        self.fetches += rows.tolist()
        return self.pixels[rows], self.target[rows]


class Sharded(Fetched):
    """In two shards."""

    @property
    def shards(self) -> Sequence[Tensor]:
        return torch.arange(len(self)).split([9, 12])


BUFFERED: dict[str, Any] = {"images": Sharded(), "sampling": "uniform", "shuffle_buffer": 4}


def batches(images: ImageSet | None = None, **changes: Any) -> Batches:
    settings = {"shuffle": True, "seed": 5, "augment": Augmentation(2), "sampling": "concept"}
    images = Fetched() if images is None else images
    return Batches(images, GROUP, 8, **(settings | {"views": True} | changes))


def bits(made: Batches, epochs: range = range(4), start: int = 0) -> list[Tensor]:
    return [t for epoch in epochs for batch in made.epoch(epoch, start) for t in batch]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_an_epoch_of_as_many_draws() -> None:
    made, seen = batches(), []
    pixels = made.images.__getitems__(range(len(made.images)))[0]
    for x, target, concept, row, view in made.epoch(1):
        assert torch.equal(x, Augmentation(2).apply(pixels[row], view).float() / 255)
        assert torch.equal(target, made.images.target[row]) and torch.equal(concept, GROUP[row])
        seen.append(row)
    assert [len(rows) for rows in seen] == made.sizes == [8, 8, 5]
    assert any(len(rows.unique()) < len(rows) for rows in seen)  # one of group 3 within one batch
    # Two views of an image differ: the draw belongs to the place in the batch.
    assert len(torch.cat(seen).unique()) < 21


def test_classes_are_the_targets() -> None:
    by_class = batches(sampling="class", balance=0.5)
    assert torch.equal(by_class.draws, GroupSampling(by_class.images.target, 0.5).draws)
    assert torch.equal(batches(sampling="uniform").draws, torch.ones(21).double())
    by_class.concept = torch.zeros_like(GROUP)  # does not count
    assert same(
        [b[3] for b in by_class.epoch(0)],
        [b[3] for b in batches(sampling="class", balance=0.5).epoch(0)],
    )


@pytest.mark.parametrize("of", [{}, BUFFERED], ids=["concepts", "buffer"])
def test_the_order_is_of_seed_and_epoch(of: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    whole = bits(batches(**of))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(bits(batches(**of), range(2, 4)), whole[2 * 15 :])
    assert same(bits(batches(**of), range(0, 1), start=1), whole[5:15])
    orders = {
        tuple(torch.cat([b[3] for b in batches(seed=seed, **of).epoch(epoch)]).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_concepts_that_change_count_from_the_next_epoch_on() -> None:
    made = batches()
    running = made.epoch(0)
    begun = [next(running)]
    made.concept = torch.zeros_like(GROUP)
    assert same([b[3] for b in [*begun, *running]], [b[3] for b in batches().epoch(0)])
    assert made.draws.tolist() == [1.0] * 21


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_kept_may_come_again(workers: int) -> None:
    """Within a batch and in later ones: the same bits, and one fetch."""
    made = Fetched()
    expected = bits(batches(ArrayImages(made.pixels, made.target, classes=made.classes)))
    assert same(bits(batches(num_workers=workers)), expected)
    assert same(bits(batches(made, num_workers=workers, keep_gib=1.0)), expected)
    if workers == 0:  # of workers this process hears nothing
        assert sorted(made.fetches[1:]) == sorted(
            {*made.fetches[1:]}
        )  # the first one tells the size


def test_kept_images_of_an_epoch_left_half_way() -> None:
    kept = batches(keep_gib=1.0)
    next(kept.epoch(0))
    assert same(bits(kept), bits(batches()))


@pytest.mark.parametrize("of", [{}, BUFFERED], ids=["concepts", "buffer"])
def test_processes_share_every_batch(of: dict[str, Any]) -> None:
    parts = [batches(processes=Processes(rank, 2), **of) for rank in (0, 1)]
    for whole, *both in zip(
        batches(**of).epoch(1), *(part.epoch(1) for part in parts), strict=True
    ):
        for got, want in zip(zip(*both, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(got), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "group"}, "sampling must be one of uniform, class, concept, got 'group'"),
        ({"shuffle": False}, "sampling='concept' draws examples by chance, and shuffle=False"),
        ({"balance": -0.1}, r"balance must lie in \[0, 1\], got -0.1"),
        ({"balance": float("nan")}, r"balance must lie in \[0, 1\], got nan"),
        ({"shuffle_buffer": 4}, "shuffle_buffer=4 .* and sampling='concept' draws from any"),
        ({**BUFFERED, "shuffle": False}, "shuffle_buffer=4 .* and shuffle=False is an order"),
        ({**BUFFERED, "shuffle_buffer": 0}, "shuffle_buffer must be at least 1, got 0"),
        ({**BUFFERED, "images": Fetched()}, 'shuffle_buffer=4 .* made is in none, as "wds:'),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(**changes)


def test_the_setting_of_a_training() -> None:
    with pytest.raises(ValueError, match="shuffle_buffer must be positive, got 0"):
        TrainingConfig(shuffle_buffer=0)
    with pytest.raises(ValueError, match=r"shuffle_buffer=9 .* pairs are in none"):
        RetrievalTraining(shuffle_buffer=9)
