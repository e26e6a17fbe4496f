"""Tables of bars whose ways take turns, for a machine that others use: other load meets neighbours alike.

Of one thread the seconds are the processor's, of two the clock's. A ratio is theirs over ours, of the
fastest turns; the quartiles are those of neighbouring turns. MB is what torch allocates at most beyond
what is held. What is below its bar is bold.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import bars
import memory
import torch
from comparisons import Comparison
from places import Place
from torch import Tensor

TURN = 2e-3
"""Seconds of a turn at least."""
LONG = 1.0
"""Seconds of a call to which the caches that another way left make no difference."""


class Way(NamedTuple):
    call: Callable[[], Any] | None
    """None: its package is not installed."""
    limit: float = 0.0
    """Its time over ours at least; 0 asks nothing, and that of ours is not looked at."""


class Row(NamedTuple):
    held: tuple[Tensor, ...]
    """What ours is given: MB is beyond that, and not looked at where this is empty."""
    ways: dict[str, Way]
    """By name, "ours" the first."""
    memory_limit: float | None = None
    """What ours allocates beyond what is held, over that, at most; None asks nothing."""


Rows = Mapping[str, Callable[[], Row]]
"""By operator and case; what a row takes is drawn and checked when it is called."""


def compared(comparison: Comparison, against: Sequence[str], place: Place) -> Row:
    """Ours and others of a comparison, all checked, with their bars."""
    facts = {"op": comparison.op, "device": place.device, **comparison.facts}
    ways = {
        name: Way(comparison.checked_call(name, place.compiled), bars.least_ratio(facts, name))
        for name in ("ours", *against)
    }
    return Row(comparison.held, ways)


def measured(
    calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of a call, by way and turn."""
    once: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call()
        begun = clock()
        call()
        once[name] = clock() - begun
    times = {name: max(1, round(TURN / spent)) for name, spent in once.items()}
    slow, long = max(times.values()) == 1, min(once.values()) >= LONG
    for _ in range(min(rounds, 5) if slow else rounds):
        for name, call in calls.items():
            if not long:
                call()  # meets the caches as another way left them, and is not counted
            begun = clock()
            for _ in range(times[name]):
                call()
            seconds[name].append((clock() - begun) / times[name])
    return seconds


def lines(case: str, row: Row, place: Place, rounds: int) -> Iterator[str]:
    # Of one thread the processor's time, in which others have no part.
    clock = time.process_time if place.threads == 1 else time.perf_counter
    calls = {name: way.call for name, way in row.ways.items() if way.call is not None}
    seconds = measured(calls, rounds, clock)
    held = sum(t.numel() * t.element_size() for t in row.held)
    looked_at = calls if row.held else {}
    peak = {n: memory.peak_bytes(call, row.held, None) - held for n, call in looked_at.items()}
    ours = [case, place.threads, _digits(1e3 * min(seconds["ours"])), _megabytes(peak.get("ours"))]
    if len(row.ways) == 1:
        yield _cells(*ours, *["–"] * 5)
    for name, way in list(row.ways.items())[1:]:
        bar = f"{way.limit:.2f}" if way.limit else "–"
        if way.call is None:
            yield _cells(*ours, name, "not installed", "–", bar, "–")
            continue
        ratios = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        ratio = min(seconds[name]) / min(seconds["ours"])
        quartiles = ", ".join(f"{q:.2f}" for q in statistics.quantiles(ratios, n=4))
        shown = f"{ratio:.2f}" if ratio >= way.limit else f"**{ratio:.2f}**"
        yield _cells(*ours, name, shown, quartiles, bar, _megabytes(peak.get(name)))
    if row.memory_limit is not None:
        share = peak["ours"] / held
        shown = f"{100 * share:.1f} %" if share <= row.memory_limit else f"**{100 * share:.1f} %**"
        bar = f"at most {100 * row.memory_limit:.0f} %"
        yield _cells(*ours, "its arguments, MB", shown, "–", bar, _megabytes(held))


def _megabytes(size: float | None) -> str:
    return "–" if size is None else _digits(size / 1e6)


def _digits(value: float) -> str:
    """Three, or all of a larger whole number."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:.3g}"


def _cells(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main(about: str, rows: Callable[[Place], Rows]) -> None:
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="a word of the operator or the case")
    args = parser.parse_args()
    memory.keep_freed_memory()
    print(_cells("case", "threads", "ms", "MB", "against", "ratio", "quartiles", "bar", "its MB"))
    print("| --- | ---: | ---: | ---: | --- | ---: | --- | ---: | ---: |")
    for threads in args.threads:
        torch.set_num_threads(threads)
        place = Place("cpu", threads)
        for case, build in rows(place).items():
            if args.only in case:
                for line in lines(case, build(), place, args.rounds):
                    print(line, flush=True)
