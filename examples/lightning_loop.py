"""Algorithm 1 in Lightning, by its automatic optimisation: accumulation, DDP and precision stay its own.

pip install lightning
python examples/lightning_loop.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from plain_loop import Loader, digits, players
from torch import Tensor, nn

import hrrl_ext
from hrrl_ext.data import Batches


class HRRLModule(lightning.LightningModule):
    def __init__(self, model: nn.Module, objective: hrrl_ext.HRRLObjective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective  # a submodule: q moves to the device and into the checkpoints
        self.concept_losses: list[Tensor] = []  # of the parts of one step

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], number: int) -> Tensor:
        x, target, concept = batch
        x = self.objective.perturb(self.model, x, target)  # line 9; no gradient of a weight
        out = self.objective(self.model(x), target, concept)
        self.concept_losses.append(out.concept_loss)
        return out.loss  # Lightning does the backward pass and line 10

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Once per step, whatever it accumulates: the parts, and the processes, are of one size."""
        mean = torch.stack(self.concept_losses).mean(0)
        self.concept_losses.clear()
        self.objective.update(self.trainer.strategy.reduce(mean, reduce_op="mean"))  # line 11

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


class Resumable:
    """Epochs of batches that a checkpoint within one brings back where they were: Lightning keeps the
    state of a loader that has one, and begins a DataLoader's epoch anew."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.epoch, self.done = batches, 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in self.batches.epoch(self.epoch, self.done):
            self.done += 1
            if self.done == len(self):  # before the last batch: Lightning asks for no more
                self.epoch, self.done = self.epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.done = state["epoch"], state["done"]


def train(
    module: HRRLModule,
    loader: Loader | Resumable,
    epochs: int,
    ckpt_path: str | None = None,
    **options: Any,
) -> None:
    options = {"logger": False, "enable_checkpointing": False} | options
    lightning.Trainer(max_epochs=epochs, **options).fit(module, loader, ckpt_path=ckpt_path)


if __name__ == "__main__":
    loader = digits()
    module = HRRLModule(*players(loader))
    train(module, loader, epochs=5)
    print("q", [round(q, 3) for q in module.objective.distribution.q.tolist()])
