"""Runs stages: each in a process group of its own, with a limit, and a kill that nothing survives."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .records import FILE, STAGE, append, read

ROOT = Path(__file__).resolve().parents[2]
PASSED, ENDED, KILLED, LATE = (
    *("passed", "passed: until its time was up"),
    *("killed at its limit", "not run: no time left"),
)
_LOG_BYTES = 200_000  # of a stage's output that are kept, its end
_LEAST = 2.0  # seconds below which a stage is not begun


def status(records: Sequence[dict[str, Any]]) -> int:
    """0: every stage passed; 1: one failed or crashed; 3: none did, but time ran out for one."""
    outcomes = [record["outcome"] for record in records if record["record"] == "stage"]
    late = [o for o in outcomes if o.startswith((KILLED, LATE))]
    passed = [o for o in outcomes if o.startswith(PASSED)]
    if len(late) + len(passed) < len(outcomes):
        return 1
    return 3 if late else 0


@dataclass(frozen=True)
class Stage:
    name: str
    words: tuple[str, ...]
    """The command, after the interpreter."""
    limit: float
    """Seconds after which it is killed."""
    estimate: float
    """Seconds that it should take; bench/README.md says why."""
    needs: tuple[str, ...] = ()
    """Packages without which it is not begun."""
    endless: bool = False
    """Goes on as long as it is let: its limit is no failure."""


class Run:
    """One call: its records, its log and its report, all in ``out`` and up to date at any time."""

    def __init__(
        self, out: Path, name: str, seconds: float, render: Callable[[list[dict[str, Any]]], str]
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.records, self.log, self.page = (
            out / f"{name}.{end}" for end in ("jsonl", "log", "md")
        )
        for path in (self.records, self.log, self.page):
            path.unlink(missing_ok=True)
        self.end = time.monotonic() + seconds
        self.render = render
        self._running: list[_Running] = []
        self._seen, self._written = -1, 0.0

    def all(self, batches: Sequence[Sequence[Stage]], **facts: Any) -> None:
        """One batch after the other; the stages of a batch side by side. ``facts`` go into the plan."""
        planned = [[s.name, s.limit, s.estimate] for batch in batches for s in batch]
        self.emit("plan", "", stages=planned, **facts)
        try:
            for batch in batches:
                self._batch(batch)
        finally:  # by a signal, too: nothing is left running, and nothing unwritten
            for running in self._running:
                running.kill()
                self._finish(running, "stopped")
            self._report(now=True)

    def _batch(self, batch: Sequence[Stage]) -> None:
        for stage in batch:
            left = self.end - time.monotonic()
            missing = [name for name in stage.needs if importlib.util.find_spec(name) is None]
            if missing:
                self._left_out(stage, f"not run: {', '.join(missing)} not installed")
            elif left < _LEAST:
                self._left_out(stage, LATE)
            else:
                self._running.append(_Running(stage, min(stage.limit, left), self.records))
        while self._running:
            time.sleep(0.05)
            for running in list(self._running):
                outcome = running.outcome()
                if outcome is not None:
                    self._finish(running, outcome)
                    self._running.remove(running)
            self._report()
        self._report(now=True)

    def _left_out(self, stage: Stage, outcome: str) -> None:
        self.emit("stage", stage.name, outcome=outcome, seconds=0.0, limit=stage.limit)

    def _finish(self, running: _Running, outcome: str) -> None:
        stage = running.stage
        facts = {"seconds": round(running.seconds, 1), "limit": round(running.limit, 1)}
        self.emit("stage", stage.name, outcome=outcome, **facts)
        with self.log.open("ab") as log:
            log.write(f"==== {stage.name}: {outcome} ({' '.join(stage.words)})\n".encode())
            log.write(running.output())

    def emit(self, record: str, stage: str, **facts: Any) -> None:
        append(self.records, {"record": record, "stage": stage, **facts})

    def _report(self, now: bool = False) -> None:
        """Rewrites the page where a line is new: twice a second, and at the end of every stage."""
        size = self.records.stat().st_size if self.records.exists() else 0
        if size == self._seen or not (now or time.monotonic() > self._written + 0.5):
            return
        self._seen, self._written = size, time.monotonic()
        try:
            text = self.render(read(self.records))
        except Exception:  # a page that cannot be made must not end the run: its lines are there
            text = (
                f"The report failed; {self.records.name} has all of it.\n\n{traceback.format_exc()}"
            )
        partial = self.page.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.page)


class _Running:
    """A stage under way."""

    def __init__(self, stage: Stage, limit: float, records: Path) -> None:
        self.stage, self.limit = stage, limit
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by output())
        paths = [str(ROOT), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            FILE: str(records.resolve()),
            STAGE: stage.name,
        }
        self.begun = time.monotonic()
        self.seconds = 0.0
        self.process = subprocess.Popen(
            [sys.executable, *stage.words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=self.file,
            start_new_session=True,
        )

    def outcome(self) -> str | None:
        """What became of it; None while it runs. Whatever it has started ends with it."""
        code = self.process.poll()
        self.seconds = time.monotonic() - self.begun
        if code is None and self.seconds < self.limit:
            return None
        self.kill()
        if code is None:
            return ENDED if self.stage.endless else f"{KILLED} of {self.limit:.0f} s"
        if code < 0:
            return f"crashed: {signal.Signals(-code).name}"
        return PASSED if code == 0 else f"failed: exit status {code}"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits in the driver stays
            self.process.wait(5)

    def output(self) -> bytes:
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(max(0, size - _LOG_BYTES))
        text = self.file.read()
        self.file.close()
        return text + b"\n"
