"""Distribution shifts that make a target task out of a data set: worse images, another mix of
concepts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .ids import Ids, checked_ids
from .image_sets import ArrayImages, ImageSet

_CHUNK = 1024  # images in float32 at a time


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


def _lowered(images: Tensor, factor: int) -> Tensor:
    """images [B, 3, H, W] → the same shape and dtype."""
    small = F.avg_pool2d(images.float(), factor)
    large = F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)
    return large.round_() if images.dtype == torch.uint8 else large.clamp_(0, 1)
