"""What HRRL and its baselines compute, beside the loop's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.augmix import AugMix
from ..data.sampling import Sampling
from ..losses import ClassificationLoss
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
    example_steps: int = 1
    """Of projected gradient ascent within the ball of radius tau, a pass each; 1 is Algorithm 1, more are
    PGD training (Madry et al., 2018)."""
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
    focal: float = 0.0
    """γ of the focal loss (Lin et al., 2017); 0 is the cross-entropy."""
    logit_adjustment: float = 0.0
    """Power of the class shares by which logits are adjusted in training (Menon et al., 2021, their τ); 0
    is without."""
    sampling: Sampling = "uniform"
    """uniform: every example once an epoch; class or concept: drawn with replacement, by classes or
    concepts, whose shares of the draws then stand for N_k/N everywhere."""
    balance: float = 1.0
    """From 0, where class or concept k is drawn in proportion to its N_k, to 1, all as often:
    N_k^(1 - balance)."""
    crop_padding: int = 4
    """Random crop after padding by so many pixels; 0 is without."""
    flip: bool = True
    """Random horizontal flip."""
    augmix: float = 0.0
    """AugMix after crop and flip: its severity, 0.1 to 10; 0 is without."""
    jsd: float = 0.0
    """AugMix: weight of the Jensen-Shannon divergence between an image and two mixtures of it. With 0 one
    mixture is trained on in place of the image."""
    image_size: int | None = None
    """Side that images are resized to; their own if not given."""
    width: int = 64
    """Channels of the first stage of a model given by name."""
    select: Selection = "average"
    """Accuracy on the validation set that makes an epoch the best: average or worst_concept."""

    def __post_init__(self) -> None:
        if self.q0 is not None:  # tensors, arrays and tuples too, but JSON knows lists
            object.__setattr__(self, "q0", [float(share) for share in self.q0])
        require_positive(self, "width", "example_steps")
        require_not_negative(self, "crop_padding", "logit_adjustment", "jsd")
        # For its errors, before any work.
        ClassificationLoss(label_smoothing=self.label_smoothing, focal=self.focal)
        require_one_of(
            self,
            adversary=Adversary,
            sampling=Sampling,
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
        if self.stored and self.example_steps > 1:
            raise ValueError(
                f"example_steps={self.example_steps} are passes of their own, and example_level='stored' "
                "has none; leave example_steps at 1, or take example_level='exact'"
            )
        self._check_sampling()
        self._check_augmix()

    def _check_sampling(self) -> None:
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1], got {self.balance}")
        if self.sampling == "uniform":
            return
        if self.stored:
            raise ValueError(
                f"sampling={self.sampling!r} draws an image several times in an epoch or not at all, and "
                "example_level='stored' keeps the direction of the epoch before; take "
                "sampling='uniform', or example_level='exact'"
            )
        if self.logit_adjustment:
            raise ValueError(
                f"sampling={self.sampling!r} changes the shares of the classes that logit_adjustment="
                f"{self.logit_adjustment:g} is for; take sampling='uniform', or logit_adjustment=0"
            )

    def _check_augmix(self) -> None:
        if self.mixing is None and self.jsd > 0:
            raise ValueError(
                "jsd compares an image with mixtures of it, which augmix makes; give its severity too, "
                "such as augmix=3 for images of 32 pixels, or leave jsd out"
            )
        if self.mixing is not None and self.stored:
            raise ValueError(
                "example_level='stored' keeps directions in the image's own coordinates, and a mixture "
                "of augmix has none of these: it cannot be undone; leave augmix out, or take "
                "example_level='exact'"
            )

    @property
    def mixing(self) -> AugMix | None:
        """What augmix asks for."""
        return AugMix(self.augmix) if self.augmix else None

    @property
    def stored(self) -> bool:
        """Whether directions are kept."""
        return self.example_level == "stored" and self.tau > 0

    @property
    def chosen(self) -> str:
        """The column of a run's metrics that ``select`` stands for."""
        return "accuracy" if self.select == "average" else "worst_concept_accuracy"
