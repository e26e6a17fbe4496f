"""An epoch of HRRLTrainer against its bare steps on the same batches, made beforehand.

What the trainer adds is fetching and augmenting the batches, the sums of the epoch and a look at the loss
now and then. The bar is 5 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from places import Place
from torch import Tensor

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import ArrayImages
from hrrl_ext.training.progress import Progress
from hrrl_ext.training.stopping import Stopping

CLASSES, BATCH, SIDE, STEPS, ROUNDS = 100, 64, 32, 8, 6


@dataclass(frozen=True)
class LoopCase:
    precision: str
    channels_last: bool
    width: int = 16

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"resnet18-w{self.width}-{self.precision}-{layout}"

    def trainer(self, device: str) -> HRRLTrainer:
        g = torch.Generator().manual_seed(0)
        images = torch.randint(256, (STEPS * BATCH, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        return HRRLTrainer(
            data=ArrayImages(images, torch.arange(len(images)) % CLASSES),
            concepts=(torch.arange(len(images)) % CLASSES % 20).tolist(),
            tau=0.3,
            lam=20.0,
            lr=1e-3,
            epochs=1,
            batch_size=BATCH,
            width=self.width,
            precision=self.precision,
            channels_last=self.channels_last,
            device=device,
            progress="off",
        )


def bare_steps(case: LoopCase, device: str) -> Callable[[], Tensor]:
    """Algorithm 1 and nothing else."""
    trainer = case.trainer(device)
    model, objective, optimizer = trainer.model, trainer.objective, trainer.optimizer
    batches = list(trainer.batches.epoch(0))
    if case.channels_last:
        batches = [(x.contiguous(memory_format=torch.channels_last), y, k) for x, y, k in batches]
    model.train()

    def epoch() -> Tensor:
        for x, target, concept in batches:
            with torch.autocast(
                trainer.device.type, torch.bfloat16, enabled=case.precision == "bf16"
            ):
                logits = model(objective.perturb(model, x, target))
            out = objective(logits, target, concept)
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            optimizer.step()
            objective.update(out.concept_loss)
        return objective.distribution.q.clone()

    return epoch


def whole_loop(case: LoopCase, device: str) -> Callable[[], Tensor]:
    """The loop of HRRLTrainer.fit, epoch 0 again and again."""
    trainer = case.trainer(device)
    progress, stopping = Progress("off", STEPS), Stopping(trainer.processes)

    def epoch() -> Tensor:
        trainer.loop.step, trainer.loop.history = 0, []
        trainer.loop._epoch(progress, stopping)
        return trainer.objective.distribution.q.clone()

    return epoch


EPOCHS = {"bare": bare_steps, "ours": whole_loop}


@pytest.mark.parametrize("provider", EPOCHS)
@pytest.mark.parametrize(
    "case", [LoopCase("fp32", channels_last=False), LoopCase("bf16", channels_last=True)], ids=str
)
def test_training_loop(
    case: LoopCase, provider: str, place: Place, measure: Callable[..., None]
) -> None:
    expected = bare_steps(case, place.device)()
    # bfloat16 has rounding of its own, and on a GPU cuDNN may pick another algorithm.
    tolerance = 1e-9 if case.precision == "fp32" and place.device == "cpu" else 1e-3

    def check(q: Tensor) -> None:  # the same images, perturbation, weights and steps of q
        torch.testing.assert_close(q, expected, rtol=0, atol=tolerance)

    measure(
        EPOCHS[provider](case, place.device),
        check,
        op="training_loop",
        case=case,
        provider=provider,
        rounds=ROUNDS,
        shape=(STEPS * BATCH, 3, SIDE, SIDE),
        dtype=case.precision,
    )
