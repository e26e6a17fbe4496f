"""A run that was stopped, at any moment and by any means, ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from crops import Crops
from safetensors.torch import load_file
from torch import Tensor, nn
from torchrun import FORKS, connected, forked

from hrrl_ext import HRRLTrainer, URRLTrainer
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.data.folders import DecodedImages
from hrrl_ext.models import ConvNet
from hrrl_ext.retrieval import RetrievalTrainer, load_pairs
from hrrl_ext.retrieval.model import without_classifier
from hrrl_ext.training.loop import Loop

DIGITS = load_images("digits", split="train").subset(range(100))


class Shards(ArrayImages):
    """Images that are in three files."""

    @property
    def shards(self) -> Sequence[Tensor]:
        return torch.arange(len(self)).split([50, 20, 30])


class Pictures(DecodedImages):
    """Images that are pictures of other sizes, as if they lay in files."""

    def _open(self, source: int) -> Any:
        from PIL import Image

        digit = DIGITS.images[source].permute(1, 2, 0).numpy()
        return Image.fromarray(digit).resize((12 + source % 5, 20))


PICTURES: dict[str, Any] = {
    "data": Pictures(range(100), DIGITS.target, image_size=8, classes=DIGITS.classes, name="pictures"),
    "crop_of": "picture", "keep_gib": 1.0,
}  # fmt: skip
BUFFERED: dict[str, Any] = {
    "data": Shards(DIGITS.__getitems__(range(100))[0], DIGITS.target, name="digits"), "shuffle_buffer": 25,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "data": DIGITS, "validation": DIGITS, "concepts": "classes", "tau": 0.1, "lam": 20.0,
    "epochs": 2, "batch_size": 16, "lr": 0.05, "crop_padding": 1, "device": "cpu", "progress": "off",
}  # fmt: skip

PRETRAINING: dict[str, Any] = {
    "data": DIGITS, "validation": DIGITS, "views": Crops(), "epochs": 2, "batch_size": 16, "queue": 40,
    "dim": 8, "lr": 0.01, "temperature": 0.1, "norm_groups": 4, "key_momentum": 0.9, "device": "cpu", "progress": "off",
}  # fmt: skip

PAIRS = load_pairs("emoji", split="val", image_size=8)
JOINT: dict[str, Any] = {
    "data": PAIRS, "validation": PAIRS, "width": 2, "dim": 8, "word_dim": 4, "text_width": 6, "epochs": 2,
    "device": "cpu", "progress": "off",
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


def pretrain(
    out: Path, resume: bool = False, model: str | None = None, **settings: Any
) -> URRLTrainer:
    torch.manual_seed(3 if not resume else 99)
    return URRLTrainer(
        model or Net(), **(PRETRAINING | settings), out=out, resume=resume, checkpoint_every=2
    )


def join(out: Path, resume: bool = False, **settings: Any) -> RetrievalTrainer:
    torch.manual_seed(3 if not resume else 99)
    # A module's weights are others as a run goes on, until those of its checkpoint are there.
    model = without_classifier(ConvNet(1, width=2)) if settings.get("freeze") else "convnet"
    return RetrievalTrainer(model, **(JOINT | settings), out=out, resume=resume, checkpoint_every=2)


START: dict[str, Callable[..., HRRLTrainer | URRLTrainer | RetrievalTrainer]] = {
    "HRRL": start, "URRL": pretrain, "VSE": join,
}  # fmt: skip


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
        {"resized_crop": 0.2, "erasing": 0.5, "mixup": 0.4, "accumulate": 2, **PICTURES},
        {"augmix": 3, "jsd": 12.0, "accumulate": 2},
        {"example_level": "stored", "stored_resolution": 3},
        {"example_level": "stored", "concepts": "clusters:6,every=1,rounds=3,refresh_rounds=2"},
        {"sampling": "class", "balance": 0.5, "focal": 2.0, "example_steps": 2},
        {"sampling": "concept", "concepts": "clusters:6,every=1,rounds=3,refresh_rounds=2"},
        {"logit_adjustment": 1.0, "lam": None, **BUFFERED},
    ],
    ids=str,
)
def test_within_an_epoch(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Stopped before the first checkpoint of a step; after 3 steps more of 7, with one at the second; and
    again in the second epoch."""
    whole = start(tmp_path / "whole", **settings)
    whole.fit()
    trainer = start(tmp_path / "cut", **settings)
    for steps in (1, 3, 6, None):
        stop_after(trainer, steps)
        if steps is None:
            trainer.fit()
            break
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer = start(tmp_path / "cut", resume=True, **settings)
    assert result(trainer) == result(whole)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        # The queue, which wraps in the third step, the key encoder and the shuffles as well.
        ("URRL", {}),
        ("URRL", {"views": "urrl", "num_workers": 2, "ema": 0.5, **BUFFERED}),
        ("URRL", {"precision": "bf16", "channels_last": True}),
        ("URRL", {"precision": "fp16", "accumulate": 2}),
        ("URRL", {"method": "instdis", "views": "augmix", "num_workers": 1, **PICTURES}),  # the memory
        ("URRL", {"method": "pirl", "jigsaw_side": 2, "model": "convnet", "width": 4, "accumulate": 2}),
        ("VSE", {"warmup_loss": "semi_hard", "warmup_for": "4 steps"}),
        # A start that is kept, before the first clustering; then two of them.
        ("VSE", {"freeze": True, "preset": "Order0", "lam": 50.0, "c": "auto",
                 "concepts": "clusters:6,every=1,rounds=3,refresh_rounds=2"}),
        ("VSE", {"loss": "sigmoid", "precision": "bf16", "flip": True, "crop_padding": 1, "num_workers": 2}),
        ("VSE", {"loss": "info_nce", "precision": "fp16", "ema": 0.9, "evaluate_every": "2 steps"}),
        ("VSE", {"negatives": 30, "channels_last": True}),
        ("VSE", {"queue": 500, "flip": True}),  # it goes round in the second epoch
        ("VSE", {"concepts": "classes", "lam": 2.0, "c": "auto", "tau": 0.1, "flip": True}),
        ("VSE", {"concepts": "classes", "lam": 50.0, "tau": 0.1, "precision": "fp16", "loss": "sum_hinge"}),
    ],
    ids=str,
)  # fmt: skip
def test_within_an_epoch_of_others(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    """As above, of 7 steps or 8."""
    begin = START[method]
    begin(tmp_path / "whole", **settings).fit()
    trainer = begin(tmp_path / "cut", **settings)
    for steps in (1, 3, 6):
        stop_after(trainer, steps)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer = begin(tmp_path / "cut", resume=True, **settings)
    trainer.fit()
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


def stop_after(trainer: HRRLTrainer | URRLTrainer | RetrievalTrainer, steps: int | None) -> None:
    step = trainer.recipe.step
    done = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        return step(*arguments)

    trainer.recipe.step = counted  # type: ignore[assignment]


def train(out: Path, way: Way, resume: bool, together: dict[str, str], ready: Connection) -> None:
    forked(together)
    said = out.with_suffix(".txt").open("a", encoding="utf-8")
    with said, contextlib.redirect_stdout(said):
        trainer = START[way.method](out, resume, **({"epochs": 12} | way.settings))
        ready.send(True)
        trainer.fit()


def start_processes(out: Path, way: Way, resume: bool = False) -> list[ForkServerProcess]:
    """All processes of one run, those of several connected as torchrun connects them, ready to train."""
    running = []
    for together in connected(way.processes):
        ready, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=train, args=(out, way, resume, together, theirs))
        process.start()
        theirs.close()  # so that its end is told
        running.append((process, ready))
    for _, ready in running:
        assert ready.recv()
    return [process for process, _ in running]


