"""Standard output and error, which may fail: a pipe that nobody reads, a full disk, or none at all.

Work that lasts goes on without them. What is nothing but what it prints ends there.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

PIPE_STATUS = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1


class Output:
    """A stream that never fails: from the first time that it does not take what it is given, it takes
    nothing any more, and ``failed`` says why."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failed: str | None = None

    @classmethod
    def of(cls, stream: Any) -> Output:
        return stream if isinstance(stream, Output) else cls(stream)

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self.failed is None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: str, *text: str) -> None:
        if self._stream is None or self.failed is not None:
            return
        try:
            getattr(self._stream, method)(*text)
        except UnicodeError:
            raise
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.failed = getattr(error, "strerror", None) or str(error)
            self.on_failure(error)

    def on_failure(self, error: Exception) -> None:
        """Nothing: whoever writes looks at ``failed``."""


class StandardOutput(Output):
    """Of the program. Where what it prints is all that a command does, its failing ends it: quietly, with
    the status of a closed pipe, or with a line that says what else it was."""

    ends = False

    def on_failure(self, error: Exception) -> None:
        _let_go_of(self._stream)
        if not self.ends:
            return
        if getattr(error, "errno", None) == errno.EPIPE:
            raise SystemExit(PIPE_STATUS)
        print(f"hrrl: error: standard output failed: {self.failed}", file=sys.stderr)
        raise SystemExit(1)


@contextmanager
def standard_streams() -> Iterator[StandardOutput]:
    """Those of the program, within; yields standard output."""
    _open_missing()
    before = sys.stdout, sys.stderr
    out, error = StandardOutput(sys.stdout), StandardOutput(sys.stderr)
    sys.stdout, sys.stderr = out, error
    try:
        try:
            yield out
        finally:
            out.flush()
            error.flush()
    finally:
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """On standard output, if that takes it."""
    print(text, file=Output.of(sys.stdout), flush=True)


def _open_missing() -> None:
    """What is opened next would take the place of a standard stream that is closed, and get what
    libraries write there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _let_go_of(stream: TextIO | None) -> None:
    """The interpreter flushes what is left in it at its end, and must not fail then."""
    if stream is not None:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, stream.fileno())
            finally:
                os.close(nowhere)
