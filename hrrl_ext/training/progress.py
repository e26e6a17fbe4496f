"""What a run tells while it runs: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO, get_args

from .._output import Output

ProgressStyle = Literal["auto", "bar", "plain", "off"]


class Progress:
    """``step`` where the loop looks at its numbers, ``line`` after each epoch; a context manager.

    Without a terminal a step is a line too, but at most one in ``every`` seconds: a log of a long
    epoch shows that it lives, and a log of short ones is not flooded. ``done`` are the steps of a
    resumed run that are not to count in the time left.
    """

    def __init__(
        self,
        style: ProgressStyle,
        total_steps: int,
        stream: TextIO | None = None,
        *,
        done: int = 0,
        every: float = 30.0,
    ) -> None:
        if style not in get_args(ProgressStyle):
            raise ValueError(
                f"progress must be one of {', '.join(get_args(ProgressStyle))}, got {style!r}"
            )
        self._stream = Output.of(stream or sys.stderr)
        if style == "auto":
            style = "bar" if self._stream.isatty() else "plain"
        self._style = style
        self._at, self._epoch = done, ""
        self._total, self._done, self._every = total_steps, done, every
        self._started = self._last_step = time.monotonic()
        self._bar: Any = None

    @property
    def failed(self) -> str | None:
        """Why nothing is shown any more, where the stream failed."""
        return self._stream.failed

    def __enter__(self) -> Progress:
        self._started = self._last_step = time.monotonic()
        if self._style == "bar":
            self._bar = _bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._total, completed=self._done, left="", text=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def epoch(self, name: str, done: int) -> None:
        """An epoch begins, or is taken up, with so many steps of all done."""
        self._epoch, self._at = name, done

    def work(self, what: str, text: str) -> None:
        """Something else than steps goes on in the epoch."""
        self.step(self._at, f"{self._epoch}, {what}", text)

    def step(self, step: int, where: str, text: str) -> None:
        """``step`` of all are done: ``where`` is the epoch and its step, ``text`` what was measured."""
        self._at = step
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, description=where, left=self._left(step), text=text
            )
        elif self._style == "plain" and time.monotonic() - self._last_step >= self._every:
            self._last_step = time.monotonic()
            self._print(f"{where}  {text}  {self._left(step)}")

    def line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._style == "plain":
            self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _left(self, step: int) -> str:
        """At the mean speed of this start, evaluation included."""
        elapsed = time.monotonic() - self._started
        seconds = round((self._total - step) * elapsed / max(step - self._done, 1))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02} left"


class Clock:
    """Examples per second since the epoch began, or was taken up."""

    def __init__(self, sizes: Sequence[int], first: int) -> None:
        self._sizes, self._first, self._start = sizes, first, time.perf_counter()

    def speed(self, number: int) -> float:
        seen = sum(self._sizes[self._first : number])
        return seen / (time.perf_counter() - self._start)


def _bar(stream: Any) -> Any:
    """The bar, and below it a line of its own for the numbers: both do not fit a narrow terminal."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Bar(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                yield Text(task.fields["text"], style="dim")

    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )
