"""Ends before the end, saved: at SIGTERM, as a batch system sends it, at a limit in minutes, at a file
that cannot be read."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from .._output import say
from .._signals import second_ends
from ..processes import Processes

Batch = TypeVar("Batch")


class Stopping:
    """Within, SIGTERM is noted, and the time; the loop asks, and ends when it has saved. A second signal
    ends at once."""

    def __init__(self, processes: Processes, minutes: float | None = None) -> None:
        self._processes = processes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._signalled = False
        self._before: Any = None
        self._watch = second_ends()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self._watch.__exit__(None, None, None)
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self._signalled = True

    def asked(self, everywhere: bool) -> bool:
        """Whether to stop. Several processes must stop at the same step: they compare notes only where
        all of them say ``everywhere``."""
        if self._processes.size == 1:
            return self._noted
        if not everywhere:
            return False
        return any(self._processes.gather(self._noted))

    @property
    def _noted(self) -> bool:
        return self._signalled or (self._end is not None and time.monotonic() >= self._end)

    def leave(self, saved: str) -> None:
        """Says so; and ends the process, where it was told to."""
        signalled = any(self._processes.gather(self._signalled))
        if self._processes.main:
            say(f"stopped by {'SIGTERM' if signalled else 'max_minutes'}: {saved}")
        if signalled:
            raise SystemExit(128 + signal.SIGTERM)


def read_together(batches: Iterator[Batch], processes: Processes) -> Iterator[Batch]:
    """The batches. Where a process cannot read its part of one, all of them raise OSError: the others
    would wait for it in the step. The first says why, so that it is said once."""
    while True:
        batch, error = None, None
        try:
            batch = next(batches, None)
        except OSError as caught:
            error = caught
        why = processes.first_of(None if error is None else str(error))
        if why is not None:
            other = f"process {processes.rank} stops with the first, which says why"
            raise OSError(why if processes.main else other) from error
        if batch is None:
            return
        yield batch
