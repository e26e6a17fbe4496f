"""A bar where there is a terminal, lines where there is none."""

from __future__ import annotations

import io

import pytest

from hrrl_ext.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(style: str, stream: io.StringIO) -> str:
    with Progress(style, 10, stream) as progress:  # type: ignore[arg-type]
        for step in range(1, 11):
            progress.step(step, f"epoch 1  loss {1 / step:.3f}")
        progress.line("epoch 1/1  done [50 %]")
    return stream.getvalue()


def test_plain_lines_in_a_file() -> None:
    assert report("auto", io.StringIO()) == "epoch 1/1  done [50 %]\n"
    assert report("plain", Terminal()) == "epoch 1/1  done [50 %]\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = report("auto", Terminal())
    assert "10/10" in shown
    assert "loss 0.100" in shown
    assert "epoch 1/1  done [50 %]" in shown
    assert "\x1b[" in shown  # drawn in place


def test_off() -> None:
    assert report("off", Terminal()) == ""


def test_a_bar_is_cleared_away_when_training_fails() -> None:
    def fail(progress: Progress) -> None:
        progress.step(1, "")
        raise ValueError("boom")

    progress = Progress("bar", 3, Terminal())
    with pytest.raises(ValueError, match="boom"), progress:
        fail(progress)
    assert not progress._bar.live.is_started
