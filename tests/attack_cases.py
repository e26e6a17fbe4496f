"""Models whose worst case is known, and images to attack them with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrrl_ext.evaluation.attacks import L1, L2, FourierLinf, Linf

BALLS = {
    "linf": 8 / 255,
    "l2": 0.5,
    "l1": 4.0,
    "fourier": 8 / 255,
    "fourier-low": 0.1,
    "fourier-high": 0.1,
}
NORMS = {
    "linf": Linf(),
    "l2": L2(),
    "l1": L1(),
    "fourier": FourierLinf(),
    "fourier-low": FourierLinf("low"),
    "fourier-high": FourierLinf("high"),
}


class Linear(nn.Module):
    """z = W vec(x) + b; each row by itself and in float64, so that no batch changes a bit."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.double())
        self.bias = nn.Parameter(bias.double())

    def forward(self, x: Tensor) -> Tensor:
        return (x.double().flatten(1)[:, None] * self.weight).sum(2) + self.bias


class Small(nn.Module):
    """What training leaves in a model: batch norm, dropout; logits from a small random network."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8 * 36, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, size: int = 6, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random ones; a tenth of the pixels lie on the edges of the box."""
    x = torch.rand(n, 3, size, size, generator=generator())
    return ((x - 0.05) / 0.9).clamp(0, 1).to(dtype)


def small(classes: int = 5) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Small(classes)


def right_targets(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def binary(size: int = 6, seed: int = 0) -> tuple[Linear, Tensor]:
    """Two classes with logits ±w·(x - 1/2)/2, hence margin w·(x - 1/2) of class 1; and w."""
    w = torch.randn(3, size, size, generator=generator(seed), dtype=torch.float64)
    weight = torch.stack([-w.flatten() / 2, w.flatten() / 2])
    bias = torch.tensor([0.25, -0.25], dtype=torch.float64) * w.sum()
    return Linear(weight, bias), w
