"""Where a case runs: a device and a number of threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hrrl_ext import build_info


@dataclass(frozen=True)
class Place:
    device: str
    threads: int

    def __str__(self) -> str:
        return self.device if self.device == "cuda" else f"{self.threads}t"

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile for this place alone; compiles at the first call (and first backward)."""
        # Without the reset the compilations of earlier cases count towards the limit, beyond which
        # dynamo would quietly run eager.
        torch._dynamo.reset()
        options: dict[str, Any] = {"cpp.threads": self.threads} if self.device == "cpu" else {}
        compiled: Callable[..., Any] = torch.compile(
            function, fullgraph=True, dynamic=False, options=options
        )
        return compiled

    def waiting(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """``call``, returning when the device has finished it."""
        if self.device == "cpu":
            return call

        def call_and_wait() -> Any:
            result = call()
            torch.cuda.synchronize()
            return result

        return call_and_wait

    def device_seconds(self, call: Callable[[], Any], samples: int = 60) -> list[float]:
        """GPU time of a call: 20th percentile, median, 80th.

        Half a gigabyte is written before each: that empties the cache, and keeps the GPU busy while
        the host enqueues the call, so that its launches are not waited for.
        """
        flush = torch.empty(2**29, dtype=torch.uint8, device=self.device)
        events = []
        for _ in range(samples):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        seconds = torch.tensor([start.elapsed_time(end) / 1e3 for start, end in events])
        quantiles: list[float] = seconds.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
        return quantiles


def all_places() -> list[Place]:
    """One thread and all of them, and the GPU where torch and hrrl_ext were built for one.

    All threads are those torch would use: OMP_NUM_THREADS limits them.
    """
    places = [Place("cpu", threads) for threads in sorted({1, torch.get_num_threads()})]
    if torch.cuda.is_available() and build_info()["cuda"] is not None:
        places.append(Place("cuda", 1))
    return places


def as_parameters(places: list[Place]) -> list[Any]:
    """For parametrize and fixtures: with readable ids, and the marker gpu where it belongs."""
    return [
        pytest.param(place, id=str(place), marks=[pytest.mark.gpu] * (place.device == "cuda"))
        for place in places
    ]
