"""SIGTERM, as a batch system sends it: the run is saved before it ends."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ..processes import Processes
from .run_folder import RunFolder


class Stopping:
    """Within, SIGTERM is noted; the loop asks, and leaves when it has saved."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._noted = False
        self._before: Any = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self._noted = True

    def asked(self, everywhere: bool) -> bool:
        """Whether to stop. Several processes must stop at the same step: they compare notes only where
        all of them say ``everywhere``."""
        if self._processes.size == 1:
            return self._noted
        if not everywhere:
            return False
        return any(self._processes.gather(self._noted))

    def leave(self, run: RunFolder | None) -> None:
        saved = f"saved in {run.path}; continue it with resume" if run else "nothing was saved"
        if self._processes.main:
            print(f"stopped by SIGTERM: {saved}", flush=True)
        raise SystemExit(128 + signal.SIGTERM)
