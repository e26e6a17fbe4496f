"""Everything that decides what a training run computes, in one dataclass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..robust.perturbation import BatchNormStatistics

Precision = Literal["fp32", "bf16", "fp16"]
Adversary = Literal["hrrl", "group_dro", "cvar"]
Selection = Literal["average", "worst_concept"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyper-parameters of a run. The defaults are the paper's (section 4) where it prints them."""

    tau: float = 0.03
    """Example level: length of the perturbation of one image, in [0, 1] pixel units; 0 is without."""
    lam: float | None = 10.0
    """Concept level: λ, how strongly q is held at q0, in units of the loss; None is without."""
    s: int = 1000
    """Number of slow first steps of q."""
    c: float | Literal["auto"] = 10.0
    """How many times slower they are; "auto" estimates it from a few mini-batches."""
    q0: Sequence[float] | None = None
    """Reference distribution over the concepts; N_k/N if not given."""
    adversary: Adversary = "hrrl"
    """Who moves q: hrrl, or a baseline: group_dro (Sagawa et al., 2020) or cvar."""
    eta_q: float = 0.01
    """Step size of group_dro."""
    alpha: float = 0.2
    """Share of the data that cvar looks at, in (0, 1]."""
    batch_norm: BatchNormStatistics = "batch"
    """Statistics that batch normalisation uses in the input-gradient pass."""
    epochs: int = 90
    """Passes over the training set."""
    batch_size: int = 256
    """Examples per step, over all processes."""
    accumulate: int = 1
    """Parts that a process takes its share of a batch in, one after the other; same step, less memory."""
    lr: float = 0.1
    """Initial learning rate of SGD."""
    milestones: Sequence[int] | None = None
    """Epochs after which the learning rate is divided by 10; at 1/3 and 2/3 of the run if not given."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """γ of Eq. 5, on all parameters."""
    label_smoothing: float = 0.0
    """ε of the cross-entropy."""
    crop_padding: int = 4
    """Random crop after padding by so many pixels; 0 is without."""
    flip: bool = True
    """Random horizontal flip."""
    image_size: int | None = None
    """Side that images are resized to; their own if not given."""
    width: int = 64
    """Channels of the first stage of a model given by name."""
    precision: Precision = "fp32"
    """Autocast of the two forward passes; the losses and q are never in half precision."""
    channels_last: bool = False
    """Memory format of the model and the images."""
    select: Selection = "average"
    """Accuracy on the validation set that makes an epoch the best: average or worst_concept."""
    seed: int = 0
    """Of the initial weights, the order of the examples and their augmentation."""

    def __post_init__(self) -> None:
        for name in ("q0", "milestones"):  # tensors, arrays and tuples too, but JSON knows lists
            if (value := getattr(self, name)) is not None:
                number = float if name == "q0" else int
                object.__setattr__(self, name, [number(v) for v in value])
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        positive |= {"width": self.width, "accumulate": self.accumulate}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("momentum", "weight_decay", "crop_padding"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.milestones and min(self.milestones) < 1:
            raise ValueError(f"milestones must be epochs from 1 on, got {self.milestones}")
        for name, known in (
            ("adversary", Adversary),
            ("precision", Precision),
            ("select", Selection),
        ):
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(known))}, got {value!r}"
                )

    @property
    def chosen(self) -> str:
        """The column of a run's metrics that ``select`` stands for."""
        return "accuracy" if self.select == "average" else "worst_concept_accuracy"

    def learning_rate(self, epoch: int) -> float:
        """lr of an epoch, counted from 0."""
        milestones = self.milestones
        if milestones is None:
            milestones = (self.epochs // 3, 2 * self.epochs // 3)  # 30 and 60 of the paper's 90
        return self.lr * 0.1 ** sum(epoch >= m > 0 for m in milestones)
