"""Everything that decides what the loop computes, whatever it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ..spec import make_plain, not_known
from .schedule import ScheduleName, Span, check_span

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of the loop. The defaults are HRRL's (section 4 of the paper) where it prints them.

    A span is a number of epochs, or text with its unit: 5, "5 epochs", "500 steps".
    """

    epochs: int = 90
    """Passes over the training set."""
    max_steps: int | None = None
    """The run ends after so many steps, if that is before its last epoch."""
    batch_size: int = 256
    """Examples per step, over all processes."""
    accumulate: int = 1
    """Parts that a process takes its share of a batch in, one after the other; same step, less memory."""
    optimizer: str = "sgd"
    """sgd, adam, adamw, or the dotted name of a class, such as torch.optim.NAdam."""
    optimizer_options: Mapping[str, Any] | None = None
    """Further arguments of the optimiser, such as {nesterov: true} or {betas: [0.9, 0.95]}."""
    lr: float = 0.1
    """Learning rate, before the schedule."""
    schedule: ScheduleName = "steps"
    """steps: divided by 10 at the milestones; cosine: down to 0 at the end; constant."""
    milestones: Sequence[int] | None = None
    """Epochs after which steps divides by 10; at 1/3 and 2/3 of the run if not given."""
    warmup: Span = 0
    """How long the learning rate rises linearly to its value: epochs, or text such as "500 steps"."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """γ of Eq. 5, as the optimiser understands it."""
    decay_norms_and_biases: bool = True
    """Whether weight_decay is on all parameters, as in the paper, or only on those with two or more
    dimensions: not on the scales of norms, nor on biases."""
    clip_norm: float | None = None
    """The gradient is shortened to this norm where it is longer; None is without."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept as
    the best; None is without."""
    evaluate_every: Span = 1
    """How often to evaluate: epochs between two, or text such as "200 steps"; the end is always one."""
    patience: int | None = None
    """The run ends after so many evaluations in a row that were no better than the best before."""
    precision: Precision = "fp32"
    """Autocast of the forward passes."""
    channels_last: bool = False
    """Memory format of the model and the images."""
    shuffle_buffer: int | None = None
    """Shards ("wds:...") are read one after the other, and mixed through a buffer of so many images; None
    shuffles all images."""
    seed: int = 0
    """Of the initial weights, the order of the examples and their augmentation."""

    def __post_init__(self) -> None:
        make_plain(self)
        if self.milestones is not None:  # tensors, arrays and tuples too, but JSON knows lists
            object.__setattr__(self, "milestones", [int(m) for m in self.milestones])
        if self.optimizer_options is not None:
            object.__setattr__(self, "optimizer_options", dict(self.optimizer_options))
        require_positive(
            self, "epochs", "max_steps", "batch_size", "accumulate", "lr", "clip_norm", "patience",
            "shuffle_buffer",
        )  # fmt: skip
        require_not_negative(self, "momentum", "weight_decay")
        if self.milestones and min(self.milestones) < 1:
            raise ValueError(f"milestones must be epochs from 1 on, got {self.milestones}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, such as 0.999, got {self.ema}")
        check_span(self.warmup, "warmup", least=0)
        check_span(self.evaluate_every, "evaluate_every", least=1)
        require_one_of(self, precision=Precision, schedule=ScheduleName)


def parted(
    settings: Mapping[str, Any], loop: type, method: type, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flat namespace of the user, parted: those of the loop's dataclass and of the method's.
    TypeError for a name that neither knows."""
    of_loop, of_method = ({f.name for f in fields(kind)} for kind in (loop, method))
    for name in settings:
        if name not in of_loop | of_method:
            known = not_known(name, sorted(of_loop | of_method))
            raise TypeError(f"{where}: argument {known}")
    of_both = [{n: v for n, v in settings.items() if n in of} for of in (of_loop, of_method)]
    return of_both[0], of_both[1]


def require_positive(config: object, *names: str) -> None:
    """That these fields are finite and above 0; None, where a field may be, is no number."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive, got {value}")


def require_not_negative(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must not be negative, got {value}")


def require_one_of(config: object, **known: object) -> None:
    """That each field is one of the values of a Literal."""
    for name, literal in known.items():
        if (value := getattr(config, name)) not in get_args(literal):
            values = ", ".join(map(str, get_args(literal)))
            raise ValueError(f"{name} must be one of {values}, got {value!r}")
