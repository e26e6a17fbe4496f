"""Stand-ins for attacks and corruptions: quick, exact, and of the same names and signatures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hrrl_ext._modes import in_mode
from hrrl_ext.data import ArrayImages, ImageSet

CORRUPTIONS = ("darker", "gaussian_noise")
EXTRA_CORRUPTIONS = ("inverted",)
CALLS: list[str] = []


def corrupted(images: ImageSet, kind: str, severity: int, seed: int = 0) -> ImageSet:
    CALLS.append(f"{kind} {severity}")
    x, target = images.__getitems__(range(len(images)))
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    changed = {
        "darker": x * (1 - severity / 6),
        "gaussian_noise": x + 0.1 * severity * noise,
        "inverted": 1 - x,
    }[kind]
    return ArrayImages(changed.clamp(0, 1), target, classes=images.classes, name=images.name)


def mean_corruption_error(
    error: Mapping[str, Sequence[float]], baseline: Mapping[str, float] | None = None
) -> float:
    return 100 * sum(map(sum, error.values())) / sum(map(len, error.values())) / 0.75


class MethodAccuracy(NamedTuple):
    accuracy: float
    points: int


@dataclass
class AttackResult:
    spec: str
    norm: str
    eps: float
    clean: Tensor
    survived: Tensor
    method_accuracy: dict[str, MethodAccuracy]
    adversarial: Tensor
    warnings: list[str]


class Threat(NamedTuple):
    norm: str
    eps: float


def parse_threat(spec: str) -> Threat:
    norm, colon, radius = spec.partition(":")
    if not colon or norm not in ("linf", "l2", "fourier"):
        raise ValueError(f"an attack is written NORM:RADIUS, got {spec!r}")
    numerator, _, divisor = radius.partition("/")
    return Threat(norm, float(numerator) / float(divisor or 1))


def find_norm(norm: str) -> str:
    return parse_threat(f"{norm}:1").norm


def evaluate_attack(
    model: nn.Module, x: Tensor, target: Tensor, spec: str, *, quick: bool = False,
    batch_size: int = 256, seed: int = 0, progress: Any = None, processes: Any = None,
) -> AttackResult:  # fmt: skip
    """One step of the sign of the gradient, whatever the norm."""
    CALLS.append(spec)
    norm, eps = parse_threat(spec)
    with in_mode(model, "eval"):
        leaf = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), target, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        adversarial = (x + eps * grad.sign()).clamp(0, 1)
        with torch.no_grad():
            clean = model(x).argmax(1) == target
            survived = clean & (model(adversarial).argmax(1) == target)
    n = int(clean.sum())
    share = int(survived.sum()) / n if n else 1.0
    methods = {"sign": MethodAccuracy(share, n), "none": MethodAccuracy(1.0, int(survived.sum()))}
    found = ["the loss hardly changes"] if eps > 1 else []
    return AttackResult(spec, norm, eps, clean, survived, methods, adversarial, found)


EPS_GRID = (0.0, 0.01, 0.02)


@dataclass
class EpsilonCurve:
    norm: str
    max_epsilon: float
    cost: float
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]


def max_epsilon(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    norm: str = "linf",
    eps: Sequence[float] = EPS_GRID,
    processes: Any = None,
) -> EpsilonCurve:
    CALLS.append(f"max {norm}")
    return EpsilonCurve(norm, eps[1], 0.01, tuple(eps), (0.9, 0.895, 0.5))


def install(monkeypatch: Any) -> list[str]:
    """In place of the real modules; returns the list that every call is written to."""
    here = sys.modules[__name__]
    CALLS.clear()
    for name in ("attacks", "corruptions"):
        module = ModuleType(f"hrrl_ext.evaluation.{name}")
        vars(module).update(vars(here) | {"__name__": module.__name__})
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return CALLS
