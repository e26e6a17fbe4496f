"""Algorithm 1 in a loop of your own.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hrrl_ext
from hrrl_ext.data import load_images

Loader = DataLoader[tuple[Tensor, ...]]


def digits() -> Loader:
    """Batches of x [B, 3, 8, 8] in [0, 1], target [B], concept [B]; here every class is a concept."""
    images = load_images("digits")
    x, target = images.__getitems__(list(range(len(images))))
    data = TensorDataset(x.float() / 255, target, target)
    return DataLoader(data, batch_size=64, shuffle=True, drop_last=True)


def players(loader: Loader) -> tuple[nn.Module, hrrl_ext.HRRLObjective]:
    """The model, and the objective with both of its adversaries."""
    torch.manual_seed(0)
    model = hrrl_ext.resnet18(10, stem="small", width=16)
    data = loader.dataset
    assert isinstance(data, TensorDataset)
    concept_count = data.tensors[2].bincount()  # [K] training examples per concept
    return model, hrrl_ext.HRRLObjective(concept_count, tau=0.05, lam=10.0)


def train(model: nn.Module, objective: hrrl_ext.HRRLObjective, loader: Loader, epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    model.train()
    for _ in range(epochs):
        for x, target, concept in loader:
            x = objective.perturb(model, x, target)  # x̃ = x + τ ∇ℓ/‖∇ℓ‖, line 9
            out = objective(model(x), target, concept)  # losses at θ_t, weighted by q_t
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()  # θ_{t+1}, line 10
            objective.update(out.concept_loss)  # q_{t+1}, line 11: still the losses at θ_t


if __name__ == "__main__":
    loader = digits()
    model, objective = players(loader)
    train(model, objective, loader, epochs=5)
    print("q", [round(q, 3) for q in objective.distribution.q.tolist()])
