"""A bar where there is a terminal, lines where there is none; and what they say."""

from __future__ import annotations

import io
import time

import pytest
import torch

from hrrl_ext.concept_weights import effective_number
from hrrl_ext.robust.report import results, running, summary
from hrrl_ext.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(style: str, stream: io.StringIO, **options: float) -> str:
    with Progress(style, 10, stream, **options) as progress:
        for step in range(1, 11):
            progress.step(step, f"epoch 1/1, step {step}/10", f"loss {1 / step:.3f} [cat]")
        progress.line("epoch 1/1  done [50 %]")
    return stream.getvalue()


def test_plain_lines_in_a_file() -> None:
    assert report("auto", io.StringIO()) == "epoch 1/1  done [50 %]\n"
    assert report("plain", Terminal()) == "epoch 1/1  done [50 %]\n"


def test_a_line_now_and_then_within_a_long_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 20 s here: a line at every second one, with what is left at that speed."""
    now = 0.0

    def monotonic() -> float:
        return now

    monkeypatch.setattr(time, "monotonic", monotonic)
    stream = io.StringIO()
    with Progress("plain", 400, stream, done=100) as progress:
        for step in range(101, 106):
            now += 20.0
            progress.step(step, f"step {step}", "loss 1.000")
    assert stream.getvalue().splitlines() == [
        "step 102  loss 1.000  1:39:20 left",  # 298 steps of 20 s
        "step 104  loss 1.000  1:38:40 left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    shown = report("auto", Terminal())
    assert "10/10" in shown
    assert "0:00:00 left" in shown
    assert "loss 0.100 [cat]" in shown  # a name in brackets is no markup
    assert "epoch 1/1  done [50 %]" in shown
    assert "\x1b[" in shown  # drawn in place


def test_work_is_shown_where_the_steps_are() -> None:
    stream = io.StringIO()
    with Progress("plain", 10, stream, every=0.0) as progress:
        progress.epoch("epoch 2/2", 5)
        progress.work("clustering", "round 1")
    assert stream.getvalue().startswith("epoch 2/2, clustering  round 1  ")


def test_off() -> None:
    assert report("off", Terminal(), every=0.0) == ""


def test_a_bar_is_cleared_away_when_training_fails() -> None:
    def fail(progress: Progress) -> None:
        progress.step(1, "", "")
        raise ValueError("boom")

    progress = Progress("bar", 3, Terminal())
    with pytest.raises(ValueError, match="boom"), progress:
        fail(progress)
    assert not progress._bar.live.is_started


# --- the words


def test_what_is_said_within_an_epoch() -> None:
    concept_loss, q = {"cat": 2.0, "dog": 0.5, "fox": 1.0}, {"cat": 0.5, "dog": 0.0, "fox": 0.5}
    effective = effective_number(torch.tensor(list(q.values()))).item()
    said = running(1.25, 0.5, concept_loss, q, effective)
    assert said == (
        "loss 1.250  train 50.0 %  worst concept 2.00 (cat)  effective concepts 2.0 of 3  "
        "q 0.50 (cat), 0.50 (fox), 0.00 (dog)"
    )


ROW = {
    "epoch": 1, "step": 5, "loss": 1.0, "train_accuracy": 0.5, "accuracy": 0.8,
    "worst_concept_accuracy": 0.6, "concept_accuracy": {"cat": 0.9, "dog": 0.6, "fox": None},
    "concept_loss": {"cat": 1.0, "dog": 2.0, "fox": 3.0}, "q": {"cat": 0.2, "dog": 0.7, "fox": 0.1},
    "effective_concepts": 2.2, "largest_weight": 2.1, "images_per_second": 10.0, "seconds": 2.0,
}  # fmt: skip


def test_what_is_said_after_an_epoch() -> None:
    """The worst concept is one that was measured."""
    assert "accuracy 80.0 %  worst concept 60.0 % (dog)  effective" in summary(ROW)
    plain = {k: v for k, v in ROW.items() if "accuracy" not in k} | {"train_accuracy": 0.5}
    assert "worst concept" not in summary(plain)


def test_results_hold_the_last_epoch_and_the_best_one() -> None:
    second = ROW | {
        "epoch": 2,
        "accuracy": 0.9,
        "concept_accuracy": {"cat": 1.0, "dog": 0.8, "fox": None},
    }
    got = results(ROW | {"epoch": 3}, second)
    assert (got["last"]["epoch"], got["best"]["epoch"]) == (3, 2)
    assert got["last"]["worst_concept"] == "dog"
    assert got["concepts"]["dog"] == {
        "q": 0.7, "concept_loss": 2.0, "accuracy_last": 0.6, "accuracy_best": 0.8
    }  # fmt: skip
    plain = {k: v for k, v in ROW.items() if "accuracy" not in k}
    got = results(plain, None)
    assert got["best"] is None
    assert got["concepts"]["dog"] == {"q": 0.7, "concept_loss": 2.0}
