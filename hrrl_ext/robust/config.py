"""What HRRL and its baselines compute, beside the loop's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..perturbation import BatchNormStatistics
from ..training.config import require_not_negative, require_one_of, require_positive

Adversary = Literal["hrrl", "group_dro", "cvar"]
Selection = Literal["average", "worst_concept"]
ExampleLevel = Literal["exact", "stored"]
StoredBits = Literal[8, 1]


@dataclass(frozen=True, kw_only=True)
class HRRLConfig:
    """Settings of the method. The defaults are the paper's (section 4) where it prints them."""

    tau: float = 0.03
    """Example level: length of the perturbation of one image, in [0, 1] pixel units; 0 is without."""
    example_level: ExampleLevel = "exact"
    """Where the direction of an image comes from: exact, a pass of its own; or stored, the image's last
    backward pass, an epoch ago, for about the time of plain training."""
    stored_bits: StoredBits = 8
    """Of a value of a stored direction: 8, or 1, which keeps signs."""
    stored_resolution: int = 1
    """Side of the blocks whose pixels share a value of a stored direction."""
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
    select: Selection = "average"
    """Accuracy on the validation set that makes an epoch the best: average or worst_concept."""

    def __post_init__(self) -> None:
        if self.q0 is not None:  # tensors, arrays and tuples too, but JSON knows lists
            object.__setattr__(self, "q0", [float(share) for share in self.q0])
        require_positive(self, "width", "stored_resolution")
        require_not_negative(self, "crop_padding")
        require_one_of(
            self,
            adversary=Adversary,
            select=Selection,
            example_level=ExampleLevel,
            stored_bits=StoredBits,
        )
        if self.stored and self.batch_norm == "running":
            raise ValueError(
                "batch_norm='running' is of the input-gradient pass, and example_level='stored' has "
                "none: its directions come from training itself; leave batch_norm out, or take "
                "example_level='exact'"
            )

    @property
    def stored(self) -> bool:
        """Whether directions are kept."""
        return self.example_level == "stored" and self.tau > 0

    @property
    def chosen(self) -> str:
        """The column of a run's metrics that ``select`` stands for."""
        return "accuracy" if self.select == "average" else "worst_concept_accuracy"
