"""What of an evaluation is a choice, and the two choices that have a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..spec import make_plain, not_known


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is measured. Draws of images are uniform, without regard to class, and by ``seed``."""

    attacks: Sequence[str] = ("linf:2/255", "linf:8/255", "l2:0.5", "fourier:8/255")
    """Norm and radius of each attack."""
    attack_points: int | None = 200
    """Images that are attacked; all if None."""
    quick_attacks: bool = True
    """The attacks' short form."""
    max_epsilon: Sequence[str] = ()
    """Norms to find the largest harmless radius in; none where a preset is told ``attacks=[]`` alone."""
    corruptions: Sequence[str] = ("all",)
    """Kinds by name, "all" or "none"."""
    corruption_points: int | None = 500
    """Images that are corrupted; all if None."""
    steps: Sequence[float] | None = None
    """Of the perturbation curve; 0 to 16/255 per pixel if None."""
    points: int | None = None
    """Images that are evaluated at all, of which those above are drawn; all if None."""
    seed: int = 0
    """Of these draws, of the corruptions, the attacks, and the half that a temperature is fitted on."""
    batch_size: int = 256
    """Images per forward pass."""

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("attack_points", "corruption_points", "points", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.steps is not None and not (
            len(self.steps) and all(math.isfinite(step) for step in self.steps)
        ):
            raise ValueError(f"steps must be finite numbers, got {list(self.steps)}")
        for name in ("attacks", "max_epsilon", "corruptions"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name} must be a list of texts, got {value!r}")
            object.__setattr__(self, name, tuple(dict.fromkeys(value)))


PRESETS = {
    "quick": EvaluationConfig(),
    "full": EvaluationConfig(
        attacks=(
            *("linf:1/255", "linf:2/255", "linf:4/255", "linf:8/255"),
            *("l2:0.25", "l2:0.5", "l2:1", "fourier:4/255", "fourier:8/255", "fourier:20/255"),
        ),
        attack_points=1000,
        quick_attacks=False,
        max_epsilon=("linf", "l2", "fourier"),
        corruption_points=None,
    ),
}


def evaluation_config(preset: str, **overrides: Any) -> EvaluationConfig:
    """A preset with other values in some places. ValueError: unknown preset. TypeError: unknown name."""
    if preset not in PRESETS:
        raise ValueError(f"evaluate: preset {not_known(preset, PRESETS)}")
    known = [field.name for field in fields(EvaluationConfig)]
    for name in overrides:
        if name not in known:
            raise TypeError(f"evaluate: setting {not_known(name, known)}")
    unattacked = {"max_epsilon": ()} if "attacks" in overrides and not overrides["attacks"] else {}
    return replace(PRESETS[preset], **unattacked | overrides)


def drawn(count: int, points: int | None, seed: int) -> Tensor:
    """Row numbers of ``points`` of ``count`` images, in order; all if None or not as many.

    Uniform without replacement, by the seed alone: fewer points are part of more.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count if points is None else points].sort().values
