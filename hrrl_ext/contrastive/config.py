"""What contrastive pretraining computes, and the loop's settings as it has them."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.augmix import AugMix
from ..training.config import (
    TrainingConfig,
    require_positive,
)
from ..training.schedule import ScheduleName


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Settings of the method. The defaults are those of MoCo v2, with URRL's views."""

    p: float = 0.5
    """Probability that a view of an image is T_rob, AugMix of its crop, and not T_rep, the crop alone."""
    crop_padding: int = 4
    """Random crop after padding by so many pixels; 0 is without."""
    flip: bool = True
    """Random horizontal flip."""
    augmix: float = 3.0
    """Severity of AugMix, 0.1 to 10: 3 for images of 32 pixels, 1 for 224; its 13 operations."""
    dim: int = 128
    """Of z, which is compared."""
    queue: int = 65_536
    """K, keys of the last batches, which are the negatives."""
    temperature: float = 0.2
    """T, of the logits."""
    key_momentum: float = 0.999
    """m of the key encoder: θ_k ← m θ_k + (1 - m) θ_q before each step."""
    norm_groups: int = 8
    """Parts of a batch that batch normalisation sees each by itself, over all processes, each of which
    has one at least; the keys' are of other images than the queries'. With 1 the network can tell a
    query's key by the statistics that they share."""
    bank: int = 10_000
    """Training images, drawn once, whose features are measured at each evaluation, and are the neighbours
    that validation images have."""
    neighbours: int = 200
    """k of the nearest neighbours; all of the bank where that is smaller."""
    neighbour_temperature: float = 0.1
    """T of their votes, exp(cos/T)."""
    image_size: int | None = None
    """Side that images are resized to; their own if not given."""
    width: int = 64
    """Channels of the first stage of a model given by name."""

    def __post_init__(self) -> None:
        require_positive(
            self, "dim", "queue", "temperature", "norm_groups", "bank", "neighbours",
            "neighbour_temperature", "width",
        )  # fmt: skip
        AugMix(self.augmix)  # for its errors, before any work
        for name in ("p", "key_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ContrastiveTraining(TrainingConfig):
    """Settings of the loop, whose defaults are MoCo v2's."""

    epochs: int = 200
    lr: float | None = None  # type: ignore[assignment]
    """Learning rate, before the schedule; 0.03 for every 256 examples of a batch if not given."""
    schedule: ScheduleName = "cosine"
    """cosine: down to 0 at the end; steps: divided by 10 at the milestones; constant."""

    def __post_init__(self) -> None:
        if self.lr is None:
            object.__setattr__(self, "lr", 0.03 * self.batch_size / 256)
        super().__post_init__()
