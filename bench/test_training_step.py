"""One step of HRRL (Algorithm 1) against one of plain training, and against the step written by hand.

HRRL needs two forward passes, a backward pass to the input and one to the weights: 5 units of work where
ERM needs 3, so 5/3 is the floor of their ratio. The bar is 1.75, at a peak memory of 1.1 times ERM's.
With stored directions it needs ERM's 3, and the gradient of the first layer's input: the bar is 1.05.
"""

from __future__ import annotations

from collections.abc import Callable

import memory
import pytest
from places import Place
from pytest_benchmark.fixture import BenchmarkFixture
from steps import STEPS, StepCase, expected_losses, tolerance
from torch import Tensor

CASES = [
    StepCase(width, dtype, last)
    for width in (16, 64)
    for dtype in ("fp32", "bf16")
    for last in (False, True)
]


def compiles(case: StepCase) -> bool:
    """Two cases are enough: each compilation takes the better part of a minute."""
    return case.width == 16 and case.channels_last == (case.dtype == "bf16")


@pytest.fixture(scope="module")
def erm_seconds() -> dict[str, float]:
    """The fastest ERM step of each case and place so far."""
    return {}


@pytest.mark.parametrize(
    ("case", "provider"),
    [
        pytest.param(
            case,
            provider,
            id=f"{case}-{provider}",
            marks=[pytest.mark.compile] * ("compile" in provider),
        )
        for case in CASES
        for provider in STEPS
        if compiles(case) or "compile" not in provider
    ],
)
def test_training_step(
    case: StepCase,
    provider: str,
    place: Place,
    measure: Callable[..., None],
    benchmark: BenchmarkFixture,
    erm_seconds: dict[str, float],
) -> None:
    plain, perturbed = expected_losses(case)

    def check(loss: Tensor) -> None:
        expected = plain if provider.startswith(("erm", "passes")) else perturbed
        assert loss.item() == pytest.approx(expected, rel=tolerance(case, place.device))

    here = case.setting(place.device)
    step = STEPS[provider](here, place.compiled)
    measure(
        step,
        check,
        op="training_step",
        case=case,
        provider=provider,
        rounds=15 if case.width == 16 else 3,
        **case.facts,
    )
    if "compile" not in provider:
        benchmark.extra_info["peak_bytes"] = memory.peak_bytes(step, here.held, here.optimizer)
    if benchmark.stats is None:
        return  # --benchmark-disable
    fastest, key = benchmark.stats.stats.min, f"{case} {place}"
    if provider == "erm":
        erm_seconds[key] = fastest
    elif key in erm_seconds:
        benchmark.extra_info["ratio_to_erm"] = fastest / erm_seconds[key]
