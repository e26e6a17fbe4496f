"""Concepts, the coarse level of the hierarchy: every class, or every example, belongs to one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .._regular import regular
from ..spec import listed
from .columns import PREFIX, column_concepts, numbered
from .concept_files import LAYOUT, is_example_file, read_example_concepts
from .concept_map import ConceptMap, without_member
from .ids import Ids, checked_ids
from .image_sets import ImageSet

CLUSTERS = "clusters:"
"""Of concepts that a trainer finds: :class:`hrrl_ext.clustering.DiscoveredConcepts` reads the rest."""

_CHOICES = (
    '"classes" (every class is a concept), "cifar100", "imagenet", "column:NAME" of a '
    f"metadata CSV, a ConceptMap, one integer id per example, or the path of a concept file ({LAYOUT}); "
    f'for training also "{CLUSTERS}K", found by gradient clustering'
)


Concepts: TypeAlias = "str | os.PathLike[str] | ConceptMap | Ids | None"


def resolve_concepts(concepts: Concepts, images: ImageSet) -> tuple[Tensor, list[str]]:
    """:func:`concepts_of`, each with an example: to train on, as N_k = 0 has no weight N/N_k.

    Raises ValueError for a concept without one, besides what concepts_of raises.
    """
    concept, names = concepts_of(concepts, images)
    require_examples(concept, names, images)
    return concept, names


def require_examples(concept: Tensor, names: Sequence[str], images: ImageSet) -> None:
    """ValueError for a concept without an example among those that ``concept`` has the ids of."""
    if empty := without_member(concept, names):
        raise ValueError(
            f"concepts: {images.name} has no example of concept {listed(empty)}, so that its "
            "weight N/N_k is undefined; add examples, or use a map (or ids) without this concept"
        )


def concepts_of(concepts: Concepts, images: ImageSet) -> tuple[Tensor, list[str]]:
    """Concept id of every example [N] int64 (CPU) and the K concept names, also of absent concepts.

    concepts: None (the map that the image set carries), "classes" (every class is a concept),
    "cifar100", "imagenet", "column:NAME" (the values of a column of a metadata CSV, or combinations of
    several, "column:NAME+NAME"), a path to a concept file (by class, or by example, where the concepts
    are numbered in sorted order), a ConceptMap, or one integer id per example [N] (names "0", "1",
    ...). Raises ValueError where no concept is known or sizes differ; FileNotFoundError, TypeError.
    """
    if len(images) == 0:
        raise ValueError(f"concepts: {images.name} has no images")
    if isinstance(concepts, str) and concepts.startswith(CLUSTERS):
        raise ValueError(
            f"concepts: {concepts!r} are clusters of the gradients of a model, which HRRLTrainer finds "
            "while it trains; without one take hrrl_ext.clustering.GradientClustering and its ids"
        )
    if isinstance(concepts, str) and concepts.startswith(PREFIX):
        concept, names = column_concepts(concepts, images.columns, images.name)
    elif isinstance(concepts, (str, os.PathLike)) and is_example_file(concepts):
        concept, names = numbered(read_example_concepts(concepts, len(images)))
    elif concepts is None or isinstance(concepts, (str, os.PathLike, ConceptMap)):
        concept_map = _map_of(concepts, images)
        if concept_map.num_classes != images.num_classes:
            raise ValueError(
                f"concepts: the map has {concept_map.num_classes} classes, "
                f"{images.name} has {images.num_classes}"
            )
        concept, names = concept_map.concept(images.target), list(concept_map.names)
    else:
        # K concepts need K examples, hence the bound.
        concept = checked_ids(concepts, "concepts", size=len(images), bound=len(images))
        names = [str(k) for k in range(int(concept.max()) + 1)]
    return concept, names


def _map_of(concepts: str | os.PathLike[str] | ConceptMap | None, images: ImageSet) -> ConceptMap:
    if isinstance(concepts, ConceptMap):
        return concepts
    if concepts is None:
        if images.concept_map is None:
            raise ValueError(f"concepts: {images.name} carries none of its own; give {_CHOICES}")
        return images.concept_map
    if concepts == "classes":
        return ConceptMap(torch.arange(images.num_classes), images.classes)
    if concepts == "cifar100":
        return ConceptMap.cifar100(images.classes)
    if concepts == "imagenet":
        return ConceptMap.imagenet(images.classes)
    if not regular(concepts).is_file():
        raise FileNotFoundError(f"concepts: {os.fspath(concepts)!r} is no file; give {_CHOICES}")
    return ConceptMap.from_file(concepts, images.classes)
