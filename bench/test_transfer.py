"""Extraction of features against the bare forward passes; regularised fine-tuning against plain.

Extraction is to reach 0.95 of the throughput of the passes alone, with and without a file. A step of
similarity regularisation has a forward pass more than a plain one, of about three: the bar is 1.4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import Place
from torch import Tensor

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import ArrayImages
from hrrl_ext.models import resnet18
from hrrl_ext.transfer import L2SP, Similarity, extract_features, load_features, stream_features

SIDE, BATCH, IMAGES, ROUNDS = 32, 64, 256, 6


def images() -> ArrayImages:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
    return ArrayImages(pixels, torch.arange(IMAGES) % 10)


@pytest.mark.parametrize("provider", ["bare", "ours", "file"])
def test_extraction(
    provider: str, place: Place, measure: Callable[..., None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = resnet18(10, stem="small", width=16).to(place.device).eval()
    data = images()
    batches = [x.to(place.device).float() / 255 for x in data.images.split(BATCH)]
    path = tmp_path / "features.safetensors"

    def bare() -> list[Tensor]:
        with torch.no_grad():
            return [model.pre_logits(x) for x in batches]

    calls: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "ours": lambda: extract_features(model, data, batch_size=BATCH),
        "file": lambda: stream_features(path, model, data, batch_size=BATCH),
    }
    expected = torch.cat(bare()).cpu()

    def check(result: Any) -> None:
        found = load_features(path) if provider == "file" else result
        features = torch.cat(found).cpu() if provider == "bare" else found.features
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)

    measure(
        calls[provider], check, op="extraction", case=f"resnet18-w16-{SIDE}", provider=provider,
        rounds=ROUNDS, shape=(IMAGES, 3, SIDE, SIDE), dtype="fp32",
    )  # fmt: skip


PENALTIES = {"plain": None, "l2sp": L2SP(), "ours": Similarity()}


@pytest.mark.parametrize("provider", PENALTIES)
@pytest.mark.parametrize(("width", "batch"), [(16, 64), (64, 16)])
def test_finetuning_step(
    width: int, batch: int, provider: str, place: Place, measure: Callable[..., None]
) -> None:
    trainer = HRRLTrainer(
        resnet18(10, stem="small", width=width), data=images(), concepts="classes", tau=0.0, lam=None,
        lr=1e-3, batch_size=batch, penalty=PENALTIES[provider], device=place.device, progress="off",
    )  # fmt: skip
    x, target, concept = next(iter(trainer.batches.epoch(0)))
    trainer.model.train()

    def step() -> Tensor:
        return trainer.train_step(x, target, concept)

    def check(concept_loss: Tensor) -> None:
        assert concept_loss.isfinite().all()
        assert (trainer.recipe.tally.penalty > 0) == (provider != "plain")

    measure(
        step, check, op="finetuning_step", case=f"resnet18-w{width}-{SIDE}", provider=provider,
        rounds=ROUNDS, shape=(batch, 3, SIDE, SIDE), dtype="fp32",
    )  # fmt: skip
