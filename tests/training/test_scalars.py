"""TensorBoard reads what a run wrote for it; without the package the run says so before it trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.training.loggers import Told
from hrrl_ext.training.scalars import TensorBoard

DIGITS = load_images("digits", split="train").subset(range(64))
SMALL: dict[str, Any] = {
    "data": DIGITS, "concepts": "classes", "epochs": 2, "batch_size": 32, "lr": 0.05, "width": 2,
    "crop_padding": 1, "tau": 0.0, "lam": 50.0, "progress": "off", "tensorboard": True,
}  # fmt: skip


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_a_run_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = HRRLTrainer(**SMALL, validation=DIGITS.subset([0, 1]), out=tmp_path).fit()
    got = read(tmp_path / "tensorboard")
    assert got["loss"] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in result.history
    ]
    assert [step for step, _ in got["q/7"]] == [2, 4]
    measured = {k for k, v in result.last["concept_accuracy"].items() if v is not None}
    assert {k for k in got if k.startswith("concept_accuracy/")} == {
        f"concept_accuracy/{k}" for k in measured
    }
    assert "epoch" not in got


def test_an_epoch_that_is_done_again_is_there_once(tmp_path: Path) -> None:
    """Killed after the second row was written and before its checkpoint was."""
    pytest.importorskip("tensorboard")
    for first_step, losses in ((1, {1: 2.0, 2: 1.0}), (6, {2: 1.5})):
        writer = TensorBoard(tmp_path, first_step)
        writer.start({})
        for epoch, loss in losses.items():
            writer.log({"epoch": epoch, "step": 5 * epoch, "loss": loss}, epoch)
        writer.close()
    assert read(tmp_path / "tensorboard")["loss"] == [(5, 2.0), (10, 1.5)]


def test_nothing_is_written_or_imported_unless_asked(tmp_path: Path) -> None:
    with Told((), tmp_path, 1, {}) as told:
        told.log({"epoch": 1, "step": 5, "loss": 2.0})
    assert list(tmp_path.iterdir()) == []


def test_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'tensorboard' needs out"):
        HRRLTrainer(**SMALL)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'hrrl_ext\[tensorboard\]'"):
        HRRLTrainer(**SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
