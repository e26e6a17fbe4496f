"""Whether two sets are the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from .folders import ImageFiles
from .image_sets import ArrayImages, ImageSet

_LOOKS = 5


def same_images(one: ImageSet, other: ImageSet) -> bool:
    """As far as labels and files tell, or pixels: of one split of a source that was asked for two.

    Images in memory are compared all. Of those that are neither there nor in files of their own, such as
    rows of a table, a few are decoded from either set.
    """
    if one is other:
        return True
    if one.image_shape != other.image_shape or not torch.equal(one.target, other.target):
        return False
    if isinstance(one, ImageFiles) and isinstance(other, ImageFiles):
        return all(a == b for a, b in zip(one.sources, other.sources, strict=True))
    if isinstance(one, ArrayImages) and isinstance(other, ArrayImages):
        return torch.equal(one.images, other.images)
    rows = torch.linspace(0, len(one) - 1, min(_LOOKS, len(one))).long().tolist()
    return all(_alike(_image(one, row), _image(other, row)) for row in rows)


def _image(images: ImageSet, row: int) -> Tensor | None:
    """None where it cannot be read, which others tell of."""
    try:
        return images[row][0]
    except OSError:
        return None


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
