"""Microseconds per image and core: AugMix, against the published recipe by Pillow and torchvision's, and
views of contrastive pretraining.

    pytest bench/test_augmix.py --benchmark-only -s

Ours and Pillow's mix the same images by the same draws, and agree before they are timed. Processor time
is counted, which other work on the machine disturbs less, though it takes the cache away. Draws are made
anew each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from augmix_peer import as_pictures, mixed
from pytest_benchmark.fixture import BenchmarkFixture
from test_corruptions import photograph
from torch import Tensor

from hrrl_ext.data import Augmentation, AugMix, Views
from hrrl_ext.data.augmix import AugMixOperations
from hrrl_ext.data.views import FAMILIES

BATCH = {32: 64, 224: 8}


def photographs(count: int, side: int) -> Tensor:
    """Parts of one, each a little different."""
    whole = photograph(2 * side).expand(count, -1, -1, -1)
    crops = Augmentation(side // 2)(whole, torch.Generator().manual_seed(0))
    return crops[:, :, :side, :side].contiguous()


def by_torchvision(images: Tensor, all_ops: bool) -> Callable[[], Tensor]:
    """Its transform draws once for a batch, so images come one after another."""
    transforms = pytest.importorskip("torchvision.transforms.v2")
    augmix = transforms.AugMix(severity=3, all_ops=all_ops)
    return lambda: torch.stack([augmix(image) for image in images])


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("operations", ["paper", "all"])
@pytest.mark.parametrize("provider", ["hrrl_ext", "Pillow", "torchvision"])
@pytest.mark.parametrize("side", [32, 224])
def test_augmix(
    side: int, provider: str, operations: AugMixOperations, benchmark: BenchmarkFixture
) -> None:
    torch.set_num_threads(1)
    count, generator = BATCH[side], torch.Generator().manual_seed(0)
    augmix, images = AugMix(operations=operations), photographs(BATCH[side], side)
    pictures, chains = as_pictures(images), augmix.draw(count, generator)
    apart = (augmix.apply(images / 255, chains) - mixed(pictures, chains)).abs()
    assert (
        apart > 1 / 255
    ).float().mean() < 1e-3  # tests/data/test_augmix.py has the whole argument
    calls: dict[str, Callable[[], Tensor]] = {
        "hrrl_ext": lambda: augmix(images, generator),
        "Pillow": lambda: mixed(pictures, augmix.draw(count, generator)),
    }
    if provider == "torchvision":
        calls[provider] = by_torchvision(images, operations == "all")
    _time(benchmark, calls[provider], f"augmix, {operations}, {side} pixels", provider, count)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [32, 224])
def test_views(side: int, family: str, benchmark: BenchmarkFixture) -> None:
    """Crop, flip and family, of one view."""
    torch.set_num_threads(1)
    count = BATCH[side]
    images, index, views = photographs(count, side), torch.arange(count), Views(FAMILIES[family])
    _time(benchmark, lambda: views(images, index), f"view, {family}, {side} pixels", "ours", count)


def _time(
    benchmark: BenchmarkFixture, call: Callable[[], Tensor], case: str, provider: str, count: int
) -> None:
    benchmark.group = case
    benchmark.extra_info.update(op="augmix", case=case, provider=provider)
    benchmark.pedantic(call, rounds=20, warmup_rounds=2, iterations=1)
    stats = benchmark.stats.stats if benchmark.stats else None
    each = [1e6 * seconds / count for seconds in (stats.min, stats.median)] if stats else []
    benchmark.extra_info["microseconds_per_image"] = each
    print(
        f"\n{provider}, {case}: {', '.join(f'{e:.0f}' for e in each)} µs per image (least, median)"
    )
