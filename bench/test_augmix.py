"""Microseconds per image and core: AugMix, against the published recipe by Pillow and torchvision's, and
views of contrastive pretraining.

    pytest bench/test_augmix.py --benchmark-only -s

What is called: view_calls.py. Processor time is counted, which other work on the machine disturbs less,
though it takes the cache away. Draws are made anew each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from view_calls import BATCH, augmix_calls, photographs

from hrrl_ext.data import Views
from hrrl_ext.data.augmix import AugMixOperations
from hrrl_ext.data.views import FAMILIES


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("operations", ["paper", "all"])
@pytest.mark.parametrize("provider", ["ours", "Pillow", "torchvision"])
@pytest.mark.parametrize("side", [32, 224])
def test_augmix(
    side: int, provider: str, operations: AugMixOperations, benchmark: BenchmarkFixture
) -> None:
    torch.set_num_threads(1)
    call = augmix_calls(side, operations)[provider]
    if call is None:
        pytest.skip(f"pip install {provider}, of this torch")
    _time(benchmark, call, "augmix", side, operations, provider)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [32, 224])
def test_views(side: int, family: str, benchmark: BenchmarkFixture) -> None:
    """Crop, flip and family, of one view."""
    torch.set_num_threads(1)
    images, index = photographs(side), torch.arange(BATCH[side])
    views = Views(FAMILIES[family])
    _time(benchmark, lambda: views(images, index), "view", side, family, "ours")


def _time(
    benchmark: BenchmarkFixture,
    call: Callable[[], Tensor],
    op: str,
    side: int,
    kind: str,
    provider: str,
) -> None:
    count, case = BATCH[side], f"{kind}, {side} pixels"
    benchmark.group = f"{op}, {case}"
    facts = {"shape": (count, 3, side, side), "dtype": "uint8", "device": "cpu", "threads": 1}
    benchmark.extra_info.update(op=op, case=case, provider=provider, **facts)
    benchmark.pedantic(call, rounds=20, warmup_rounds=2, iterations=1)
    stats = benchmark.stats.stats if benchmark.stats else None
    each = [1e6 * seconds / count for seconds in (stats.min, stats.median)] if stats else []
    benchmark.extra_info["microseconds_per_image"] = each
    shown = ", ".join(f"{e:.0f}" for e in each)
    print(f"\n{provider}, {op}, {case}: {shown} µs per image (least, median)")
