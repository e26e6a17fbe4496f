"""Pairs to train joint embeddings on in a second, and a trainer of a small one."""

from __future__ import annotations

from typing import Any

import torch

from hrrl_ext.data import ArrayImages
from hrrl_ext.retrieval import Pairs, RetrievalTrainer

WORDS = "red green blue round flat tall apple pear leaf stone cat dog".split()  # noqa: SIM905


def pairs(count: int = 30, *, groups: int | None = None, size: int = 6) -> Pairs:
    """Features with one to three captions each, which say what the features are."""
    random = torch.Generator().manual_seed(count)
    kind = torch.randint(len(WORDS), (count, 3), generator=random)
    owner = torch.arange(count).repeat_interleave(1 + torch.arange(count) % 3)
    place = torch.arange(len(owner)) - torch.searchsorted(owner, owner)
    captions = [
        " ".join(WORDS[w] for w in kind[i].roll(int(p))) for i, p in zip(owner, place, strict=True)
    ]
    features = torch.eye(len(WORDS))[kind].sum(1) @ torch.randn(
        len(WORDS), size, generator=torch.Generator().manual_seed(0)
    )
    group = None if groups is None else torch.arange(count) % groups
    return Pairs(features, captions, owner, group=group)


def pictures(count: int = 24, *, classes: int = 1, channels: int = 3) -> Pairs:
    pixels = torch.randint(
        256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    images = ArrayImages(pixels[:, :channels], [at % classes for at in range(count)])
    return Pairs(images, pairs(count).captions, pairs(count).owner)


SHORT: dict[str, Any] = {"batch_size": 16, "epochs": 2, "device": "cpu", "progress": "off"}
SMALL: dict[str, Any] = SHORT | {"dim": 8, "word_dim": 5, "text_width": 7}


def trainer(data: Pairs | None = None, **settings: Any) -> RetrievalTrainer:
    return RetrievalTrainer(**SMALL | {"data": pairs() if data is None else data} | settings)
