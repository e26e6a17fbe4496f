"""InfoNCE against a queue, a whole step of MoCo v2 and an epoch, against what else a user would write.

The loss's floor is two products of the queries with the queue. Its bar on the CPU is twice eager's speed
from K = 4,096 on, and a peak of memory of at most 1.02 times its arguments, which at 4,096 keys
the gradient alone is beyond. contrastive_bars.py has them in turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import memory
import pytest
from comparisons import Call
from contrastive_comparisons import negatives
from measurement import Measurement
from places import Place
from pretraining_peers import (
    PRETRAINING_EPOCHS,
    PRETRAINING_STEPS,
    PretrainingCase,
    step_on_views,
)
from shapes import Negatives
from test_ops import product
from torch import Tensor

NEGATIVES = [Negatives(256, keys) for keys in (4096, 16_384, 65_536)] + [Negatives(512, 65_536)]


@pytest.mark.parametrize(
    ("case", "provider"), product(NEGATIVES, "ours", "eager", "attention", "products", "compile")
)
def test_info_nce(case: Negatives, provider: str, place: Place, measure: Measurement) -> None:
    comparison = negatives(case, place.device)
    measure.compare(comparison, provider)
    if provider != "compile":
        arguments = sum(t.numel() * t.element_size() for t in comparison.held)
        call = comparison.ways[provider](place.compiled)
        peak = memory.peak_bytes(call, comparison.held, None)
        measure.benchmark.extra_info["peak_over_arguments"] = peak / arguments


STEPS = [PretrainingCase(16, dtype) for dtype in ("fp32", "bf16")]


@pytest.mark.parametrize("provider", PRETRAINING_STEPS)
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_pretraining_step(
    case: PretrainingCase, provider: str, place: Place, measure: Measurement
) -> None:
    step = _of_peer(partial(step_on_views, provider=provider), provider, case, place)
    _measured(step, "pretraining_step", case, provider, measure)


@pytest.mark.parametrize("provider", PRETRAINING_EPOCHS)
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_pretraining_epoch(
    case: PretrainingCase, provider: str, place: Place, measure: Measurement
) -> None:
    epoch = _of_peer(PRETRAINING_EPOCHS[provider], provider, case, place)
    _measured(epoch, "pretraining_epoch", case, provider, measure, images=case.images)


def _of_peer(make: Callable[..., Call], provider: str, case: PretrainingCase, place: Place) -> Call:
    try:
        return make(case, place.device)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another torch
        if provider not in ("lightly", "solo-learn"):
            raise
        pytest.skip(
            f"pip install --no-deps {provider}, torchvision, hydra-core, pytorch_lightning: {error}"
        )


def _measured(
    call: Call,
    op: str,
    case: PretrainingCase,
    provider: str,
    measure: Measurement,
    **facts: object,
) -> None:
    def check(loss: Tensor) -> None:
        """Negatives are random at first: no more than chance, and a positive that is near."""
        assert 0 < loss.item() < math.log(case.keys + 1)

    measure(call, check, op=op, case=case, provider=provider, rounds=4, **case.facts, **facts)
