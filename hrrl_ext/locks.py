"""Folders that one process at a time may write to.

A lock is the system's own (``flock``) on a small file in the folder: it ends with the process that holds
it, however that ends, so that none is ever left behind. What stands in the file (process, host, since
when, command) is for messages alone. Readers never lock.

On network file systems the lock holds as far as theirs do: NFS (v4, or v3 with its lock service) and most
cluster file systems lock between hosts; mounted with ``nolock`` or ``local_lock``, within one host. Where
a file system has no locks at all a warning says so, and the work goes on without.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
except ImportError:  # Windows, where nothing is locked
    LOCK_EX = LOCK_NB = LOCK_UN = 0  # type: ignore[misc]

    def flock(fd: Any, operation: int, /) -> None:  # type: ignore[misc]
        pass


_NAME = ".lock"
_SHOWN = 200  # letters of a command in a message


class FolderInUseError(OSError):
    """Another process, or another thread of this one, writes to the folder; the message says which."""


@dataclass(eq=False)
class _Held:
    """An open and locked file of this process, how many locks share it, and what was made for them."""

    file: TextIOWrapper
    thread: int
    made: list[Path]
    locks: int = 1


_held: dict[tuple[int, int], _Held] = {}  # by device and inode
_guard = threading.RLock()  # a lock that is let go of by the garbage collector may come in between


class FolderLock:
    """The right to write to a folder, which is made where it is not there.

    What was made for the lock, and not :meth:`keep`-ed, goes with it: work that is refused before it
    begins leaves no trace. Locks of one thread share a folder if they are ``shared``: what a thread does
    comes one after the other, and an object that was never used does not stand in the way of the next.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str = _NAME, *, shared: bool = True
    ) -> None:
        self.file, self._shared = Path(folder) / name, shared
        self._mine: _Held | None = None

    def take(self) -> None:
        """FolderInUseError where it is held elsewhere; nothing where this object has it already."""
        if not self.try_take():
            raise FolderInUseError(
                f"{self.file.parent} is being written to by {self._holder()}. Wait until that ends, or "
                "stop it; or choose another folder"
            )

    def try_take(self) -> bool:
        """Whether the folder is ours now."""
        with _guard:
            while self._mine is None:
                made = _make_folder(self.file.parent)
                made += [] if self.file.exists() else [self.file]
                try:
                    file = self.file.open("a+", encoding="utf-8", errors="replace")
                except (
                    FileNotFoundError
                ):  # somebody has just let go of a folder that was made for it
                    continue
                if not self._lock(file, made):
                    file.close()
                    return False
        return True

    def _lock(self, file: TextIOWrapper, made: list[Path]) -> bool:
        """False where it is held elsewhere; True, and not held yet, where the file is gone meanwhile."""
        about = os.fstat(file.fileno())
        key = about.st_dev, about.st_ino
        if (held := _held.get(key)) is not None:
            if not (self._shared and held.thread == threading.get_ident()):
                return False
            file.close()
            held.locks += 1
            self._mine = held
            return True
        if not _locked(file):
            return False
        if not _lies_at(self.file, key):
            file.close()
            return True
        file.truncate(0)
        file.write(f"{_this_process()}\n")
        file.flush()
        self._mine = _held[key] = _Held(file, threading.get_ident(), made)
        return True

    def _holder(self) -> str:
        """In words, as far as its file says."""
        try:
            text = " ".join(self.file.read_text(encoding="utf-8", errors="replace").split())
        except OSError:
            text = ""
        return text or "another process"

    def keep(self) -> None:
        """Work has begun: the folder stays."""
        if self._mine is not None:
            self._mine.made.clear()

    def release(self) -> None:
        """Nothing where it is not held, as in a process that was forked from the one that holds it."""
        with _guard:
            held, self._mine = self._mine, None
            if held is None or not any(other is held for other in _held.values()):
                return
            held.locks -= 1
            if not held.locks:
                _let_go(held)

    def __enter__(self) -> FolderLock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_mine", None) is not None:
            self.release()


@contextmanager
def writing_to(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, which no other process writes to meanwhile. FolderInUseError: one does."""
    with FolderLock(folder) as lock:
        yield lock.file.parent


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in it but a lock, nor anything else by its name."""
    return not folder.exists() or (
        folder.is_dir() and all(path.name == _NAME for path in folder.iterdir())
    )


def require_folder(path: Path) -> None:
    """That nothing but a folder is there, if anything is."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"out must be a folder, got the file {path}")


def _make_folder(folder: Path) -> list[Path]:
    """What of it and its parents was not there, the outermost first."""
    require_folder(folder)
    missing = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _lies_at(path: Path, key: tuple[int, int]) -> bool:
    """Whether the file of this device and inode is the one by the name, and not one that was removed."""
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return False
    return (about.st_dev, about.st_ino) == key


def _locked(file: TextIOWrapper) -> bool:
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"{file.name} cannot be locked here ({error.strerror}): see to it that no other process "
            "writes to the same folder",
            stacklevel=5,
        )
    return True


def _let_go(held: _Held) -> None:
    """Of the lock itself, too: a forked process may still have the file open."""
    for key in [key for key, other in _held.items() if other is held]:
        del _held[key]
    for path in reversed(held.made):
        with suppress(OSError):  # there may be something in it
            path.rmdir() if path.is_dir() else path.unlink()
    with suppress(OSError):
        held.file.truncate(0)
        flock(held.file, LOCK_UN)
    held.file.close()


def _this_process() -> str:
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    command = " ".join(" ".join(sys.argv).split())[:_SHOWN]
    return f"process {os.getpid()} on {socket.gethostname()}, since {since} ({command})"


def _after_fork() -> None:
    """A forked process has the files open, too: were it to outlive this one, so would the locks."""
    global _guard
    _guard = threading.RLock()
    for held in _held.values():
        held.file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
