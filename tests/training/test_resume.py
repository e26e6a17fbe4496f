"""A run that was stopped, at any moment and by any means, ends with the bits of one that was not."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.retrieval import RetrievalTrainer, load_pairs

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
        {"concepts": "clusters:6,every=1,rounds=3,refresh_rounds=2", "c": "auto"},
        {"tau": "theorem2", "precision": "bf16", "accumulate": 2},
        {"adversary": "chi_square", "lam": 0.3, "rho": 0.5, "accumulate": 2},
        {"example_level": "stored", "c": "auto", "channels_last": True},
        {"example_level": "stored", "stored_bits": 1, "precision": "fp16", "accumulate": 2},
        {"augmix": 3, "tau": 0.0},
        {"augmix": 3, "jsd": 12.0, "accumulate": 2},
        {"example_level": "stored", "stored_resolution": 3},
        {"example_level": "stored", "concepts": "clusters:6,every=1,rounds=3,refresh_rounds=2"},
        {"sampling": "class", "balance": 0.5, "focal": 2.0, "example_steps": 2},
        {"sampling": "concept", "concepts": "clusters:6,every=1,rounds=3,refresh_rounds=2"},
        {"logit_adjustment": 1.0, "lam": None},
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


PAIRS = load_pairs("emoji", split="val", image_size=8)
JOINT: dict[str, Any] = {
    "data": PAIRS, "validation": PAIRS, "width": 2, "dim": 8, "word_dim": 4, "text_width": 6, "epochs": 2,
    "device": "cpu", "progress": "off",
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_loss": "semi_hard", "warmup_for": "4 steps"},
        {"freeze": True, "preset": "Order0"},
        {"loss": "sigmoid", "precision": "bf16", "flip": True, "crop_padding": 1, "num_workers": 2},
        {"loss": "info_nce", "precision": "fp16", "ema": 0.9, "evaluate_every": "2 steps"},
        {"negatives": 30, "channels_last": True},
    ],
    ids=str,
)
def test_joint_embeddings_within_an_epoch(tmp_path: Path, settings: dict[str, Any]) -> None:
    """As above, after 3 of 8 steps; and again in the second epoch."""

    def begin(out: Path, resume: bool = False) -> RetrievalTrainer:
        torch.manual_seed(3 if not resume else 99)
        return RetrievalTrainer(
            "convnet", **JOINT | settings, out=out, resume=resume, checkpoint_every=2
        )  # fmt: skip

    def came_to(trainer: RetrievalTrainer) -> list[Any]:
        rows = [{k: v for k, v in r.items() if k not in CLOCK} for r in trainer.history]
        return [rows, [value.tolist() for value in trainer.model.state_dict().values()]]

    whole = begin(tmp_path / "whole")
    assert len(whole.batches) == 8
    whole.fit()
    trainer = begin(tmp_path / "cut")
    for steps in (3, 6):
        stop_after(trainer, steps)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer = begin(tmp_path / "cut", resume=True)
    trainer.fit()
    assert came_to(trainer) == came_to(whole)


def stop_after(trainer: HRRLTrainer | RetrievalTrainer, steps: int | None) -> None:
    step = trainer.recipe.step
    done = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        return step(*arguments)

    trainer.recipe.step = counted  # type: ignore[assignment]


SCRIPT = """
import json, sys, torch
sys.path.insert(0, {folder!r})
from test_resume import JOINT, SETTINGS, HRRLTrainer, Net, RetrievalTrainer
out, settings, resume = sys.argv[1], json.loads(sys.argv[2]), len(sys.argv) > 3
torch.manual_seed(3)
run = dict(out=out, resume=resume, checkpoint_every=3)
if settings.pop("joint", False):
    trainer = RetrievalTrainer("convnet", **JOINT | {{"epochs": 6}} | settings, **run)
else:
    trainer = HRRLTrainer(Net(), **SETTINGS | {{"epochs": 12}} | settings, **run)
print("ready", flush=True)
trainer.fit()
"""


def start_processes(out: Path, way: Way, resume: bool = False) -> list[subprocess.Popen[str]]:
    """All processes of one run, those of several connected as torchrun connects them."""
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    arguments = [str(out), json.dumps(way.settings), *(["resume"] if resume else [])]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(way.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank)} | together,
        )
        for rank in range(way.processes)
    ]


def wait_until_ready(running: list[subprocess.Popen[str]]) -> None:
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"


@dataclass(frozen=True)
class Way:
    """to run a training"""

    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


WAYS = {
    "plain": Way(),
    "workers": Way({"num_workers": 2}),
    "fp16": Way({"precision": "fp16", "accumulate": 2}),
    "clusters": Way({"concepts": "clusters:6,every=2,rounds=3,refresh_rounds=1"}),
    "two processes, workers, bf16": Way({"num_workers": 2, "precision": "bf16"}, 2),
    "two processes, chi-square": Way({"adversary": "chi_square", "lam": 0.3}, 2),
    "two processes, stored": Way({"example_level": "stored"}, 2),
    "two processes, balanced": Way({"sampling": "concept"}, 2),
    "joint embedding": Way({"joint": True, "warmup_loss": "sum_hinge"}),
    "two processes, joint embedding": Way({"joint": True, "loss": "sigmoid"}, 2),
}


def final(out: Path) -> dict[str, Any]:
    newest = sorted((out / "checkpoints").iterdir())[-1]
    state = torch.load(newest / "state.pt", weights_only=True)
    for row in state["history"]:
        for name in CLOCK:
            del row[name]
    weights = load_file(newest / "model.safetensors")
    return {
        "weights": {name: value.tolist() for name, value in weights.items()},
        "adversary": {name: t.tolist() for name, t in state.get("objective", {}).items()},
        "rng": [rng.tolist() for rng in state["rng"]],
        "history": state["history"],
        "directions": {name: t.tolist() for name, t in state.get("directions", {}).items()},
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_kills_at_random_moments(tmp_path: Path, way: Way) -> None:
    """SIGKILL to the real processes, again and again until a run is through; then the next run, until
    there were enough of them. HRRL_KILLS=50 asks for more."""
    whole = tmp_path / "whole"
    running = start_processes(whole, way)
    wait_until_ready(running)
    begun = time.monotonic()
    assert [process.wait() for process in running] == [0] * way.processes
    longest = (time.monotonic() - begun) / 4  # three epochs
    chance, kills, wanted = random.Random(0), 0, int(os.environ.get("HRRL_KILLS", "3"))
    for run in itertools.count():
        cut = tmp_path / f"cut-{run}"
        while True:
            running = start_processes(cut, way, resume=(cut / "config.json").exists())
            wait_until_ready(running)
            if kills < wanted:
                time.sleep(chance.uniform(0.0, longest))
                for process in running:
                    process.send_signal(signal.SIGKILL)
            status = {process.wait() for process in running}
            if -signal.SIGKILL not in status:
                break
            kills += 1
        assert status == {0}
        assert final(cut) == final(whole)
        if kills == wanted:
            return


@pytest.mark.slow
def test_sigterm_saves_and_exits(tmp_path: Path) -> None:
    whole, cut, way = tmp_path / "whole", tmp_path / "cut", Way({"epochs": 30})
    (running,) = start_processes(whole, way)
    assert running.wait() == 0
    (running,) = start_processes(cut, way)
    while not list((cut / "checkpoints").glob("step-*")):  # it trains, and is far from through
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert running.stdout is not None
    said = running.stdout.read()
    assert running.wait() == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: saved in" in said
    (running,) = start_processes(cut, way, resume=True)
    assert running.wait() == 0
    assert final(cut) == final(whole)
