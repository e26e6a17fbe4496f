"""Times of calls: of the kernels alone, of a replayed graph, and of the wall clock.

Every kind takes the calls of all providers in turn, so that what drifts drifts for all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
Calls = dict[str, Call]

_FLUSH_BYTES = 2**28  # an H100 has 50 MB of second-level cache
_NO_WORK = (" Sync", "Stream Wait")  # what a trace has besides kernels, copies and fills


class Event(NamedTuple):
    """Something that the device did; nanoseconds."""

    name: str
    start: int
    duration: int


class Kernels(NamedTuple):
    """What a call makes the device do."""

    microseconds: list[float]
    """20th percentile, median and 80th"""
    launches: int | None
    """kernels, copies and fills; None where they cannot be seen"""
    source: str


def kernels_between(events: Sequence[Event], flush: set[str], count: int) -> list[list[Event]]:
    """What came after each of ``count`` flushes, in the order of the device; one stream."""
    found: list[list[Event]] = []
    for event in sorted(events, key=lambda event: event.start):
        if any(word in event.name for word in _NO_WORK):
            continue
        if event.name in flush:
            found.append([])
        elif found:
            found[-1].append(event)
    if len(found) != count:
        raise RuntimeError(f"the trace has {len(found)} flushes of {count}")
    return found


def summary(seconds: Sequence[float]) -> list[float]:
    """Microseconds: 20th percentile, median, 80th."""
    ordered = sorted(1e6 * s for s in seconds)
    return [round(ordered[round(share * (len(ordered) - 1))], 3) for share in (0.2, 0.5, 0.8)]


class Clock:
    """Of the host: the stand-in for a device's, and the wall clock of both."""

    device = "cpu"
    source = "wall clock"

    def kernels(self, calls: Calls, samples: int) -> dict[str, Kernels]:
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(samples):
            for name, call in calls.items():
                seconds[name].append(self._seconds(call, 1))
        return {name: Kernels(summary(s), None, self.source) for name, s in seconds.items()}

    def wall(self, calls: Calls, round_seconds: float = 5e-3, rounds: int = 5) -> dict[str, float]:
        """Microseconds of a call from Python, one enqueued after the other: the median round."""
        times = {
            name: min(200, max(1, int(round_seconds / max(self._seconds(call, 1), 1e-7))))
            for name, call in calls.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                seconds[name].append(self._seconds(call, times[name]))
        return {name: round(1e6 * statistics.median(s), 3) for name, s in seconds.items()}

    def graph(self, call: Call) -> float | None:
        """Microseconds of a call within a replayed CUDA graph of 20; None where there are none."""
        return None

    def beyond(self, call: Call) -> int | None:
        """Bytes that torch has at most during a call beyond those that it had before."""
        return None

    def wait(self) -> None:
        pass

    def forget(self) -> None:
        """Gives memory that nobody holds back to the device."""

    def _seconds(self, call: Call, times: int) -> float:
        self.wait()
        begun = time.perf_counter()
        for _ in range(times):
            call()
        self.wait()
        return (time.perf_counter() - begun) / times


class CudaClock(Clock):
    """Durations of kernels are the driver's own (CUPTI, through torch.profiler).

    Where it has none, events around the call, less what they say of a kernel that does nothing.
    """

    device = "cuda"

    def __init__(self) -> None:
        self.buffer = torch.zeros(_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
        self.traced(self.flush)  # the first trace starts CUPTI
        self.flush_names = {e.name for e in self.traced(self.flush)}
        self.source = "CUPTI" if self.flush_names else "events less an empty kernel"

    def flush(self) -> None:
        """Empties the cache, by a kernel that no operator has, and keeps the GPU busy for the host."""
        torch.bitwise_not(self.buffer, out=self.buffer)

    def traced(self, call: Call) -> list[Event]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            call()
            self.wait()
        assert trace.profiler is not None
        return [
            Event(event.name(), event.start_ns(), event.duration_ns())
            for event in trace.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
            and not event.is_user_annotation()
        ]

    def kernels(self, calls: Calls, samples: int) -> dict[str, Kernels]:
        if not self.flush_names:
            return self._by_events(calls, samples)

        def run() -> None:
            for _ in range(samples):
                for call in calls.values():
                    self.flush()
                    call()

        events = self.traced(run)
        parts = kernels_between(events, self.flush_names, samples * len(calls))
        found = {}
        for i, name in enumerate(calls):
            own = parts[i :: len(calls)]
            seconds = [sum(e.duration for e in part) / 1e9 for part in own]
            launches = statistics.mode(len(part) for part in own)
            found[name] = Kernels(summary(seconds), launches, self.source)
        return found

    def _by_events(self, calls: Calls, samples: int) -> dict[str, Kernels]:
        empty = "an empty kernel"
        both = calls | {empty: lambda: torch.cuda._sleep(0)}
        pairs: dict[str, list[tuple[Any, Any]]] = {name: [] for name in both}
        for _ in range(samples):
            for name, call in both.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush()
                start.record()
                call()
                end.record()
                pairs[name].append((start, end))
        self.wait()
        seconds = {n: [a.elapsed_time(b) / 1e3 for a, b in p] for n, p in pairs.items()}
        none = statistics.median(seconds.pop(empty))
        return {
            name: Kernels(summary([max(0.0, x - none) for x in s]), None, self.source)
            for name, s in seconds.items()
        }

    def graph(self, call: Call, calls: int = 20, replays: int = 10) -> float | None:
        """With what it finds in the cache; the times of the kernels are those without."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                call()
        graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        self.wait()
        return round(1e3 * start.elapsed_time(end) / (replays * calls), 3)

    def beyond(self, call: Call) -> int | None:
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def wait(self) -> None:
        torch.cuda.synchronize()

    def forget(self) -> None:
        torch.cuda.empty_cache()


def clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()