def ends(running: list[ForkServerProcess]) -> list[int | None]:
    for process in running:
        process.join()
    return [process.exitcode for process in running]


@dataclass(frozen=True)
class Way:
    """to run a training"""

    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    method: str = "HRRL"


# Of each method that is cut on one process above, one of its ways is killed on two.
WAYS = {
    "plain": Way(),
    "fp16": Way({"precision": "fp16", "accumulate": 2}),
    "clusters": Way({"concepts": "clusters:6,every=2,rounds=3,refresh_rounds=1"}),
    "two processes, workers, bf16": Way({"epochs": 6, "num_workers": 2, "precision": "bf16"}, 2),
    "two processes, chi-square": Way({"adversary": "chi_square", "lam": 0.3}, 2),
    "two processes, stored": Way({"example_level": "stored"}, 2),
    "two processes, balanced": Way({"sampling": "concept"}, 2),
    "pretraining, two processes": Way(processes=2, method="URRL"),
    "memory and views of URRL, two processes": Way(
        {
            "epochs": 4,
            "method": "pirl",
            "jigsaw_side": 2,
            "views": "urrl",
            "model": "convnet",
            "width": 4,
        },
        processes=2,
        method="URRL",
    ),
    "joint embedding, two processes": Way({"epochs": 6, "loss": "sigmoid"}, 2, method="VSE"),
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
        "recipe": {
            f"{of} {name}": t.tolist()
            for of in ("objective", "keys", "queue", "memory")
            for name, t in state.get(of, {}).items()
        },
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
    begun = time.monotonic()
    assert ends(running) == [0] * way.processes
    longest = (time.monotonic() - begun) / 4  # three epochs
    chance, kills, wanted = random.Random(0), 0, int(os.environ.get("HRRL_KILLS", "2"))
    for run in itertools.count():
        cut = tmp_path / f"cut-{run}"
        while True:
            running = start_processes(cut, way, resume=(cut / "config.json").exists())
            if kills < wanted:
                time.sleep(chance.uniform(0.0, longest))
                for process in running:
                    process.kill()
            status = set(ends(running))
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
    assert ends(start_processes(whole, way)) == [0]
    (running,) = start_processes(cut, way)
    # It trains, and is far from through.
    while not list((cut / "checkpoints").glob("step-*[1-9]*")):
        assert running.is_alive()
        time.sleep(0.01)
    running.terminate()
    assert ends([running]) == [128 + signal.SIGTERM]
    assert "stopped by SIGTERM: saved in" in (tmp_path / "cut.txt").read_text(encoding="utf-8")
    assert ends(start_processes(cut, way, resume=True)) == [0]
    assert final(cut) == final(whole)


def test_sigterm_while_the_start_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's first checkpoint is of step 0: from its first file on, a run ends as it promises."""
    save = Loop._save

    def signalled(loop: Loop) -> None:
        save(loop)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer = start(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save", signalled)
        with pytest.raises(SystemExit) as left:
            trainer.fit()
    assert left.value.code == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000000"]
    assert len(start(tmp_path, resume=True).fit().history) == SETTINGS["epochs"]
