"""Distribution shifts that make a target task out of a data set: worse images, another mix of
concepts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import NUMBER, not_known, read_settings, split_spec
from .ids import Ids, checked_ids
from .image_sets import ArrayImages, ImageSet

_CHUNK = 1024  # images in float32 at a time
_IMAGENET = (129, 121, 118, 107, 106, 100, 80, 67, 59, 57, 56)  # classes of its concepts, sorted
_PROFILES = {"equal": False, "linear": True, "tail": True, "imagenet": False}
"""Whether a ratio follows the name."""


def lower_resolution(images: ArrayImages, factor: int = 2) -> ArrayImages:
    """Example-level shift: images at 1/factor of their resolution, enlarged again to the old size.

    Each factor x factor block is replaced by its mean, then the small image is enlarged bilinearly;
    uint8 is rounded once, at the end. Labels and concepts stay; factor = 1 changes nothing.
    Deterministic. Raises TypeError for an image set that is not in memory, ValueError for a factor
    that does not divide both sides.
    """
    if not isinstance(images, ArrayImages):
        raise TypeError(
            f"lower_resolution: images must be ArrayImages, got {type(images).__name__}"
        )
    height, width = images.image_shape[1:]
    if isinstance(factor, bool) or not isinstance(factor, int):
        raise TypeError(f"lower_resolution: factor must be an int, got {factor!r}")
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"lower_resolution: factor must divide the size {height} x {width}, got {factor}; "
            "choose a divisor, or resize first"
        )
    lowered = torch.empty_like(images.images)
    for start in range(0, len(images), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        lowered[chunk] = _lowered(images.images[chunk], factor)
    return images.with_images(lowered, images.target)


def imbalance(images: ImageSet, concept: Ids, keep: Sequence[float], seed: int) -> ImageSet:
    """Concept-level shift: keep only a share of each concept's images.

    concept: [N] integer ids in 0..K-1; keep: K shares in [0, 1]. Of concept k, keep[k] N_k images
    stay (rounded half up, at least one), chosen at random, in their old order. The choice depends
    on seed and concept ids alone, and a larger share keeps a superset. Raises ValueError for other
    shares, sizes or ids, or a concept without images.
    """
    concept = checked_ids(concept, "imbalance: concept", size=len(images), bound=len(keep))
    outside = [share for share in keep if not 0 <= share <= 1]
    if outside:
        raise ValueError(f"imbalance: keep must hold shares in [0, 1], got {outside[0]}")
    absent = sorted(set(range(len(keep))) - set(concept.tolist()))
    if absent:
        raise ValueError(
            f"imbalance: keep must have one share per concept, got {len(keep)} shares, but no "
            f"image of concept {absent[0]}"
        )
    shuffled = torch.randperm(len(concept), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for k, share in enumerate(keep):
        members = shuffled[concept[shuffled] == k]
        chosen.append(members[: max(1, math.floor(share * len(members) + 0.5))])
    return images.subset(torch.cat(chosen).sort().values)


def concept_shares(
    profile: str, concept_count: Sequence[int], *, seed: int | None = None
) -> list[float]:
    """What to ``imbalance`` as keep, so that the concepts' sizes follow a profile.

    ===========  ==============================================================================
    equal        all the same
    linear:R     from 1 down to 1/R in even steps: "linear:10"
    tail:R       from 1 down to 1/R by an even factor, R^(-k/(K-1)): "tail:100", a long tail
    imagenet     sizes of ImageNet's 11 concepts (129 to 56 of its 1000 classes) from the largest
                 to the smallest; for K concepts this falling line is read at K even places
    ===========  ==============================================================================

    concept_count: [K] N_k of the images at hand. As many images stay as the profile allows: the
    concept that is scarcest against it keeps all of its own. ``seed`` draws which concept gets
    which place; None gives the first concept the largest. Raises ValueError for a profile that is
    not known, a ratio below 1, and a concept without images.
    """
    if not len(concept_count) or min(concept_count) < 1:
        raise ValueError(
            "concept_shares: concept_count must hold the number of images of each concept, at least "
            f"1, got {list(concept_count)}"
        )
    size = torch.tensor(_profile(profile, len(concept_count)), dtype=torch.float64)
    if seed is not None:
        size = size[torch.randperm(len(size), generator=torch.Generator().manual_seed(seed))]
    count = torch.tensor(concept_count, dtype=torch.float64)
    keep = size / count * (count / size).min()
    return keep.clamp_(max=1.0).tolist()  # the scarcest, whatever the rounding


def few_per_class(images: ImageSet, count: int, seed: int) -> Tensor:
    """Row numbers of ``count`` images of every class that has any, in their old order.

    By the seed and the labels alone: fewer are part of more, and what is drawn of a class does not
    depend on the others. Raises ValueError for a class that has fewer.
    """
    if count < 1:
        raise ValueError(f"few_per_class: count must be at least 1, got {count}")
    rows = []
    for c in images.target.unique().tolist():
        members = (images.target == c).nonzero().flatten()
        if len(members) < count:
            raise ValueError(
                f"class {images.classes[c]!r} of {images.name} has {len(members)} images, fewer than "
                f"{count}"
            )
        own = torch.Generator().manual_seed(seed * images.num_classes + c)
        rows.append(members[torch.randperm(len(members), generator=own)[:count]])
    return torch.cat(rows).sort().values


def _profile(profile: str, count: int) -> list[float]:
    """Sizes of ``count`` concepts against the largest, from that on."""
    name, text = split_spec(profile)
    if name not in _PROFILES:
        raise ValueError(f"profile {not_known(name, _PROFILES)}")
    has_ratio = _PROFILES[name]
    readers = {"ratio": NUMBER} if has_ratio else {}
    where = f"profile {profile!r}"
    first, form = ("ratio", f"{name}:10") if has_ratio else (None, name)
    ratio = read_settings(where, text, readers, first=first, form=form).get("ratio", 1.0)
    if ratio < 1:
        raise ValueError(f"{where}: the ratio of the largest to the smallest is at least 1")
    places = [k / max(1, count - 1) for k in range(count)]
    match name:
        case "linear":
            return [1 - (1 - 1 / ratio) * place for place in places]
        case "tail":
            return [ratio**-place for place in places]
        case "imagenet":
            return [_read_at(_IMAGENET, place) / _IMAGENET[0] for place in places]
    return [1.0] * count


def _read_at(values: Sequence[float], place: float) -> float:
    """Between the first, at 0, and the last, at 1; linear between neighbours."""
    at = place * (len(values) - 1)
    left = min(int(at), len(values) - 2)
    return values[left] + (at - left) * (values[left + 1] - values[left])


def _lowered(images: Tensor, factor: int) -> Tensor:
    """images [B, 3, H, W] → the same shape and dtype."""
    small = F.avg_pool2d(images.float(), factor)
    large = F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)
    return large.round_() if images.dtype == torch.uint8 else large.clamp_(0, 1)
