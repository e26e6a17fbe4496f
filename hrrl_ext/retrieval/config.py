"""What training joint embeddings computes, beside the loop's own settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..data.resize import ImageSize
from ..ops import Similarity
from ..spec import make_plain, not_known
from ..training.config import (
    TrainingConfig,
    parted,
    require_not_negative,
    require_one_of,
    require_positive,
)
from ..training.schedule import ScheduleName, Span, check_span
from .losses import Reduction
from .presets import PRESETS

Loss = Literal["max_hinge", "sum_hinge", "info_nce", "sigmoid"]
Warmup = Literal["none", "sum_hinge", "semi_hard"]

_LOSS = {"hardest": "max_hinge", "all": "sum_hinge"}
_OF_LOOP: dict[str, dict[str, Any]] = {"Order0": {"lr": 1e-3}}
"""Settings of the loop that a published variant has to itself."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Settings of the method. The defaults are those of VSE++ (Faghri et al., 2018)."""

    loss: Loss = "max_hinge"
    """max_hinge: the hardest negative alone; sum_hinge: all of them; info_nce (CLIP's) or sigmoid
    (SigLIP's), whose temperature, or scale and bias, are learned."""
    margin: float = 0.2
    """α of the hinges."""
    similarity: Similarity = "cosine"
    """cosine, the product of the embeddings; or order, -‖max(0, caption - image)‖."""
    normalise_image: bool = True
    """Whether embeddings of images have norm 1."""
    normalise_caption: bool = True
    """Whether embeddings of captions have norm 1."""
    absolute: bool = False
    """The absolute value of every embedding, after it is normalised."""
    semi_hard: bool = False
    """max_hinge among negatives that score below their pair alone."""
    reduction: Reduction = "sum"
    """Of the hinges over the pairs of a batch: sum, as in the public code, or mean."""
    warmup_loss: Warmup = "none"
    """What the first steps of max_hinge use in its place, where it collapses: sum_hinge or semi_hard."""
    warmup_for: Span = 1
    """How long they do: epochs, or text such as "500 steps"."""
    negatives: int | None = None
    """Pairs of a batch among which each has its negatives, itself included; all of them if not given."""
    queue: int | None = None
    """Pairs of earlier steps, as they were embedded then, that are negatives of max_hinge too; none if
    not given."""
    tau: float = 0.0
    """Example level: length of the perturbation of an image, in [0, 1] pixel units, or of features as the
    data have them; 0 is without."""
    lam: float | None = None
    """Concept level: λ, how strongly q is held at q0, in units of the loss; None is without."""
    s: int = 1000
    """Number of slow first steps of q."""
    c: float | Literal["auto"] = 10.0
    """How many times slower they are; "auto" estimates it from a few mini-batches."""
    q0: Sequence[float] | None = None
    """Reference distribution over the concepts, in the order of their names; N_k/N if not given."""
    temperature: float = 0.07
    """Of info_nce, as training begins."""
    dim: int = 1024
    """Of the joint space."""
    word_dim: int = 300
    """Of the word vectors."""
    text_width: int = 1024
    """Of the GRU's state."""
    min_count: int = 2
    """Times that a word must come in the training captions to be known."""
    freeze: bool = False
    """Whether the image encoder stays as it is; its features are then computed once."""
    crop_padding: int = 0
    """Random crop after padding by so many pixels; 0 is without."""
    flip: bool = False
    """Random horizontal flip, for captions that say nothing of left and right."""
    image_size: ImageSize | None = None
    """Side that images are resized to, or height and width; their own if not given."""
    width: int = 64
    """Channels of the first stage of an image encoder given by name."""

    def __post_init__(self) -> None:
        make_plain(self)
        require_positive(
            self, "negatives", "queue", "temperature", "dim", "word_dim", "text_width", "min_count",
            "width",
        )  # fmt: skip
        require_not_negative(self, "margin", "crop_padding", "tau")
        if self.q0 is not None:  # tensors, arrays and tuples too, but JSON knows lists
            object.__setattr__(self, "q0", [float(share) for share in self.q0])
        require_one_of(
            self, loss=Loss, similarity=Similarity, reduction=Reduction, warmup_loss=Warmup
        )
        check_span(self.warmup_for, "warmup_for", least=1)
        if self.negatives == 1:
            raise ValueError(
                "negatives=1 is the pair alone, which has no negative; give 2 or more, or leave it out"
            )
        if self.queue is not None and (self.loss != "max_hinge" or self.negatives is not None):
            raise ValueError(
                "queue adds negatives to max_hinge, and negatives takes some away; got "
                f"queue={self.queue}, loss={self.loss!r} and negatives={self.negatives}"
            )
        if self.loss != "max_hinge" and (self.semi_hard or self.warmup_loss != "none"):
            raise ValueError(
                f"semi_hard and warmup_loss are of loss='max_hinge', got loss={self.loss!r} with "
                f"semi_hard={self.semi_hard} and warmup_loss={self.warmup_loss!r}"
            )
        if not self.hinge and self.similarity != "cosine":
            raise ValueError(
                f"loss={self.loss!r} is of products; similarity must be 'cosine', got {self.similarity!r}"
            )
        if self.freeze and self.augmented:
            raise ValueError(
                "freeze=True computes the features of an image once, so none is cropped or flipped; "
                f"leave out crop_padding={self.crop_padding} and flip={self.flip}, or take freeze=False"
            )

    @property
    def hinge(self) -> bool:
        return self.loss in ("max_hinge", "sum_hinge")

    @property
    def learned(self) -> dict[str, float]:
        """Numbers that the loss learns, as they begin."""
        match self.loss:
            case "info_nce":
                return {"log_scale": -math.log(self.temperature)}
            case "sigmoid":  # a scale of 10, as SigLIP begins
                return {"log_scale": math.log(10), "bias": -10.0}
        return {}

    @property
    def augmented(self) -> bool:
        return self.crop_padding > 0 or self.flip


@dataclass(frozen=True, kw_only=True)
class RetrievalTraining(TrainingConfig):
    """Settings of the loop, whose defaults are the thesis's for joint embeddings."""

    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 2e-4
    schedule: ScheduleName = "steps"
    weight_decay: float = 0.0
    clip_norm: float | None = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shuffle_buffer is not None:
            raise ValueError(
                f"shuffle_buffer={self.shuffle_buffer} is for images in shards, and pairs are in none; "
                "leave it out"
            )
        if self.milestones is None:
            object.__setattr__(self, "milestones", [max(1, self.epochs // 2)])


def configs(
    preset: str, settings: Mapping[str, Any], where: str
) -> tuple[RetrievalTraining, RetrievalConfig]:
    """Of a flat namespace, in which the preset sets what is not given.

    ValueError for a preset that is not known, TypeError for a name that neither config has.
    """
    if preset not in PRESETS:
        raise ValueError(f"{where}: preset {not_known(preset, PRESETS)}")
    published = PRESETS[preset]
    of_loop, of_method = parted(settings, RetrievalTraining, RetrievalConfig, where)
    loop = _OF_LOOP.get(preset, {}) | of_loop
    method = {
        "loss": _LOSS[published.negatives],
        **{k: v for k, v in vars(published).items() if k != "negatives"},
        **of_method,
    }
    return RetrievalTraining(**loop), RetrievalConfig(**method)
