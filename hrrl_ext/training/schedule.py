"""The learning rate of every step: a function of the step alone, so that a run resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

ScheduleName = Literal["steps", "cosine", "constant"]
Span: TypeAlias = int | str


@dataclass(frozen=True)
class Schedule:
    """lr(t) = lr · min(1, (t + 1)/W) · f(t) for the step that follows t others, W steps of warm-up.

    ========== =========================================================================
    steps      f = 10^(-milestones passed), counted in epochs (the paper's)
    cosine     f = (1 + cos(π (t - W)/(T - W)))/2 from the end of the warm-up, T steps in all
    constant   f = 1
    ========== =========================================================================
    """

    kind: ScheduleName
    lr: float
    milestones: Sequence[int]
    """epochs"""
    warmup: int
    """W, steps"""
    steps: int
    """T"""
    per_epoch: int

    def __call__(self, step: int) -> float:
        rate = self.lr * self._factor(step)
        return rate * (step + 1) / self.warmup if step < self.warmup else rate

    def _factor(self, step: int) -> float:
        match self.kind:
            case "steps":
                epoch = step // self.per_epoch
                return 0.1 ** sum(epoch >= m > 0 for m in self.milestones)
            case "cosine":
                done = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
                return (1 + math.cos(math.pi * done)) / 2
        return 1.0


def default_milestones(epochs: int) -> tuple[int, int]:
    return epochs // 3, 2 * epochs // 3  # 30 and 60 of the paper's 90


def in_steps(span: Span, per_epoch: int) -> int:
    """A checked span in steps."""
    number, unit = _read(span)
    return number if unit == "steps" else number * per_epoch


def is_in_steps(span: Span) -> bool:
    return _read(span)[1] == "steps"


def check_span(span: Span, name: str, *, least: int) -> None:
    try:
        number, _ = _read(span)
    except ValueError:
        raise ValueError(
            f'{name} must be a whole number of epochs, or text such as "500 steps", got {span!r}'
        ) from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {span!r}")


def _read(span: Span) -> tuple[int, Literal["epochs", "steps"]]:
    if isinstance(span, int) and not isinstance(span, bool):
        return span, "epochs"
    match str(span).split():
        case [number]:
            return int(number), "epochs"
        case [number, "epoch" | "epochs"]:
            return int(number), "epochs"
        case [number, "step" | "steps"]:
            return int(number), "steps"
    raise ValueError(span)
