"""What a run tells while it runs: a bar on a terminal, a line per epoch anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

ProgressStyle = Literal["auto", "bar", "plain", "off"]


class Progress:
    """``step`` after each mini-batch, ``line`` after each epoch; a context manager."""

    def __init__(
        self, style: ProgressStyle, total_steps: int, stream: TextIO | None = None
    ) -> None:
        if style not in get_args(ProgressStyle):
            raise ValueError(
                f"progress must be one of {', '.join(get_args(ProgressStyle))}, got {style!r}"
            )
        self._stream = stream or sys.stderr
        if style == "auto":
            style = "bar" if self._stream.isatty() else "plain"
        self._style = style
        self._total = total_steps
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._style == "bar":
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)

    def line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._style == "plain":
            print(text, file=self._stream, flush=True)
