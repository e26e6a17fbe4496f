"""What a run of HRRL trains on and measures: images, and the concept of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arrays import labels_digest
from ..clustering.discovered import DiscoveredConcepts, read_concepts
from ..data import (
    Batches,
    Concepts,
    ImageSet,
    Source,
    concepts_of,
    load_images,
)
from ..data.columns import PREFIX, column_concepts
from ..data.concepts import require_examples
from ..data.ids import Ids, checked_ids
from ..data.sources import takes_root
from ..data.unreadable import Reading, left_out
from ..processes import Processes
from ..spec import listed
from ..training import TrainingConfig
from ..training.opening import as_measured, measured_on
from .config import HRRLConfig


@dataclass
class Sets:
    """The training set in batches, and the validation set, if there is one."""

    images: ImageSet
    batches: Batches
    concept_names: list[str]
    found: DiscoveredConcepts | None
    """where the concepts are to be found; until they are, there is one"""
    validation: Batches | None = None
    group_names: list[str] | None = None
    """of validation_concepts, where the concepts are found"""

    def description(self) -> dict[str, Any]:
        """What a run is of, but for its network: with labels and concepts as they were given, which tell
        nothing of concepts that are found."""
        validation, given = self.validation, self.found is None
        labels, its_labels = [self.images.target], list[Tensor]()
        if given:
            labels.append(self.batches.concept)
        if validation is not None:
            its_labels.append(validation.images.target)
        if validation is not None and (given or self.group_names is not None):
            its_labels.append(validation.concept)
        measured = None if validation is None else validation.images
        return {
            "labels": labels_digest(*labels),
            **measured_on(measured, *its_labels),
            **left_out(data=self.images, validation=measured),
            "concepts": list(self.concept_names) if given else str(self.found),
        }


def open_sets(
    data: Source,
    concepts: Concepts | DiscoveredConcepts,
    validation: Source | None,
    validation_concepts: Ids | str | os.PathLike[str] | None,
    *,
    root: str | None,
    training: TrainingConfig,
    method: HRRLConfig,
    device: torch.device,
    processes: Processes,
    num_workers: int,
    keep_gib: float,
    reading: Reading | None = None,
    as_begun: Callable[[ImageSet], ImageSet] | None = None,
) -> Sets:
    """What the arguments of :class:`hrrl_ext.HRRLTrainer` come to; ``as_begun`` counts the classes of the
    training images as what the run begins with does."""
    reading = reading or Reading()

    def open_images(source: Source, split: str) -> ImageSet:
        its_root = root if takes_root(source) else None
        return load_images(source, split=split, image_size=method.image_size, root=its_root)

    def batches(images: ImageSet, concept: Tensor, *, shuffle: bool) -> Batches:
        return Batches(
            images,
            concept,
            training.batch_size,
            shuffle=shuffle,
            seed=training.seed,
            augment=method.augmentation if shuffle else None,
            crop_of=method.crop_of if shuffle else "image",
            device=device,
            processes=processes,
            num_workers=num_workers,
            keep_gib=keep_gib,
            views=shuffle and method.stored,
            sampling=method.sampling if shuffle else "uniform",
            balance=method.balance,
            augmix=method.mixing if shuffle else None,
            mixtures=2 if shuffle and method.jsd > 0 else 0,
            erasing=method.erased if shuffle else None,
            mixup=method.mixed if shuffle else None,
            shuffle_buffer=training.shuffle_buffer if shuffle else None,
        )

    opened, concepts = open_images(data, "train"), read_concepts(concepts)
    images, rows = reading.take(opened)
    images = images if as_begun is None else as_begun(images)
    found = concepts if isinstance(concepts, DiscoveredConcepts) else None
    if isinstance(concepts, DiscoveredConcepts):
        concept, names = torch.zeros_like(images.target), ["cluster 0"]
    else:
        # Whoever gives concepts by the numbers of classes has those of the data before their eyes, and
        # may have one for each image, readable or not.
        by_class = isinstance(concepts, str) and concepts == "classes"
        concept, names = concepts_of(concepts, images if by_class else opened)
        concept = concept if by_class else concept[rows]
        require_examples(concept, names, images)
    _check_concepts(images, names, found, method)
    sets = Sets(images, batches(images, concept, shuffle=True), names, found)
    if validation is not None:
        measured = open_images(validation, "test")
        measured = as_measured(measured, images)
        kept, rows = reading.take(measured, "validation")
        if validation_concepts is None:
            ids = _validation_concept(sets, measured, concepts)
        else:
            ids, names = _given_concept(sets, measured, validation_concepts)
            sets.group_names = None if found is None else names
        sets.validation = batches(kept, ids[rows], shuffle=False)
    elif validation_concepts is not None:
        raise ValueError("validation_concepts are of validation; give both, or none")
    return sets


def _check_concepts(
    images: ImageSet, names: list[str], found: DiscoveredConcepts | None, config: HRRLConfig
) -> None:
    """That there are several, and that what is asked of those to be found can be had."""
    if found is None:
        if len(names) == 1 and config.lam is not None:
            raise ValueError(
                "concepts: there is one concept only, so the concept level has nothing to weigh; "
                f"give several concepts, or lam=None (got lam={config.lam:g})"
            )
        if len(names) == 1 and config.sampling == "concept":
            raise ValueError(
                "concepts: there is one concept only, so sampling='concept' has nothing to balance; give "
                "several concepts, or another sampling"
            )
        return
    found.check(images.name, len(images), "images", config.q0)


def _given_concept(
    sets: Sets, measured: ImageSet, given: Ids | str | os.PathLike[str]
) -> tuple[Tensor, list[str]]:
    """Of every validation image [N], and the names: where the concepts are found, those of groups of the
    validation set alone."""
    known = None if sets.found is not None else sets.concept_names
    if not isinstance(given, str | os.PathLike):
        bound = None if known is None else len(known)
        ids = checked_ids(given, "validation_concepts", size=len(measured), bound=bound)
        return ids, known or [f"group {k}" for k in range(int(ids.max()) + 1)]
    ids, names = concepts_of(given, measured)
    if known is None:
        return ids, names
    number = {name: k for k, name in enumerate(known)}
    if unknown := [names[k] for k in ids.unique().tolist() if names[k] not in number]:
        raise ValueError(
            f"validation_concepts: {os.fspath(given)} has the concepts {listed(unknown)}, which the "
            f"training images do not have; they have {listed(known)}"
        )
    return torch.tensor([number.get(name, -1) for name in names])[ids], known


def _validation_concept(
    sets: Sets, measured: ImageSet, concepts: Concepts | DiscoveredConcepts
) -> Tensor:
    """Of every validation image [N], as it follows from ``concepts``."""
    images, concept = sets.images, sets.batches.concept
    if sets.found is not None:
        return torch.zeros_like(measured.target)  # until they are found
    if isinstance(concepts, str) and concepts.startswith(PREFIX):
        return column_concepts(concepts, measured.columns, measured.name, sets.concept_names)[0]
    class_to_concept = torch.full((images.num_classes,), -1)
    class_to_concept[images.target] = concept
    if not torch.equal(class_to_concept[images.target], concept):
        raise ValueError(
            "concepts are given per example, so those of the validation set do not follow from "
            "its classes; pass them as validation_concepts"
        )
    follows = class_to_concept[measured.target]
    if (follows < 0).any():
        unknown = images.classes[int(measured.target[follows < 0][0])]
        raise ValueError(
            f"validation has images of class {unknown!r}, of which data has none: its concept is "
            "not known; leave them out or pass validation_concepts"
        )
    return follows
