"""Lines of JSON that many processes append to one file, and that outlive any of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE, STAGE = "HRRL_RECORDS", "HRRL_STAGE"
"""The environment variables by which a stage knows where to write, and its own name."""
_PATIENCE = 20.0  # seconds; whoever holds the device longer than that has most likely hung


def emit(record: str, **facts: Any) -> None:
    """One line to the file of this run, or to standard output, where there is none."""
    line = {"record": record, "stage": os.environ.get(STAGE, ""), **facts}
    path = os.environ.get(FILE)
    if path is None:
        print(json.dumps(line), flush=True)
    else:
        append(Path(path), line)


def append(path: Path, line: dict[str, Any]) -> None:
    """In one write, so that lines of several processes do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that was cut off by a crash is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[bool]:
    """Stages that run side by side prepare together, but each times alone.

    Yields whether that holds: after some waiting it goes on in any case, and says so. The lock is on the
    file of the records; the system drops that of a process that dies.
    """
    path = os.environ.get(FILE)
    if path is None:
        yield True
        return
    with open(path, "a") as file:
        end = time.monotonic() + _PATIENCE
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        held = False
        while not held and time.monotonic() < end:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                time.sleep(0.02)
        yield held
