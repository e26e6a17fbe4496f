"""InfoNCE against a queue, a whole step of MoCo v2 and an epoch, against what else a user would write.

The loss's floor is two products of the queries with the queue. Its bar on the CPU is twice eager's speed
from K = 4,096 on, and a peak of memory of at most 1.02 times its arguments, which at 4,096 keys
the gradient alone is beyond. contrastive_bars.py has them in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import memory
import pytest
from comparisons import Call
from contrastive_comparisons import negatives
from measurement import Measurement
from places import Place
from pretraining_peers import (
    PRETRAINING_CASES,
    PRETRAINING_EPOCHS,
    PRETRAINING_STEPS,
    NotInstalled,
    PretrainingCase,
    of_peer,
    step_on_views,
)
from shapes import Negatives
from test_ops import product

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


@pytest.mark.parametrize("provider", PRETRAINING_STEPS)
@pytest.mark.parametrize("case", PRETRAINING_CASES, ids=str)
def test_pretraining_step(
    case: PretrainingCase, provider: str, place: Place, measure: Measurement
) -> None:
    make = partial(step_on_views, case, place.device, provider)
    _measured(make, "pretraining_step", case, provider, measure)


@pytest.mark.parametrize("provider", PRETRAINING_EPOCHS)
@pytest.mark.parametrize("case", PRETRAINING_CASES, ids=str)
def test_pretraining_epoch(
    case: PretrainingCase, provider: str, place: Place, measure: Measurement
) -> None:
    make = partial(PRETRAINING_EPOCHS[provider], case, place.device)
    _measured(make, "pretraining_epoch", case, provider, measure, images=case.images)


def _measured(
    make: Callable[[], Call],
    op: str,
    case: PretrainingCase,
    provider: str,
    measure: Measurement,
    **facts: object,
) -> None:
    try:
        call = of_peer(provider, make)
    except NotInstalled as missing:
        pytest.skip(str(missing))
    measure(call, case.check, op=op, case=case, provider=provider, rounds=4, **case.facts, **facts)
