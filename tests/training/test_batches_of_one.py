"""Batch normalisation is never given a single example: refused before the first step, or not made."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.processes import ALONE, Processes
from hrrl_ext.training import TrainingConfig
from hrrl_ext.training.move import Move, learns_of_batches, require_pairs

DIGITS = load_images("digits", split="train")


def network(norm: nn.Module | None = None) -> nn.Module:
    """Which keeps one position: here torch cannot normalise a single example."""
    norm = nn.BatchNorm1d(4) if norm is None else norm
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), norm, nn.ReLU(), nn.Linear(4, 10))


def frozen() -> nn.Module:
    return nn.BatchNorm1d(4).eval().requires_grad_(False)


def trainer(model: nn.Module, images: int = 9, **settings: Any) -> HRRLTrainer:
    return HRRLTrainer(
        model, data=DIGITS.subset(range(images)), concepts=[0] * images, lam=None, crop_padding=0, progress="off",
        **{"epochs": 1, "batch_size": 4, "tau": 0.1, "lr": 0.01} | settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "batch_size: a batch of 1 leaves batch normalisation ('2', 1 in all) a single"),
        ({"accumulate": 4}, "batch_size: a batch of 4 in 4 parts (accumulate, processes) leaves batch"),
        ({"accumulate": 3}, "in 3 parts"), ({"images": 1}, "a batch of 1 leaves"),
    ],
)  # fmt: skip
def test_refused_before_the_first_step(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(network(), **settings)
    for other in (nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Identity()):
        trainer(network(other), **settings)


@pytest.mark.parametrize("images", [4, 5, 7, 9, 11])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_part_of_any_batch_is_of_one(images: int, accumulate: int) -> None:
    """Neither the last batch, nor a part of it."""
    run = trainer(network(), images=images, accumulate=accumulate)
    seen: list[int] = []
    run.model[2].register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0])) if run.model.training else None
    )
    run.fit()
    assert min(seen) >= 2 and sum(seen) == 2 * images  # the pass of the perturbation, too


def test_what_is_frozen_needs_no_pair() -> None:
    assert learns_of_batches(network()) == ["2"]
    assert learns_of_batches(network(frozen())) == []
    assert learns_of_batches(network(nn.SyncBatchNorm(4))) == []
    assert learns_of_batches(network(nn.BatchNorm1d(4, affine=False).eval())) == []
    assert learns_of_batches(network(nn.BatchNorm1d(4, affine=False))) == ["2"]
    opened = network().eval()  # as a model is opened: it will train
    assert learns_of_batches(opened) == ["2"]


@pytest.mark.parametrize(("processes", "batch_size", "accumulate", "enough"), [
    (1, 2, 1, True), (2, 4, 1, True), (2, 3, 1, False), (2, 4, 2, False), (2, 8, 2, True), (4, 8, 1, True), (4, 8, 2, False),
])  # fmt: skip
def test_processes_have_their_share(
    processes: int, batch_size: int, accumulate: int, enough: bool
) -> None:
    config = TrainingConfig(batch_size=batch_size, accumulate=accumulate)
    sizes = [batch_size] * 3
    if enough:
        require_pairs(network(), sizes, config, Processes(0, processes))
    else:
        with pytest.raises(ValueError, match="a single example"):
            require_pairs(network(), sizes, config, Processes(0, processes))


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("count", range(1, 6))
def test_parts(least: int, count: int) -> None:
    """As many in every process: one that had another part alone would wait for the others in it."""
    move = Move(network(), TrainingConfig(accumulate=count), ALONE, torch.device("cpu"))
    move.least = least
    for size in range(1, 12):
        for processes in (1, 2, 3):
            found = []
            for rank in range(processes):
                move.processes = Processes(rank, processes)
                share = move.processes.part(size)
                batch = (torch.tensor(share, dtype=torch.int64), torch.zeros(len(share)))
                parts = list(move.of(size)._parts(batch))
                assert torch.cat([part[0] for part, _ in parts]).tolist() == list(share)
                assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]
                assert min(len(part[0]) for part, _ in parts) >= min(least, size // processes)
                found.append(len(parts))
            # no fewer than there can be
            assert found == [max(1, min(count, size // processes // least))] * processes
