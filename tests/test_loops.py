"""Algorithm 1 in other frameworks' loops is what it is in a plain one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hrrl_ext import HRRLObjective

EXAMPLES = Path(__file__).parent.parent / "examples"
EPOCHS = 2  # of 21 steps
Players = tuple[nn.Module, HRRLObjective]


def batches(batch_size: int = 64) -> DataLoader[Any]:
    """In a fixed order: Lightning opens a loader more than once per epoch, which moves a shuffle on."""
    from plain_loop import digits

    return DataLoader(digits().dataset, batch_size, drop_last=True)


def players(normalised: bool = True) -> Players:
    """Those of the example; without batch normalisation the parts of a batch do not see each other."""
    from plain_loop import players

    model, objective = players(batches())
    if not normalised:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 10))
    return model, objective


def plain(normalised: bool = True) -> Players:
    from plain_loop import train

    model, objective = players(normalised)
    train(model, objective, batches(), EPOCHS)
    return model, objective


def lightning(batch_size: int = 64, accumulate: int = 1, normalised: bool = True) -> Players:
    pytest.importorskip("lightning")
    from lightning_loop import HRRLModule, train

    module = HRRLModule(*players(normalised))
    train(
        module, batches(batch_size), EPOCHS, accumulate_grad_batches=accumulate, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    assert {"objective.distribution.q", "objective.distribution.t"} <= module.state_dict().keys()
    return module.model, module.objective


def accelerate(batch_size: int = 64, accumulate: int = 1, normalised: bool = True) -> Players:
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate_loop import train

    model, objective = players(normalised)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    train(accelerator, model, objective, batches(batch_size), EPOCHS)
    accelerator.free_memory()
    return model, objective


@pytest.mark.slow
@pytest.mark.parametrize("loop", [lightning, accelerate])
def test_a_framework_changes_nothing(loop):
    """The same operators on the same batches in the same order: to the bit."""
    model, objective = loop()
    expected_model, expected = plain()
    assert expected.distribution.t == 42
    assert (expected.distribution.q - 0.1).abs().max() > 1e-3  # q has moved
    for ours, theirs in ((objective, expected), (model, expected_model)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("loop", [lightning, accelerate])
def test_accumulated_parts_are_one_batch(loop):
    """Sums over a batch are taken in another order: rounding of float32, over 42 steps."""
    model, objective = loop(batch_size=32, accumulate=2, normalised=False)
    expected_model, expected = plain(normalised=False)
    assert objective.distribution.t == expected.distribution.t == 42
    torch.testing.assert_close(
        objective.distribution.q, expected.distribution.q, rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(
        model.state_dict(), expected_model.state_dict(), rtol=1e-4, atol=1e-5
    )


CHECKPOINT = 30  # of 42 steps: within the second epoch


def test_lightning_goes_on_within_an_epoch(tmp_path: Path) -> None:
    """By a loader with a state, shuffled: to the bit."""
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning_loop import HRRLModule, Resumable, train

    from hrrl_ext.data import Batches, load_images

    images = load_images("digits").subset(range(21 * 16))
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": True,
    }  # fmt: skip
    ended = []
    for ckpt_path in (None, str(tmp_path / "within.ckpt")):
        loader = Resumable(Batches(images, images.target, 16, shuffle=True, seed=3))
        module = HRRLModule(*players(normalised=False))
        save = ModelCheckpoint(tmp_path, "within", every_n_train_steps=CHECKPOINT)
        train(module, loader, EPOCHS, ckpt_path=ckpt_path, callbacks=[save], **quiet)
        ended.append(module.state_dict())
        assert module.objective.distribution.t == 42
    torch.testing.assert_close(ended[1], ended[0], rtol=0, atol=0)


def test_accelerate_goes_on_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate_loop import train

    update, ended = HRRLObjective.update, []
    for folder in (None, tmp_path / "state"):
        accelerator = Accelerator(cpu=True)
        if folder is None:

            def saving(objective: HRRLObjective, *losses: Any) -> None:
                update(objective, *losses)
                if objective.distribution.t == CHECKPOINT:
                    accelerator.save_state(str(tmp_path / "state"))  # noqa: B023

            monkeypatch.setattr(HRRLObjective, "update", saving)
        model, objective = players(normalised=False)
        done = 0 if folder is None else CHECKPOINT
        train(accelerator, model, objective, batches(), EPOCHS, folder=folder, done=done)
        ended.append((model.state_dict(), objective.state_dict()))
        assert objective.distribution.t == 42
        accelerator.free_memory()
        monkeypatch.undo()
    for ours, theirs in zip(*ended, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


@pytest.mark.slow
def test_the_plain_loop_is_the_trainers():
    """Same batches, same steps: what the trainer computes is no more than the loop."""
    from hrrl_ext import HRRLTrainer

    model, _ = players()
    trainer = HRRLTrainer(
        model, data="digits", concepts="classes", tau=0.05, lam=10.0, lr=0.05, device="cpu",
        progress="off",
    )  # fmt: skip
    loader = batches()
    model.train()
    for _ in range(EPOCHS):
        for batch in loader:
            trainer.train_step(*batch)
    expected_model, expected = plain()
    torch.testing.assert_close(model.state_dict(), expected_model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        trainer.objective.distribution.q, expected.distribution.q, rtol=0, atol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "lightning", "accelerate"])
def test_a_script_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """As a user starts it, with one epoch; it prints q."""
    if name != "plain":
        pytest.importorskip(name)
    for path in EXAMPLES.glob("*_loop.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("epochs=5") == 1
        (tmp_path / path.name).write_text(text.replace("epochs=5", "epochs=1"), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, f"{name}_loop.py"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    q = [float(number) for number in re.findall(r"[\d.]+", done.stdout.rpartition("q [")[2])]
    assert len(q) == 10
    assert sum(q) == pytest.approx(1, abs=10 * 0.0005)  # printed to three digits
