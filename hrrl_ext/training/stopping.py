"""Ends before the end, saved: at SIGTERM, as a batch system sends it, and at a limit in minutes."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from .._output import say
from .._signals import second_ends
from ..processes import Processes


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
