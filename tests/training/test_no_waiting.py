"""A step never waits for the device."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import cycle
from typing import Any

import pytest
import torch
from crops import Crops
from retrieval_cases import trainer

from hrrl_ext import HRRLTrainer, URRLTrainer
from hrrl_ext.data import load_images

ADVERSARIES = ("hrrl", "chi_square", "group_dro", "cvar")
EXAMPLES: dict[str, dict[str, Any]] = {
    "theorem2": {"tau": "theorem2"},
    "stored": {"example_level": "stored"},
    "signs": {"example_level": "stored", "stored_bits": 1},
    "focal, PGD": {"focal": 2.0, "example_steps": 2},
    "adjusted, mixup": {"logit_adjustment": 1.0, "mixup": 0.4, "erasing": 0.5},
    "augmix": {"augmix": 3, "jsd": 12.0},
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("adversary", "settings"),
    [  # neither knows what the other does, so each setting meets one adversary
        *(pytest.param(adversary, {}, id=adversary) for adversary in ADVERSARIES),
        *(
            pytest.param(adversary, settings, id=f"{name}-{adversary}")
            for (name, settings), adversary in zip(EXAMPLES.items(), cycle(ADVERSARIES))
        ),
    ],
)
def test_a_step_asks_for_no_value(
    adversary: str,
    accumulate: int,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors on "meta" have shapes and no values: item(), nonzero() or an if on one raise."""
    trainer = HRRLTrainer(
        data=load_images("digits", split="train").subset(range(64)),
        concepts="classes",
        batch_size=32,
        width=4,
        adversary=adversary,
        accumulate=accumulate,
        device="meta",
        progress="off",
        **settings,
    )
    monkeypatch.setattr(trainer.loop.move, "autocast", nullcontext)  # which knows no such device
    for batch in trainer.batches.epoch(0):
        concept_loss = trainer.train_step(*batch)
    assert concept_loss.is_meta and concept_loss.shape == (10,)
    with pytest.raises(RuntimeError, match="meta"):
        concept_loss.sum().item()


PLAYERS = {"concepts": [0, 1, 2] * 10, "lam": 0.5, "tau": 0.1}


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"negatives": 4}, {"queue": 20}, {"warmup_loss": "semi_hard"}, {"preset": "Order0"}),
        *({"loss": "info_nce"}, {"loss": "sigmoid"}),
        *(PLAYERS, PLAYERS | {"loss": "sum_hinge"}, PLAYERS | {"loss": "info_nce"}),
    ],
    ids=str,
)
def test_a_step_of_a_joint_embedding_asks_for_no_value(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths of captions are on the CPU, and stay there."""
    own = trainer(device="meta", **settings)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for batch in own.batches.epoch(0):
        loss = own.train_step(*batch)
    assert loss.is_meta and loss.shape == ()


@pytest.mark.parametrize(("method", "accumulate"), [("moco", 1), ("moco", 2), ("pirl", 2)])
def test_nor_does_one_of_pretraining(
    method: str, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = URRLTrainer(
        data=load_images("digits", split="train").subset(range(40)),
        views=Crops(),
        batch_size=16,
        queue=24,
        width=4,
        method=method,
        accumulate=accumulate,
        device="meta",
        progress="off",
    )
    # Which knows no such device, nor does that of the loss.
    monkeypatch.setattr(trainer.loop.move, "autocast", nullcontext)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for size in trainer.recipe.batches.sizes:
        view = torch.rand(size, 3, 8, 8, device="meta")
        target = torch.zeros(size, dtype=torch.int64, device="meta")
        other = torch.rand(size, 9, 3, 2, 2, device="meta") if method == "pirl" else view
        means = trainer.recipe.step((view, other, target, target), trainer.loop.move.of(size))
    assert means.is_meta and means.shape == (3,)
