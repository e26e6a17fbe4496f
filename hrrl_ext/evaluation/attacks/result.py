"""What an attack found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class MethodAccuracy(NamedTuple):
    """Share of the ``points`` that a method was run on and did not break."""

    accuracy: float
    points: int


@dataclass(frozen=True)
class AttackResult:
    """What `evaluate_attack` found, for the N points in their order."""

    spec: str
    norm: str
    eps: float
    clean: Tensor
    """[N] bool: right without an attack"""
    survived: Tensor
    """[N] bool: right, and no method found an image in the ball that is not"""
    method_accuracy: dict[str, MethodAccuracy]
    """each method on the points that were left to it, in the order of the run"""
    adversarial: Tensor = field(repr=False)
    """[N, 3, H, W]: the image that fooled the model, or the last that was tried; x itself where the
    model is wrong without an attack"""
    warnings: list[str]
    """why the accuracy may be too high, each "name: what was seen"; docs/attacks.md explains them"""

    @property
    def clean_accuracy(self) -> float:
        return self.clean.double().mean().item()

    @property
    def accuracy(self) -> float:
        """Under attack; never above the clean accuracy."""
        return self.survived.double().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as plain values for JSON."""
        return {
            "spec": self.spec,
            "norm": self.norm,
            "eps": self.eps,
            "points": len(self.clean),
            "clean_accuracy": self.clean_accuracy,
            "accuracy": self.accuracy,
            "methods": {name: one._asdict() for name, one in self.method_accuracy.items()},
            "warnings": list(self.warnings),
            "clean": self.clean.tolist(),
            "survived": self.survived.tolist(),
        }
