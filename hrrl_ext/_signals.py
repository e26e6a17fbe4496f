"""A second SIGTERM or SIGINT ends the process at once, whatever the first one is waiting for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

APART = 0.3
"""Seconds. Those that come closer are one request: timeout, torchrun and batch systems signal a process
and its group, and so a process twice."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_watching = False


@contextmanager
def second_ends() -> Iterator[None]:
    """Within, by a thread: that of the program may be in a save or a read that does not return.

    With status 143 or 130, as the shell has it. A file is renamed to its place when it is whole.
    """
    global _watching
    if _watching or threading.current_thread() is not threading.main_thread():
        yield
        return
    receive, send = os.pipe()
    os.set_blocking(send, False)
    before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    if before != -1:  # of an event loop, whose business signals are
        signal.set_wakeup_fd(before)
        os.close(receive)
        os.close(send)
        yield
        return
    _watching = True
    threading.Thread(target=_watch, args=(receive,), daemon=True).start()
    try:
        yield
    finally:
        _watching = False
        signal.set_wakeup_fd(-1)
        os.close(send)


def _watch(receive: int) -> None:
    first = None
    while numbers := os.read(receive, 64):  # none: the other end is closed
        for number in numbers:
            now = time.monotonic()
            if number in _SIGNALS and first is None:
                first = now
            elif number in _SIGNALS and first is not None and now - first >= APART:
                os._exit(128 + number)
    os.close(receive)


def _after_fork() -> None:
    """What a forked process gets is no business of this one's."""
    global _watching
    if _watching:
        _watching = False
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
