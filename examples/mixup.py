"""A method of your own on the library's training loop: plain training on mixtures of two images.

    python examples/mixup.py runs/mixup

The loop brings epochs, files, exact resumption, precision, processes, optimisers and schedules, and
hrrl_ext.data the mixtures; the method is what a step computes and what an epoch reports. (HRRLTrainer
has mixup as a setting, for both its levels.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrrl_ext
from hrrl_ext import data
from hrrl_ext.data import Batches, load_images
from hrrl_ext.evaluation import accuracy
from hrrl_ext.processes import start_processes
from hrrl_ext.training import Loop, Recipe, RunFolder, TrainingConfig


class Mixup(Recipe):
    """min_θ E ℓ(a x_i + (1 - a) x_j, a y_i + (1 - a) y_j; θ),  a ~ Beta(α, α)   (Zhang et al., 2018)."""

    def __init__(self, model: nn.Module, batches: Batches, validation: Batches) -> None:
        self.model, self.batches, self.validation = model, batches, validation
        self.loss = torch.zeros(2)  # its sum over the steps of the epoch, and their number

    def step(self, batch: tuple[Tensor, ...], move: Callable[..., Tensor]) -> None:
        x, target, _, a, other, _ = batch
        loss = move(self.losses, x, target, a, other)
        self.loss += torch.stack([loss, torch.ones(())])

    def losses(
        self, model: nn.Module, x: Tensor, target: Tensor, a: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = model(x)
        loss = a * F.cross_entropy(logits, target, reduction="none")
        loss = (loss + (1 - a) * F.cross_entropy(logits, other, reduction="none")).mean()
        return loss, loss.detach()

    def row(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        loss, steps = self.loss.tolist()
        self.loss = torch.zeros(2)
        return {"loss": loss / steps, **measured}

    def line(self, row: Mapping[str, Any]) -> str:
        return "  ".join(f"{name} {row[name]:.3f}" for name in ("loss", "accuracy") if name in row)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        return {"accuracy": accuracy(model, self.validation, num_concepts=1).average}

    def description(self) -> dict[str, Any]:
        images = self.batches.images
        model = {"model": "resnet18", "width": 16, "image_size": images.image_shape[-1]}
        return {**model, "data": images.name, "classes": list(images.classes)}

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loss = state["loss"]


def loop(out: str, resume: bool = False, **settings: Any) -> Loop:
    """The recipe on the loop: what HRRLTrainer does for HRRL."""
    config = TrainingConfig(**{"epochs": 5, "batch_size": 64, "lr": 0.05} | settings)
    processes, device = start_processes("cpu")
    train, validation = (
        Batches(
            images := load_images("digits", split=split),
            torch.zeros_like(images.target),
            config.batch_size,
            shuffle=split == "train",
            mixup=data.Mixup(alpha=0.2) if split == "train" else None,
            seed=config.seed,
            device=device,
            processes=processes,
        )
        for split in ("train", "test")
    )
    torch.manual_seed(config.seed)
    recipe = Mixup(hrrl_ext.resnet18(10, stem="small", width=16), train, validation)
    return Loop(
        recipe, config, processes=processes, device=device, run=RunFolder(out), resume=resume
    )


if __name__ == "__main__":
    loop(sys.argv[1], resume="--resume" in sys.argv[2:]).fit()
