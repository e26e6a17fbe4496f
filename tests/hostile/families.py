"""Every family of trials, and batches of them in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

import array_files
import image_files
import json_files
import operators
import shard_files
import text_files
import torch
import weight_files
from trial import LIMIT, OUTCOMES, Family, Outcome, tried

FAMILIES: dict[str, Family] = {
    **array_files.FAMILIES,
    **image_files.FAMILIES,
    **json_files.FAMILIES,
    **operators.FAMILIES,
    **shard_files.FAMILIES,
    **text_files.FAMILIES,
    **weight_files.FAMILIES,
}
MEMORY = 2 << 30
"""Bytes that a batch may ask for beyond what its process has when it begins."""
PROGRAM = Path(__file__).parent.relative_to(Path(__file__).parents[2])


class Failure(NamedTuple):
    family: str
    seed: int
    outcome: Outcome

    def __str__(self) -> str:
        return (
            f"{self.outcome.kind}: {self.family} {self.seed}: {self.outcome.why}\n"
            f"    alone: python {PROGRAM} --only '{self.family}' --seed {self.seed} --trials 1"
        )


def trials(name: str, seeds: Sequence[int], folder: Path) -> Iterator[tuple[int, Outcome]]:
    """In this process."""
    attempt = FAMILIES[name](folder)
    return ((seed, tried(attempt(Random(f"{name} {seed}")))) for seed in seeds)


def batches(name: str, seeds: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
    """In a process that may have so much memory, and so much time for each; one that ends is replaced."""
    left = list(seeds)
    while left:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_batch, args=(name, left, theirs, ours)
        )
        child.start()
        theirs.close()
        kind = "killed"
        try:
            if not ours.poll(10 * LIMIT) or not ours.recv():
                raise EOFError
        except EOFError:
            raise RuntimeError(f"{name}: what is intact cannot be written and read") from None
        try:
            while left:
                if not ours.poll(4 * LIMIT):  # C++ that does not come back to Python
                    kind = "hung"
                    break
                seed, outcome = ours.recv()
                left.remove(seed)
                yield seed, outcome
        except EOFError:
            pass
        child.kill()
        child.join()
        if left:
            yield left.pop(0), Outcome(kind, f"status {child.exitcode}")


def _batch(name: str, seeds: Sequence[int], results: Connection, other: Connection) -> None:
    other.close()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        found = trials(name, seeds, Path(folder))
        results.send(True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries of images speak for themselves
        for result in found:
            results.send(result)
    results.close()


def table(counts: Mapping[str, Counter[str]]) -> str:
    """In Markdown."""
    rows = [["family", "tried", *OUTCOMES]]
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        rows.append([name, str(count.total()), *(str(count[kind]) for kind in OUTCOMES)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    rule = " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
    return "\n".join(f"| {one} |" for one in (lines[0], rule, *lines[1:]))


def shares(total: int, names: Sequence[str]) -> dict[str, int]:
    """Trials of each family, the same for all but for one."""
    each, more = divmod(total, len(names))
    return {name: each + (at < more) for at, name in enumerate(names)}


def flush(text: str) -> None:
    print(text)
    sys.stdout.flush()
