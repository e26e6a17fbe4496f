"""Algorithm 1 in accelerate: several processes, accumulation and precision stay its own.

pip install accelerate
accelerate launch examples/accelerate_loop.py
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from plain_loop import Loader, digits, players
from torch import nn

import hrrl_ext


def train(
    accelerator: Accelerator,
    model: nn.Module,
    objective: hrrl_ext.HRRLObjective,
    loader: Loader,
    epochs: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    done: int = 0,
) -> None:
    """``folder``: of accelerator.save_state after ``done`` batches, to go on from within an epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    objective.to(accelerator.device)
    accelerator.register_for_checkpointing(objective)  # q and its counter
    if folder is not None:
        accelerator.load_state(os.fspath(folder))
    model.train()
    parts = []  # ĝ of the parts of one step; parts, and processes, are of one size
    for epoch in range(done // len(loader), epochs):
        seen = max(0, done - epoch * len(loader))  # of this epoch
        for x, target, concept in accelerator.skip_first_batches(loader, seen):
            with accelerator.accumulate(model):
                # The gradient of the input is no business of the other processes.
                x = objective.perturb(accelerator.unwrap_model(model), x, target)  # line 9
                out = objective(model(x), target, concept)
                accelerator.backward(out.loss)
                optimizer.step()  # line 10
                optimizer.zero_grad()
            parts.append(out.concept_loss)
            if accelerator.sync_gradients:  # once per step, whatever it accumulates
                mean = torch.stack(parts).mean(0)
                parts.clear()
                objective.update(accelerator.reduce(mean, reduction="mean"))  # line 11


if __name__ == "__main__":
    loader = digits()
    model, objective = players(loader)
    accelerator = Accelerator()
    train(accelerator, model, objective, loader, epochs=5)
    accelerator.print("q", [round(q, 3) for q in objective.distribution.q.tolist()])
    accelerator.end_training()
