"""Microseconds per image and core of AugMix, against the published recipe by Pillow.

    pytest bench/test_augmix.py --benchmark-only -s

Both mix the same images by the same draws, and agree before they are timed. Processor time is counted,
which other work on the machine disturbs less, though it takes the cache away. Ours draws anew each time.
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

from hrrl_ext.data import Augmentation, AugMix

BATCH = {32: 64, 224: 4}


def photographs(count: int, side: int) -> Tensor:
    """Parts of one, each a little different."""
    whole = photograph(2 * side).expand(count, -1, -1, -1)
    crops = Augmentation(side // 2)(whole, torch.Generator().manual_seed(0))
    return crops[:, :, :side, :side].contiguous()


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("all_ops", [False, True], ids=["9", "13"])
@pytest.mark.parametrize("provider", ["hrrl_ext", "Pillow"])
@pytest.mark.parametrize("side", [32, 224])
def test_augmix(side: int, provider: str, all_ops: bool, benchmark: BenchmarkFixture) -> None:
    torch.set_num_threads(1)
    count, generator = BATCH[side], torch.Generator().manual_seed(0)
    augmix, images = AugMix(all_ops=all_ops), photographs(BATCH[side], side)
    pictures, chains = as_pictures(images), augmix.draw(count, generator)
    apart = (augmix.apply(images / 255, chains) - mixed(pictures, chains)).abs()
    assert (
        apart > 1 / 255
    ).float().mean() < 1e-3  # tests/data/test_augmix.py has the whole argument
    calls: dict[str, Callable[[], Tensor]] = {
        "hrrl_ext": lambda: augmix(images, generator),
        "Pillow": lambda: mixed(pictures, augmix.draw(count, generator)),
    }
    name = f"{side} pixels, {13 if all_ops else 9} operations"
    benchmark.group = f"augmix {name}"
    benchmark.extra_info.update(op="augmix", case=name, provider=provider)
    benchmark.pedantic(calls[provider], rounds=20, warmup_rounds=2, iterations=1)
    stats = benchmark.stats.stats if benchmark.stats else None
    each = [1e6 * seconds / count for seconds in (stats.min, stats.median)] if stats else []
    benchmark.extra_info["microseconds_per_image"] = each
    print(
        f"\n{provider}, {name}: {', '.join(f'{e:.0f}' for e in each)} µs per image (least, median)"
    )
