"""AugMix whole, with its draws, one operation alone, and views of pretraining, on photographs: to time.

Ours and Pillow's mix the same images by the same draws, and agree before they are handed out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from augmix_peer import as_pictures, as_tensor, mixed, operated
from test_corruptions import photograph
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.data import Augmentation, AugMix, Views, view_family
from hrrl_ext.data.augmix import OPERATIONS, AugMixOperations, Chains
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


def operation_calls(side: int, name: str) -> dict[str, Callable[[], Any]]:
    """One of AugMix's operations, half as strong as they are drawn at most."""
    images, augmix = photographs(side), AugMix(operations="moco")
    number, level = [one.name for one in OPERATIONS].index(name), augmix.severity / 2
    shape, one = (len(images), 1, 1), torch.ones(len(images), 1)
    chains = Chains(torch.full(shape, number), torch.full(shape, level).double(), one, one[:, 0])
    program, pictures = augmix.program(chains, side, side), as_pictures(images)

    def ours() -> Tensor:
        return ops.mix_chains(images, *program)

    def pillow() -> list[Any]:
        return [operated(picture, name, level, augmix.severity) for picture in pictures]

    assert ((ours().int() - as_tensor(pillow()).int()).abs() > 1).float().mean() < 1e-4
    return {"ours": ours, "Pillow": pillow}


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
