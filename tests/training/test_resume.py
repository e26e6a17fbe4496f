"""A run that was stopped, at any moment and by any means, ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hrrl_ext.data import load_images
from hrrl_ext.training import HRRLTrainer

DIGITS = load_images("digits", split="train").subset(range(100))
SETTINGS: dict[str, Any] = {
    "data": DIGITS, "validation": DIGITS, "concepts": "classes", "tau": 0.1, "lam": 20.0,
    "epochs": 2, "batch_size": 16, "lr": 0.05, "crop_padding": 1, "device": "cpu", "progress": "off",
}  # fmt: skip

CLOCK = ("images_per_second", "seconds")


class Net(nn.Module):
    """Batch normalisation and dropout: running statistics and random state must survive as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()
        )
        self.head = nn.Linear(216, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def start(out: Path, resume: bool = False, **settings: Any) -> HRRLTrainer:
    torch.manual_seed(3 if not resume else 99)  # whatever the new process did before
    return HRRLTrainer(Net(), **(SETTINGS | settings), out=out, resume=resume, checkpoint_every=2)


def result(trainer: HRRLTrainer) -> list[Any]:
    rows = [{k: v for k, v in r.items() if k not in CLOCK} for r in trainer.history]
    state = [*trainer.model.state_dict().values(), *trainer.objective.state_dict().values()]
    return [rows, [value.tolist() for value in state]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_workers": 2},
        {"precision": "bf16"},
        {"precision": "fp16", "accumulate": 2},
        {"c": "auto", "channels_last": True},
    ],
    ids=str,
)
def test_within_an_epoch(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Stopped after 3 of 7 steps, with a checkpoint at the second; and again in the second epoch."""
    whole = start(tmp_path / "whole", **settings)
    whole.fit()
    trainer = start(tmp_path / "cut", **settings)
    for steps in (3, 6, None):
        stop_after(trainer, steps)
        if steps is None:
            trainer.fit()
            break
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer = start(tmp_path / "cut", resume=True, **settings)
    assert result(trainer) == result(whole)


def stop_after(trainer: HRRLTrainer, steps: int | None) -> None:
    step = trainer.train_step
    done = 0

    def counted(*arguments: Any, **options: Any) -> Tensor:
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        return step(*arguments, **options)

    trainer.train_step = counted  # type: ignore[method-assign]


SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_resume import SETTINGS, Net, HRRLTrainer
out, resume = sys.argv[1], len(sys.argv) > 2
torch.manual_seed(3)
trainer = HRRLTrainer(Net(), **(SETTINGS | {{"epochs": 12}}), out=out, resume=resume, checkpoint_every=3)
print("ready", flush=True)
trainer.fit()
"""


def process(*arguments: str) -> subprocess.Popen[str]:
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def final(out: Path) -> dict[str, Any]:
    newest = sorted((out / "checkpoints").iterdir())[-1]
    state = torch.load(newest / "state.pt", weights_only=True)
    for row in state["history"]:
        for name in CLOCK:
            del row[name]
    weights = load_file(newest / "model.safetensors")
    return {
        "weights": {name: value.tolist() for name, value in weights.items()},
        "q": state["objective"]["distribution.q"].tolist(),
        "rng": state["rng"][0].tolist(),
        "history": state["history"],
    }


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL to a real process, again and again until it is through. HRRL_KILLS=50 asks for more."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert process(str(whole)).wait() == 0
    chance, kills, wanted = random.Random(0), 0, int(os.environ.get("HRRL_KILLS", "3"))
    while True:
        begun = (cut / "config.json").exists()
        running = process(str(cut), *(["resume"] if begun else []))
        assert running.stdout is not None
        running.stdout.readline()
        if kills < wanted:
            time.sleep(chance.uniform(0.0, 0.4))
            running.send_signal(signal.SIGKILL)
        status = running.wait()
        kills += status == -signal.SIGKILL
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert kills == wanted
    assert final(cut) == final(whole)


@pytest.mark.slow
def test_sigterm_saves_and_exits(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert process(str(whole)).wait() == 0
    running = process(str(cut))
    assert running.stdout is not None
    running.stdout.readline()
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    said = running.stdout.read()
    assert running.wait() == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: saved in" in said
    assert process(str(cut), "resume").wait() == 0
    assert final(cut) == final(whole)
