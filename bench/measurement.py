"""What every benchmark does with a call: verify, then time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from comparisons import Comparison
from places import Place
from pytest_benchmark.fixture import BenchmarkFixture


class Measurement:
    """Calls once and checks the result against float64; then hands over to pytest-benchmark.

    That first call also compiles what compiles. ``facts`` go into the JSON, for table.py.
    """

    def __init__(self, benchmark: BenchmarkFixture, place: Place) -> None:
        self.benchmark = benchmark
        self.place = place

    def __call__(
        self,
        call: Callable[[], Any],
        check: Callable[[Any], object],
        *,
        op: str,
        case: object,
        provider: str,
        rounds: int | None = None,
        **facts: Any,
    ) -> None:
        check(call())
        self.benchmark.group = f"{op} {case} {self.place}"
        self.benchmark.extra_info.update(
            op=op,
            case=str(case),
            provider=provider,
            device=self.place.device,
            threads=self.place.threads,
            **facts,
        )
        if self.place.device == "cuda":
            self.benchmark.extra_info["device_seconds"] = self.place.device_seconds(call)
        timed = self.place.waiting(call)
        if rounds is None:
            self.benchmark(timed)
        else:
            self.benchmark.pedantic(timed, rounds=rounds, iterations=1)  # the check was the warm-up

    def compare(self, comparison: Comparison, provider: str) -> None:
        """One way of a comparison; skipped where its package is not installed."""
        try:
            call = comparison.ways[provider](self.place.compiled)
        except ModuleNotFoundError as error:
            pytest.skip(f"pip install {error.name}")
        self(
            call,
            lambda result: provider in comparison.unchecked or comparison.check(result),
            op=comparison.op,
            case=comparison.case,
            provider=provider,
            **comparison.facts,
        )
