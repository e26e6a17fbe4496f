"""Comparisons (comparisons.py) for chains of operations on images: AugMix's, by the same draws."""

from __future__ import annotations

from functools import lru_cache

import torch
from comparisons import Comparison, Way, plain
from shapes import Mixtures
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.data import AugMix
from hrrl_ext.ops import reference


@lru_cache(maxsize=1)
def mix_chains(case: Mixtures, device: str) -> Comparison:
    """Pillow's is the published recipe, eager the specification: an operation on all that have it."""
    batch, side = case.shape[0], case.shape[-1]
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 12, 12, generator=g)
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    images = (images * 255).to(torch.uint8)
    augmix = AugMix(operations=case.operations)
    chains = augmix.draw(batch, g)
    program = augmix.program(chains, side, side)
    expected = reference.mix_chains(images, *program)
    x, arguments = images.to(device), [t.to(device) for t in program]

    def check(mixed: Tensor) -> None:
        """Of Pillow's, a pixel in a thousand may be off by what an operation cuts off."""
        apart = (mixed.cpu().float() - expected.float()).abs() > 1
        assert apart.float().mean() < 1e-3

    ways: dict[str, Way] = {
        "ours": plain(lambda: ops.mix_chains(x, *arguments)),
        "eager": plain(lambda: reference.mix_chains(x, *arguments)),
    }
    if device == "cpu":
        from augmix_peer import as_pictures, mixed

        pictures = as_pictures(images)
        ways["Pillow"] = plain(lambda: (mixed(pictures, chains) * 255).round())
    return Comparison(op="mix_chains", case=case, check=check, ways=ways)
