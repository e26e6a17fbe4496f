"""What a run is given, and what of it is damaged afterwards: taken, or named with the way out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages
from hrrl_ext.plots.runs import read_history
from hrrl_ext.robust import HRRLTrainer
from hrrl_ext.storage import WorkFolder
from hrrl_ext.training import load_model

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import main

IMAGES = ArrayImages(
    torch.arange(8 * 3 * 8 * 8, dtype=torch.uint8).view(8, 3, 8, 8), torch.arange(8) % 2
)
SETTINGS: dict[str, Any] = {
    "data": IMAGES, "concepts": "classes", "tau": 0.0, "width": 2, "batch_size": 4, "progress": "off",
}  # fmt: skip


def train(out: Path, **settings: Any) -> HRRLTrainer:
    trainer = HRRLTrainer("convnet", out=out, **SETTINGS | settings)
    trainer.fit()
    return trainer


def test_numbers_of_numpy_are_settings(tmp_path: Path) -> None:
    """They reach config.json, the metrics and the state, which is read without running code."""
    as_numpy = {
        "epochs": np.int64(2),
        "lr": np.float64(0.1),
        "seed": np.uint8(3),
        "ema": np.float64(0.5),
    }
    as_numpy |= {"milestones": [np.int32(1)], "optimizer_options": {"nesterov": np.bool_(True)}}
    train(tmp_path / "a", **as_numpy, lam=np.float32(2), checkpoint_every=np.int64(1))
    plain = {"epochs": 2, "lr": 0.1, "seed": 3, "ema": 0.5, "milestones": [1], "lam": 2.0}
    train(tmp_path / "b", **plain, optimizer_options={"nesterov": True}, checkpoint_every=1)
    texts = [(tmp_path / name / "config.json").read_text() for name in "ab"]
    assert texts[0] == texts[1]
    train(tmp_path / "a", **as_numpy, lam=np.float32(2), resume=True)
    load_model(tmp_path / "a", which="ema")


def test_an_out_without_a_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    for words in (["train", "--data", "digits"], ["extract", "--data", "x"], ["plot", "a"]):
        with pytest.raises(SystemExit) as end:
            main([*words, "--out", ""])
        assert end.value.code == 2
        assert f"hrrl {words[0]}: error: --out is empty; name" in capsys.readouterr().err
    for make in (lambda: WorkFolder("", "a test", "x"), lambda: HRRLTrainer("convnet", out="", **SETTINGS)):  # fmt: skip
        with pytest.raises(ValueError, match="out must name a folder, got ''"):
            make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["a bit", "half", "missing", "another number"])
def test_damaged_metrics_are_named_and_written_anew(tmp_path: Path, damage: str) -> None:
    """Of a run that is through as well: its checkpoint has them."""
    train(tmp_path, epochs=2)
    file = tmp_path / "metrics.jsonl"
    whole, others = file.read_bytes(), (tmp_path / "metrics.csv").read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    broken = {
        "a bit": bytes([whole[0] ^ 8, *whole[1:]]),
        "half": whole[: len(whole) * 3 // 4],
        "another number": whole.replace(b'"epoch": 2', b'"epoch": 3'),
    }
    file.unlink() if damage == "missing" else file.write_bytes(broken[damage])
    assert damage == "missing" or broken[damage] != whole
    if damage in ("a bit", "half"):
        line = 1 if damage == "a bit" else 2
        with pytest.raises(
            ValueError, match=rf"metrics.jsonl, line {line} .*--resume writes it anew"
        ):
            read_history(file)
    with pytest.warns(
        UserWarning, match=r"metrics.jsonl was damaged: .*written anew from the check"
    ):
        train(tmp_path, epochs=2, resume=True)
    assert read_history(file) == rows
    assert (file.read_bytes(), (tmp_path / "metrics.csv").read_bytes()) == (whole, others)
