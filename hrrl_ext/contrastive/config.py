"""What contrastive pretraining computes, and the loop's settings as it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..data import RandomResizedCrop, Views, view_family
from ..data.resize import ImageSize
from ..data.views.crops import CropOf
from ..spec import make_plain
from ..training.config import TrainingConfig, require_one_of, require_positive
from ..training.freezing import read_patterns
from ..training.schedule import ScheduleName

Method = Literal["moco", "instdis", "pirl"]
Family = Literal["moco", "augmix", "augmix:all", "augmix:moco", "urrl", "own"]


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Settings of the method. The defaults are those of MoCo v2, with URRL's views."""

    method: Method = "moco"
    """What an image is to be like: moco, another view of it, by an encoder that follows; instdis, what it
    was mapped to in epochs before, by a memory of the whole set; pirl, this too, and so are its parts in
    an order by chance, a jigsaw."""
    views: Family = "urrl"
    """What becomes of an image after its crop: moco, MoCo v2's (T_rep); augmix, AugMix of nine
    operations; augmix:all, of 13 (T_rob); augmix:moco, of MoCo's too; urrl, T_rob or T_rep by chance. The
    trainer takes an object in its place: own."""
    p: float = 0.5
    """Of urrl: the probability of T_rob."""
    share_family: bool = False
    """Of urrl: both views of an image have the family that was drawn once for it."""
    crop_scale: float = 0.2
    """The least share of an image's area that a crop shows."""
    crop_of: CropOf = "image"
    """What is cropped: image, an image as it was opened, image_size large, which is decoded once where
    keep_gib keeps it; picture, the whole picture in a file at its own size, as MoCo has it, which every
    epoch decodes anew."""
    flip: bool = True
    """Random horizontal flip."""
    blur: float = 0.5
    """Of T_rep: the probability of a Gaussian blur; for images of 32 pixels 0 is common."""
    augmix: float | None = None
    """Severity of AugMix, 0.1 to 10; the paper's if not given, 3 below 128 pixels and 1 from there on."""
    dim: int = 128
    """Of z, which is compared."""
    queue: int = 65_536
    """K, the negatives: of moco, keys of the last batches; of instdis and pirl, entries of the memory,
    drawn for each step."""
    temperature: float = 0.2
    """T, of the logits."""
    key_momentum: float = 0.999
    """m of the key encoder: θ_k ← m θ_k + (1 - m) θ_q before each step."""
    memory_momentum: float = 0.5
    """Of instdis and pirl: what remains of an image's entry when the image is seen."""
    jigsaw: float = 0.5
    """Of pirl: λ, the share of the loss of the parts."""
    jigsaw_side: int = 3
    """Of pirl: cells of the jigsaw along each side; for images of fewer than 16 pixels 2."""
    norm_groups: int = 8
    """Parts of a batch that batch normalisation sees each by itself, over all processes: each process has
    as many, and one at least; the keys' are of other images than the queries'. With 1 the network can
    tell a query's key by the statistics that they share."""
    bank: int = 10_000
    """Training images, drawn once, whose features are measured at each evaluation, and are the neighbours
    that validation images have."""
    neighbours: int = 200
    """k of the nearest neighbours; all of the bank where that is smaller."""
    neighbour_temperature: float = 0.1
    """T of their votes, exp(cos/T)."""
    image_size: ImageSize | None = None
    """Side that images are resized to, or height and width; their own if not given."""
    width: int = 64
    """Channels of the first stage of a model given by name."""
    freeze: Sequence[str] | str | None = None
    """What is not trained, and in eval mode all along: names of layers or parameters, with * and ?,
    such as conv1+layer* or a list; ! is before what trains nevertheless, as in *+!fc, and the last that
    fits counts."""

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "freeze", read_patterns(self.freeze))
        require_positive(
            self, "dim", "queue", "temperature", "norm_groups", "bank", "neighbours",
            "neighbour_temperature", "width", "jigsaw_side",
        )  # fmt: skip
        require_one_of(self, method=Method, views=Family, crop_of=CropOf)
        for name in ("p", "blur", "key_momentum", "memory_momentum", "jigsaw", "crop_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.crop_scale == 0:
            raise ValueError("crop_scale must be above 0, the least share that a crop shows; got 0")
        self.make_views(0)  # for its errors, before any work
        self._require_used()

    def _require_used(self) -> None:
        """ValueError where a setting of views is given to those that have no use for it."""
        of_urrl = ("p", "share_family")
        of_all = ("crop_scale", "crop_of", "flip", "blur", "augmix")
        unused = {"urrl": (), "own": of_urrl + of_all}.get(self.views, of_urrl)
        for name in unused:
            if (value := getattr(self, name)) != getattr(type(self), name):
                of = (
                    "an object of your own makes views whole" if name in of_all else "it is of urrl"
                )
                raise ValueError(
                    f"{name}={value} does nothing with views={self.views!r}: {of}; leave it out"
                )

    @property
    def crop(self) -> RandomResizedCrop:
        """What becomes of an image, or of a picture, before the family."""
        return RandomResizedCrop((self.crop_scale, 1.0), flip=0.5 if self.flip else 0.0)

    @property
    def picture_crop(self) -> RandomResizedCrop | None:
        """The crop, where it is of pictures: then views have none."""
        return self.crop if self.crop_of == "picture" else None

    def make_views(self, seed: int) -> Views:
        """What ``views`` names; T_urrl where it is own."""
        crop = self.crop if self.picture_crop is None else None
        name = "urrl" if self.views == "own" else self.views
        family = view_family(
            name,
            self.p if name == "urrl" else None,
            share_family=self.share_family,
            blur_p=self.blur,
            severity=self.augmix,
        )
        return Views(family, crop, seed)


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
