"""Where the seconds of a run of the tests went: what make test and make test-fast end with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import PurePosixPath

SLOWEST = 15  # files in the table


def lines(spent: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Two tables: seconds of every folder, and of the slowest files, from (node id, seconds) of each
    phase of each test. One folder alone has no table: then ``--durations`` says more."""
    files: dict[str, float] = defaultdict(float)
    for node, seconds in spent:
        files[node.partition("::")[0]] += seconds
    folders: dict[str, float] = defaultdict(float)
    for file, seconds in files.items():
        folders["/".join(PurePosixPath(file).parent.parts[:2])] += seconds
    if len(folders) < 2:
        return
    yield "seconds by folder, over all processes"
    yield from _table(folders)
    yield f"{sum(files.values()):9.1f}        together"
    yield f"the {min(SLOWEST, len(files))} slowest files"
    yield from islice(_table(files), SLOWEST)


def _table(spent: Mapping[str, float]) -> Iterator[str]:
    """The most first."""
    whole = sum(spent.values()) or 1.0
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        yield f"{seconds:9.1f}  {seconds / whole:4.0%}  {name}"
