"""Algorithm 1 in Lightning, by its automatic optimisation: accumulation, DDP and precision stay its own.

pip install lightning
python examples/lightning_loop.py
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from plain_loop import Loader, digits, players
from torch import Tensor, nn

import hrrl_ext


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


def train(module: HRRLModule, loader: Loader, epochs: int, **options: Any) -> None:
    options = {"logger": False, "enable_checkpointing": False} | options
    lightning.Trainer(max_epochs=epochs, **options).fit(module, loader)


if __name__ == "__main__":
    loader = digits()
    module = HRRLModule(*players(loader))
    train(module, loader, epochs=5)
    print("q", [round(q, 3) for q in module.objective.distribution.q.tolist()])
