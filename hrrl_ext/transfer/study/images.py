"""The images of a study, opened when they are needed and then kept."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data import (
    ArrayImages,
    ImageSet,
    concept_shares,
    few_per_class,
    imbalance,
    load_images,
    lower_resolution,
    resolve_concepts,
    with_classes,
)
from ...data.leaving_out import split_leave_out
from ..table import Target
from .config import ALL, StudyConfig


class StudyImages:
    """Sources by profile and seed, targets by name."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.target = cache(self._target)
        self.source_test = cache(self._source_test)
        self._whole = cache(self._open_source)

    def open_all(self) -> None:
        """Opens the source and every target, and draws the first source of each profile."""
        self.source_test()
        for profile in self.config.profiles:
            self.source(profile, self.config.seeds[0])
        for target in self.config.targets:
            self.target(target)

    def source(self, profile: str, seed: int) -> ImageSet:
        """Images to train on: the seed draws which concept has which size, and which images stay."""
        images, concept = self._whole()
        count = torch.bincount(concept).tolist()
        shares = concept_shares(profile, count, seed=seed)
        return imbalance(images, concept, shares, seed)

    def split(self, profile: str, seed: int) -> tuple[ImageSet, ImageSet]:
        """Of the source's training images, those that a search trains on and those it measures on."""
        search, images = self.config.search, self.source(profile, seed)
        concept, _ = resolve_concepts(self.config.source.concepts, images)
        train, held = split_rows(concept, search.held_out, seed, search.images)
        return images.subset(train), images.subset(held)

    def few(self, target: str, count: int | str, seed: int) -> Tensor:
        """Rows of the target's training images, the same for every method of a seed; nested."""
        train = self.target(target).train
        if count == ALL:
            return torch.arange(len(train))
        return few_per_class(train, int(count), seed)

    def _open_source(self) -> tuple[ImageSet, Tensor]:
        spec = self.config.source
        images = self._open(spec.train, "train")
        concept, _ = resolve_concepts(spec.concepts, images)
        return images, concept

    def _source_test(self) -> ImageSet:
        images, _ = self._whole()
        test = self._open(self.config.source.test, "test")
        return with_classes(test, images.classes, of="source train", data="test")

    def _target(self, name: str) -> Target:
        spec = self.config.targets[name]
        train, test = self._open(spec.train, "train"), self._open(spec.test, "test")
        if spec.lower != 1:
            train, test = (_lowered(name, images, spec.lower) for images in (train, test))
        return Target(name, train, test)

    def _open(self, source: Any, split: str) -> ImageSet:
        size = self.config.source.image_size
        return load_images(located(source, self.config.folder), split=split, image_size=size)


def _lowered(name: str, images: ImageSet, factor: int) -> ImageSet:
    if not isinstance(images, ArrayImages):
        raise TypeError(
            f"study: target {name}: lower is for images in memory, such as an .npz archive, got "
            f"{type(images).__name__}"
        )
    return lower_resolution(images, factor)


def split_rows(
    concept: Tensor, held_out: float, seed: int, images: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to measure on, of so many ``images`` drawn (all, if None): the share
    ``held_out`` of each concept, at least one and not all of it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(concept), generator=generator)[:images].sort().values
    held = torch.zeros(len(rows), dtype=torch.bool)
    for k in concept[rows].unique().tolist():
        members = (concept[rows] == k).nonzero().flatten()
        count = min(len(members) - 1, max(1, round(held_out * len(members))))
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return rows[~held], rows[held]


def located(source: Any, folder: str) -> Any:
    """Files in ``folder``; what has a name of its own, such as digits, stays."""
    if isinstance(source, list | tuple):
        return [located(part, folder) for part in source]
    source, file = split_leave_out(source)
    if file is not None:
        return f"{located(source, folder)}:leave_out={Path(folder) / file}"
    if not isinstance(source, str) or source == "digits" or source.startswith("torchvision:"):
        return source
    kind = next((prefix for prefix in ("hf:", "wds:") if source.startswith(prefix)), "")
    return kind + str(Path(folder) / source.removeprefix(kind))
