"""A hostile trial: one call with an input that is damaged, and what became of it.

right    the answer of the intact input, or what the damaged one says by another route
clear    an error that the library raises itself, in one line that names what is wrong and where; or a
         warning that does, with an answer that the family says may stand in
wrong    another answer, without a word
raw      an error of another kind: numpy's, torch's, Pillow's, one without the name of the file, in many lines
hung     no answer within the time
killed   the process ended, or asked for more memory than it may have (`batches`)
"""

from __future__ import annotations

import dis
import math
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import hrrl_ext

OUTCOMES = ("right", "clear", "wrong", "raw", "hung", "killed")
FAILED = OUTCOMES[2:]
LIMIT = 10.0
"""Seconds. What is tried takes milliseconds; the rest is for a machine that others use as well."""
LONGEST = 8000  # characters of a line, which may quote a cell as it stands

_PACKAGE = str(Path(hrrl_ext.__file__).parent)
_OURS = (ValueError, TypeError, OSError, RuntimeError, ImportError)
_NEVER_OURS = (UnicodeError, RecursionError, NotImplementedError)


def same(a: Any, b: Any) -> bool:
    """Bit for bit and type for type; NaN is NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return np.array_equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is not type(b):
        return False
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@dataclass(frozen=True)
class Attempt:
    call: Callable[[], Any]
    right: Sequence[Callable[[], Any]]
    """Routes to answers that are right; one that raises has none to give."""
    named: Sequence[str]
    """An error holds one of these: what was damaged, or who found it."""
    told: Sequence[Callable[[], Any]] = ()
    """Answers that may stand in where a warning holds one of the names."""
    what: str = ""
    """how it was damaged, for whoever looks into it"""
    native: bool = False
    """whether C++ raises the errors, whose traces end outside the package"""
    close: Callable[[Any, Any], bool] = same


Family = Callable[[Path], Callable[[Random], Attempt]]
"""Writes what is intact into a folder, once; makes an attempt of each seed."""


class Outcome(NamedTuple):
    kind: str
    """of `OUTCOMES`"""
    why: str = ""


class Hung(BaseException):
    """Nothing that catches errors may catch it."""


def tried(attempt: Attempt, limit: float = LIMIT) -> Outcome:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with ended_after(limit), redirect_stderr(StringIO()) as heard:
                got = attempt.call()
        except SystemExit:  # of the program, which has said why
            if why := unclear_text(heard.getvalue().removesuffix("\n"), attempt.named):
                return Outcome("raw", f"{attempt.what}: {why}: {heard.getvalue()!r:.400}")
            return Outcome("clear", f"{attempt.what}: {heard.getvalue()}")
        except Hung:
            return Outcome("hung", f"{attempt.what}: no answer in {limit} s")
        except MemoryError as error:
            return Outcome("killed", f"{attempt.what}: {error!r}")
        except Exception as error:
            if why := unclear(error, attempt.named, attempt.native):
                return Outcome("raw", f"{attempt.what}: {why}: {_shown(error)}")
            return Outcome("clear", f"{attempt.what}: {error}")
    if _one_of(attempt.right, got, attempt.close):
        return Outcome("right")
    words = [str(w.message) for w in warned]
    told = [word for word in words if any(name in word for name in attempt.named)]
    if told and _one_of(attempt.told, got, attempt.close):
        return Outcome("clear", f"{attempt.what}: {told[0]}")
    return Outcome("wrong", f"{attempt.what}: got {repr(got)[:300]}; warnings: {words}")


def _one_of(
    routes: Sequence[Callable[[], Any]], got: Any, close: Callable[[Any, Any], bool]
) -> bool:
    for route in routes:
        try:
            want = route()
        except Exception:  # it says nothing that could be read
            continue
        if close(got, want):
            return True
    return False


def unclear(error: Exception, named: Sequence[str], native: bool = False) -> str:
    """What a message lacks; "" of one that is as it should be."""
    if native:  # the operators', and torch's where an operator has no kernel for such tensors
        return unclear_text(str(error).partition("\n")[0], named)
    if not isinstance(error, _OURS) or isinstance(error, _NEVER_OURS):
        return f"{type(error).__name__} is no error of ours"
    if not _raised_here(error):
        return "raised by another package"
    return unclear_text(str(error), named)


def unclear_text(text: str, named: Sequence[str]) -> str:
    if "\n" in text or len(text) > LONGEST:
        return "more than a line"
    if not any(name in text for name in named):
        return f"names none of {list(named)}"
    return ""


def _raised_here(error: Exception) -> bool:
    """By a statement ``raise`` of the package: int("a") within it says nothing of a file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _shown(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{error!r:.400} at {last.filename}:{last.lineno}"


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raises `Hung` in what takes longer, as far as it comes back to Python."""

    def end(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
