"""AugMix whole, with its draws, and views of contrastive pretraining, on photographs: calls to time.

Ours and Pillow's mix the same images by the same draws, and agree before they are handed out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from augmix_peer import as_pictures, mixed
from test_corruptions import photograph
from torch import Tensor

from hrrl_ext.data import Augmentation, AugMix, Views, view_family
from hrrl_ext.data.augmix import AugMixOperations
from hrrl_ext.data.image_sets import as_float

BATCH = {32: 64, 224: 8}
"""Images of a call, by their side."""


def photographs(side: int) -> Tensor:
    """[B, 3, side, side] uint8: parts of one, each a little different."""
    whole = photograph(2 * side).expand(BATCH[side], -1, -1, -1)
    crops = Augmentation(side // 2)(whole, torch.Generator().manual_seed(0))
    return crops[:, :, :side, :side].contiguous()


def augmix_calls(side: int, operations: AugMixOperations) -> dict[str, Callable[[], Tensor] | None]:
    """By provider; None is not installed."""
    generator, images = torch.Generator().manual_seed(0), photographs(side)
    augmix, count, pictures = AugMix(operations=operations), len(images), as_pictures(images)
    chains = augmix.draw(count, generator)
    apart = (augmix.apply(images / 255, chains) - mixed(pictures, chains)).abs()
    # tests/data/test_augmix.py has the whole argument
    assert (apart > 1 / 255).float().mean() < 1e-3
    return {
        "ours": lambda: augmix(images, generator),
        "Pillow": lambda: mixed(pictures, augmix.draw(count, generator)),
        "torchvision": by_torchvision(images, all_ops=operations == "all"),
    }


def by_torchvision(images: Tensor, all_ops: bool) -> Callable[[], Tensor] | None:
    """Its transform draws once for a batch, so images come one after another."""
    try:
        transforms: Any = importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision for another torch
        return None
    augmix = transforms.AugMix(severity=3, all_ops=all_ops)
    return lambda: torch.stack([augmix(image) for image in images])


def both_views(images: Tensor, family: str, blur: float) -> Callable[[], list[Tensor]]:
    """As the batches of pretraining have them, in float; each call is the next epoch."""
    views, index = Views(view_family(family, blur_p=blur)), torch.arange(len(images))
    epochs = iter(range(10**9))
    return lambda: [as_float(view) for view in views.two(images, index, next(epochs))]
