"""The corrupted images of an evaluation, made or read, and the errors of all their kinds together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..data import ImageSet, with_classes
from ..data.resize import size_of
from ..spec import nearest
from .config import EvaluationConfig, drawn
from .corruptions import SEVERITIES
from .parts import Part

_IMAGENET_CLASSES, _IMAGENET_SIDE = 1000, 224


class CorruptedImages(NamedTuple):
    """What is measured of corruptions."""

    severities: Callable[[str], list[ImageSet]]
    """a kind's images at severities 1 to 5"""
    points: int
    """images at each severity"""
    kinds: list[str]
    of_imagenet: bool
    """whether AlexNet's errors are of such: examples of all its classes, no smaller than its images"""


def corrupted_images(
    opened: ImageSet,
    images: ImageSet,
    config: EvaluationConfig,
    folder: str | os.PathLike[str] | None,
) -> CorruptedImages:
    """Of all images, as the data count their classes and as the model does; those drawn are measured."""
    from .corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupted

    known = [*CORRUPTIONS, *EXTRA_CORRUPTIONS]
    sides = [*images.image_shape[1:]]
    if folder is None:
        rows = _drawn(len(images), config)

        def severities(kind: str) -> list[ImageSet]:  # drawn last: an image keeps its number
            return [corrupted(images, kind, s, config.seed).subset(rows) for s in SEVERITIES]

    else:
        from .corruptions import open_corruptions

        stored = open_corruptions(folder, classes=opened.classes)
        known = list(stored)
        first = stored[known[0]][0]
        rows = _drawn(len(first), config)
        size, shape = size_of(images.image_shape), first.image_shape
        sides += shape[1:]
        if shape != images.image_shape:
            warnings.warn(
                f"{folder}: corrupted images of {shape[1]} x {shape[2]} pixels are resized to "
                f"{images.image_shape[1]} x {images.image_shape[2]}, as the clean ones are; images of "
                "their own size would be another benchmark",
                stacklevel=3,
            )

        def severities(kind: str) -> list[ImageSet]:
            return [
                with_classes(s.subset(rows), images.classes).resized(size) for s in stored[kind]
            ]

    whole = len(opened.target.unique()) == _IMAGENET_CLASSES and min(sides) >= _IMAGENET_SIDE
    kinds = _kinds(images, config, known, folder)
    return CorruptedImages(severities, len(rows), kinds, whole)


def _drawn(count: int, config: EvaluationConfig) -> Tensor:
    """Row numbers of those corrupted, of those evaluated at all."""
    rows = drawn(count, config.points, config.seed)
    return rows[drawn(len(rows), config.corruption_points, config.seed)]


def _kinds(
    images: ImageSet,
    config: EvaluationConfig,
    known: list[str],
    folder: str | os.PathLike[str] | None,
) -> list[str]:
    """Those that are asked for, of those that are known."""
    if tuple(config.corruptions) in ((), ("none",)):
        return []
    if images.image_shape[0] != 3:
        raise ValueError(
            f"corruptions are of RGB images, and {images.name} has {images.image_shape[0]} channels; "
            'give corruptions=["none"] (--corruptions none)'
        )
    if tuple(config.corruptions) == ("all",):
        return known
    if unknown := [kind for kind in config.corruptions if kind not in known]:
        raise ValueError(
            f"corruptions: no kind is named {nearest(unknown, known)}"
            + (f" in {folder}" if folder is not None else "")
            + f'; give "all", "none" or some of {", ".join(known)}'
        )
    return list(config.corruptions)


def corruptions_together(kinds: list[Part], of_imagenet: bool) -> Part:
    """All corruptions; the mean error, and ImageNet's mCE, are of the 15 that are not extra."""
    from .corruptions import CORRUPTIONS, mean_corruption_error

    error = {part["kind"]: [1 - s["accuracy"] for s in part["severities"]] for part in kinds}
    counted = {kind: error[kind] for kind in CORRUPTIONS if kind in error}
    average = (
        sum(map(sum, counted.values())) / (len(SEVERITIES) * len(counted)) if counted else None
    )
    whole = of_imagenet and len(counted) == len(CORRUPTIONS)
    return {
        "count": kinds[0]["severities"][0]["count"],
        "kinds": [{**part, "extra": part["kind"] not in CORRUPTIONS} for part in kinds],
        "mean_error": average,
        "mce": mean_corruption_error(counted) if whole else None,
    }
