"""What HRRL and its baselines compute, beside the loop's own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..data.augmix import AugMix
from ..data.batches import Augmentation
from ..data.mixup import Mixup
from ..data.resize import ImageSize
from ..data.sampling import Sampling
from ..data.views import RandomErasing, RandomResizedCrop
from ..data.views.crops import CropOf
from ..losses import ClassificationLoss
from ..perturbation import BatchNormStatistics
from ..spec import make_plain, not_known
from ..training.config import (
    TrainingConfig,
    parted,
    require_not_negative,
    require_one_of,
    require_positive,
)
from ..training.freezing import read_patterns
from .chi_square import require_regularised

Adversary = Literal["hrrl", "chi_square", "group_dro", "cvar"]
Selection = Literal["average", "worst_concept"]
ExampleLevel = Literal["exact", "stored"]
StoredBits = Literal[8, 1]
Levels = Literal["given", "auto"]


@dataclass(frozen=True, kw_only=True)
class HRRLConfig:
    """Settings of the method. The defaults are the paper's (section 4) where it prints them."""

    tau: float | Literal["theorem2"] = 0.03
    """Example level: length of the perturbation of one image, in [0, 1] pixel units; 0 is without;
    theorem2 is a length per image, gradient/(3 L_x), which fades as the loss does."""
    tau_multiple: float = 1.0
    """How many times that of theorem2."""
    example_level: ExampleLevel = "exact"
    """Where the direction of an image comes from: exact, a pass of its own; or stored, the image's last
    backward pass, an epoch ago, for about the time of plain training."""
    stored_bits: StoredBits = 8
    """Of a value of a stored direction: 8, or 1, which keeps signs."""
    stored_resolution: int = 1
    """Side of the blocks whose pixels share a value of a stored direction."""
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
    """Who moves q: hrrl; chi_square, where lam is in nats, whatever the number and the sizes of the
    concepts (begin with 1); or a baseline: group_dro (Sagawa et al., 2020) or cvar."""
    rho: float | None = None
    """Radius of chi_square's ball, Σ (q - q0)²/q0 at most its square; None is without."""
    max_weight: float | None = 4.0
    """The most that an example counts with chi_square; None is without."""
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
    resized_crop: float = 0.0
    """Random resized crop in place of crop_padding: the least share of an image's area, such as 0.08; 0
    is without."""
    crop_of: CropOf = "image"
    """What resized_crop crops: image, an image as it was opened, image_size large, which is decoded once
    where keep_gib keeps it; picture, the whole picture in a file at its own size, as training on ImageNet
    has it, which every epoch decodes anew."""
    flip: bool = True
    """Random horizontal flip."""
    augmix: float = 0.0
    """AugMix after crop and flip: its severity, 0.1 to 10; 0 is without."""
    jsd: float = 0.0
    """AugMix: weight of the Jensen-Shannon divergence between an image and two mixtures of it. With 0 one
    mixture is trained on in place of the image."""
    erasing: float = 0.0
    """Random erasing, after all of these: the probability that a rectangle of an image becomes one
    colour; 0 is without."""
    mixup: float = 0.0
    """Mixup, at the end: α of the shares of two images in a mixture, which is an example of both their
    classes and concepts by these shares; 0 is without."""
    image_size: ImageSize | None = None
    """Side that images are resized to, or height and width; their own if not given."""
    width: int = 64
    """Channels of the first stage of a model given by name."""
    freeze: Sequence[str] | str | None = None
    """What is not trained, and in eval mode all along: names of layers or parameters, with * and ?,
    such as conv1+layer* or a list; ! is before what trains nevertheless, as in *+!fc, and the last that
    fits counts."""
    select: Selection = "average"
    """Accuracy on the validation set that makes an epoch the best: average or worst_concept."""

    def __post_init__(self) -> None:
        make_plain(self)
        if self.q0 is not None:  # tensors, arrays and tuples too, but JSON knows lists
            object.__setattr__(self, "q0", [float(share) for share in self.q0])
        object.__setattr__(self, "freeze", read_patterns(self.freeze))
        require_positive(self, "width", "example_steps", "tau_multiple", "stored_resolution")
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
            crop_of=CropOf,
        )
        self._check_example_level()
        self._check_concept_level()
        self._check_sampling()
        self._check_augmentation()
        self._check_mixup()

    def _check_example_level(self) -> None:
        if isinstance(self.tau, str) and self.tau != "theorem2":
            raise ValueError(
                f"tau must be a number, or theorem2: {not_known(self.tau, ['theorem2'])}"
            )
        if self.tau not in ("theorem2", 0) and self.tau_multiple != 1:
            raise ValueError(
                f"tau_multiple={self.tau_multiple:g} is of the lengths of tau='theorem2', and tau is "
                f"{self.tau:g}; leave tau_multiple out, or take tau='theorem2'"
            )
        if self.tau == "theorem2" and self.example_steps > 1:
            raise ValueError(
                f"example_steps={self.example_steps} go to a ball of radius tau, and tau='theorem2' "
                "is one step; give tau as a number, or leave example_steps at 1"
            )
        if self.tau == "theorem2" and self.example_level == "stored":
            raise ValueError(
                "tau='theorem2' needs the length of the gradient at θ_t, and example_level='stored' "
                "keeps directions alone; give tau as a number, or take example_level='exact'"
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

    def _check_concept_level(self) -> None:
        if self.adversary == "chi_square" and self.lam is not None:
            require_regularised(self.lam, self.rho, self.max_weight)
        elif self.rho is not None:
            raise ValueError(
                "rho is the radius of adversary='chi_square', whose lam is a number; got "
                f"rho={self.rho:g} with adversary={self.adversary!r} and lam={self.lam}"
            )

        if self.adversary == "cvar" and self.q0 is not None:
            raise ValueError(
                "q0 is what q is held at, and adversary='cvar' takes the worst share of the data as they "
                "are; leave q0 out, or take another adversary"
            )

    def _check_sampling(self) -> None:
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1], got {self.balance}")
        if self.sampling == "uniform":
            if self.balance != 1:
                raise ValueError(
                    f"balance={self.balance:g} is of sampling='class' or 'concept', and sampling is "
                    "'uniform'; leave balance out, or give what is drawn evenly"
                )
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

    def _check_augmentation(self) -> None:
        if not 0 <= self.resized_crop <= 1:
            raise ValueError(
                "resized_crop must be the least share of an image's area, from 0 (without) to 1, got "
                f"{self.resized_crop}"
            )
        if self.crop_of == "picture" and not self.resized_crop:
            raise ValueError(
                "crop_of='picture' says what resized_crop crops, and that is 0, without; give the least "
                "share of a picture's area, such as resized_crop=0.08, or leave crop_of out"
            )
        if self.resized_crop and self.stored:
            raise ValueError(
                "example_level='stored' keeps directions in the image's own coordinates, to which a "
                "resized crop cannot be undone; leave resized_crop out, or take example_level='exact'"
            )
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

    def _check_mixup(self) -> None:
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing must be a probability, got {self.erasing}")
        if self.mixed is not None and self.jsd > 0:
            raise ValueError(
                "jsd compares an image with mixtures of itself, and mixup makes it one of two images; "
                "give one of the two"
            )
        if self.stored and (self.erasing or self.mixup):
            name = "mixup" if self.mixup else "erasing"
            lacks = "those of another one" if self.mixup else "pixels that are not its own"
            raise ValueError(
                "example_level='stored' keeps directions in the image's own coordinates, and "
                f"{name} brings in {lacks}; leave {name} out, or take example_level='exact'"
            )

    @property
    def erased(self) -> RandomErasing | None:
        """What erasing asks for."""
        return RandomErasing(self.erasing) if self.erasing else None

    @property
    def mixed(self) -> Mixup | None:
        """What mixup asks for."""
        return Mixup(self.mixup) if self.mixup else None

    @property
    def augmentation(self) -> Augmentation | RandomResizedCrop:
        """How images of training are cropped and flipped."""
        if self.resized_crop:
            return RandomResizedCrop((self.resized_crop, 1.0), flip=0.5 * self.flip)
        return Augmentation(self.crop_padding, self.flip)

    @property
    def mixing(self) -> AugMix | None:
        """What augmix asks for."""
        return AugMix(self.augmix) if self.augmix else None

    @property
    def stored(self) -> bool:
        """Whether directions are kept."""
        return self.example_level == "stored" and self.tau != 0

    @property
    def chosen(self) -> str:
        """The column of a run's metrics that ``select`` stands for."""
        return "accuracy" if self.select == "average" else "worst_concept_accuracy"


def by_config(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flat namespace of the user, parted: those of :class:`TrainingConfig` and of
    :class:`HRRLConfig`. TypeError for a name that neither knows."""
    return parted(settings, TrainingConfig, HRRLConfig, where)


def with_levels(levels: Levels, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """``settings`` of :class:`HRRLConfig` and, for "auto", the levels that are not among them; and a line
    that says which, if any. What is given stays as it is."""
    if levels not in get_args(Levels):
        raise ValueError(f"levels: {not_known(levels, get_args(Levels))}")
    given, lines = dict(settings), []
    if levels == "given":
        return given, None
    if "tau" not in given:
        given = {"tau": "theorem2"} | given
        multiple = given.get("tau_multiple", HRRLConfig.tau_multiple)
        lines.append(
            f"tau=theorem2, tau_multiple={multiple:g}: an image moves by its own gradient, as far as the "
            "smoothness of the loss allows"
        )
    if "lam" not in given and given.get("adversary", "chi_square") == "chi_square":
        given = {"adversary": "chi_square", "lam": 1.0} | given
        lines.append(
            "adversary=chi_square, lam=1: a concept weighs by how many nats its loss is above the mean"
        )
    return given, f"levels=auto: {'; '.join(lines)}" if lines else None
