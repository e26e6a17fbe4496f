"""The concept of every class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spec import listed
from .concept_files import match_classes, read_concept_file, write_concept_file
from .concept_tables import (
    CIFAR100_CONCEPTS,
    IMAGENET_CONCEPTS,
    cifar100_table,
    imagenet_table,
    look_up,
)
from .ids import checked_ids


@dataclass(frozen=True, eq=False, repr=False)
class ConceptMap:
    """Class → concept, for C classes and K concepts.

    class_to_concept: [C] int64 (CPU), values in 0..K-1; names: the K concept names, unique. Every
    concept has at least one class; K = 1 is legal. Tensor and list are copied.
    Raises TypeError for another dtype, ValueError for ids out of range, a concept without class,
    or names that are empty or repeated.
    """

    class_to_concept: Tensor
    names: list[str]

    def __post_init__(self) -> None:
        ids, names = self.class_to_concept, list(self.names)
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"ConceptMap: class_to_concept must be an int64 tensor, got {got}")
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"ConceptMap: names must be unique and not empty, got {names}")
        ids = checked_ids(ids, "ConceptMap: class_to_concept", bound=len(names))
        empty = without_member(ids, names)
        if empty:
            raise ValueError(
                f"ConceptMap: no class belongs to concept {listed(empty)}; leave unused ones out"
            )
        object.__setattr__(self, "class_to_concept", ids)
        object.__setattr__(self, "names", names)

    @property
    def num_classes(self) -> int:
        return len(self.class_to_concept)

    @property
    def num_concepts(self) -> int:
        return len(self.names)

    def concept(self, target: Tensor) -> Tensor:
        """Concept ids [N] int64 of the classes target [N], on the device of target."""
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(f"ConceptMap: target must hold integers, got {target.dtype}")
        # An index of -1 would wrap around in silence.
        if target.numel() and (int(target.min()) < 0 or int(target.max()) >= self.num_classes):
            raise IndexError(
                f"ConceptMap: target must lie in 0..{self.num_classes - 1}, "
                f"got {int(target.min())}..{int(target.max())}"
            )
        return self.class_to_concept.to(target.device)[target.long()]

    def concept_count(self, target: Tensor) -> Tensor:
        """N_k [K] int64 (CPU): the images of each concept among those labelled target [N]."""
        return torch.bincount(self.concept(target).cpu(), minlength=self.num_concepts)

    def renumbered(self, number: Sequence[int], num_classes: int) -> ConceptMap:
        """The map of classes that are counted otherwise: class c is number[c] of ``num_classes``, or -1,
        left out. Concepts keep their order; one that is left without a class is left out.

        A class that this map does not know joins the first concept that is left: none is asked for it.
        """
        of_class = zip(number, self.class_to_concept.tolist(), strict=True)
        concept_of = {n: self.names[k] for n, k in of_class if n >= 0}
        left = set(concept_of.values())
        names = [name for name in self.names if name in left] or self.names[:1]
        return self._numbered([concept_of.get(c, names[0]) for c in range(num_classes)], names)

    @classmethod
    def from_names(cls, concepts: Sequence[str]) -> ConceptMap:
        """From the concept name of every class; concepts are numbered by first appearance.

        ["animal", "animal", "vehicle"] → class_to_concept [0, 0, 1].
        """
        if isinstance(concepts, str):
            raise TypeError(f"ConceptMap: concepts must be a list of names, got {concepts!r}")
        return cls._numbered(concepts, list(dict.fromkeys(concepts)))

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], classes: list[str] | None = None
    ) -> ConceptMap:
        """From a concept file: JSON {"class": "concept", ...}, or CSV headed `class,concept`.

        With `classes`, the file names classes out of this list or gives indices into it; without,
        it gives the indices 0..C-1. Every class is listed once. Concepts are numbered by first
        appearance in the file. Raises FileNotFoundError, or ValueError naming the file and the
        classes that are unknown or missing.
        """
        concept_of = read_concept_file(path)
        try:
            of_class = match_classes(concept_of, classes)
        except ValueError as error:
            hint = "" if classes else "; without class names the classes are the indices 0..C-1"
            raise ValueError(f"concept file {path}: {error}{hint}") from error
        return cls._numbered(of_class, list(dict.fromkeys(concept_of.values())))

    @classmethod
    def cifar100(cls, classes: list[str] | None = None) -> ConceptMap:
        """The 20 official super-classes of CIFAR-100, in their official order.

        classes: None for the official order of the 100 classes, else their names in any order and
        selection; concepts that the selection leaves without class are left out.
        """
        return cls._from_table(look_up(cifar100_table(), classes, "CIFAR-100"), CIFAR100_CONCEPTS)

    @classmethod
    def imagenet(cls, classes: list[str] | None = None) -> ConceptMap:
        """The paper's 11 concepts of the 1000 ILSVRC classes (Table 1), derived from WordNet 3.0.

        classes: None for the usual order (sorted WordNet ids), else WordNet ids ("n02085620") in
        any order and selection; concepts that the selection leaves without class are left out.
        """
        return cls._from_table(look_up(imagenet_table(), classes, "ImageNet"), IMAGENET_CONCEPTS)

    @classmethod
    def _from_table(cls, of_class: list[str], order: Sequence[str]) -> ConceptMap:
        used = set(of_class)
        return cls._numbered(of_class, [name for name in order if name in used])

    @classmethod
    def _numbered(cls, of_class: Sequence[str], names: list[str]) -> ConceptMap:
        number = {name: k for k, name in enumerate(names)}
        return cls(torch.tensor([number[name] for name in of_class], dtype=torch.int64), names)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write a concept file of class indices; `from_file` reads an equal map. Atomic."""
        # Grouped by concept: first appearance in the file then gives each concept its number back.
        order = torch.argsort(self.class_to_concept, stable=True).tolist()
        write_concept_file(path, {str(c): self.names[int(self.class_to_concept[c])] for c in order})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConceptMap):
            return NotImplemented
        same = torch.equal(self.class_to_concept, other.class_to_concept)
        return same and self.names == other.names

    def __hash__(self) -> int:
        return hash((tuple(self.names), tuple(self.class_to_concept.tolist())))

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return f"ConceptMap({self.num_classes} classes, {self.num_concepts} concepts: {names})"


def without_member(ids: Tensor, names: Sequence[str]) -> list[str]:
    count = torch.bincount(ids, minlength=len(names)).tolist()
    return [name for name, n in zip(names, count, strict=True) if n == 0]
