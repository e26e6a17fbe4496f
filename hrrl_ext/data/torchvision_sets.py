"""Data sets of torchvision that are already on disk. Nothing is ever downloaded."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..spec import not_known
from .concept_map import ConceptMap
from .decoding import read_picture
from .folders import DecodedImages
from .ids import class_ids
from .image_sets import ArrayImages, ImageSet
from .resize import ImageSize

if TYPE_CHECKING:
    from PIL import Image

_CONCEPTS = {"CIFAR100": ConceptMap.cifar100, "ImageNet": ConceptMap.imagenet}
# Where torchvision's classes keep their labels; decoding every image for them would take minutes.
_LABELS = ("targets", "labels", "_labels", "y")
_PAIRS = ("_samples", "samples")  # (file, label)


def open_torchvision(
    name: str, split: str, image_size: ImageSize | None, root: str | os.PathLike[str] | None
) -> ImageSet:
    """torchvision.datasets.<name> from root: in memory where it holds an array, else decoded late.

    Raises ImportError without a working torchvision, ValueError for an unknown name or split,
    FileNotFoundError where torchvision does not find the data.
    """
    if root is None:
        raise ValueError(f"torchvision:{name} needs root=..., the folder that holds the data")
    dataset = _construct(_data_set_class(name), name, split, os.fspath(root))
    if hasattr(dataset, "loader"):  # of a folder of files: they are decoded as all others are
        dataset.loader = read_picture
    labels = _labels(dataset, name)
    classes = _class_names(dataset, labels)
    make_map = _CONCEPTS.get(name)
    concept_map = make_map(classes) if make_map else None
    full_name = f"torchvision:{name}"
    data = getattr(dataset, "data", None)
    if isinstance(data, np.ndarray | Tensor):
        return ArrayImages(data, labels, classes=classes, concept_map=concept_map, name=full_name)
    if image_size is None:
        raise ValueError(
            f"{full_name} decodes files of many sizes: give image_size=..., the side in pixels"
        )
    return _WrappedImages(
        dataset,
        labels,
        image_size=image_size,
        classes=classes,
        concept_map=concept_map,
        name=full_name,
    )


class _WrappedImages(DecodedImages):
    """Rows of a torchvision data set."""

    def __init__(self, dataset: Any, labels: Sequence[int], **settings: Any) -> None:
        super().__init__(range(len(dataset)), labels, **settings)
        self.dataset = dataset

    def _open(self, source: int) -> Image.Image:
        picture: Image.Image = self.dataset[source][0]
        return picture


def _data_set_class(name: str) -> Any:
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(
            f"torchvision:{name} needs a torchvision that matches torch ({error}): "
            'pip install "hrrl_ext[torchvision]"'
        ) from error
    if not inspect.isclass(getattr(datasets, name, None)):
        raise ValueError(f"torchvision: data set {not_known(name, datasets.__all__)}")
    return getattr(datasets, name)


def _construct(data_set_class: Any, name: str, split: str, root: str) -> Any:
    options = inspect.signature(data_set_class).parameters
    no_download = {"download": False} if "download" in options else {}
    unknown_split: Exception | None = None
    for choice in _split_arguments(options, split):
        try:
            return data_set_class(root, **choice, **no_download)
        except ValueError as error:  # torchvision's answer to an unknown split
            unknown_split = error
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"torchvision:{name}: no data under {root} ({error}); "
                "nothing is downloaded, place the files there"
            ) from error
    reason = unknown_split or "the set has train and test only"
    raise ValueError(f"torchvision:{name} has no split {split!r}: {reason}") from unknown_split


def _split_arguments(options: Container[str], split: str) -> list[dict[str, Any]]:
    """Arguments that choose the split, in the order to try them."""
    if "train" in options:
        return [{"train": split == "train"}] if split in ("train", "test") else []
    if "split" in options:  # "test" means the held-out images, which some sets call "val"
        return [{"split": s} for s in (("test", "val") if split == "test" else (split,))]
    return [{}]  # one set without splits


def _labels(dataset: Any, name: str) -> list[int]:
    found = [getattr(dataset, attribute, None) for attribute in _LABELS]
    found += [_second(getattr(dataset, attribute, None)) for attribute in _PAIRS]
    labels = next((v for v in found if v is not None and len(v) == len(dataset)), None)
    if labels is None:
        labels = [dataset[i][1] for i in range(len(dataset))]
    try:
        return [int(label) for label in labels]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"torchvision:{name} has no single class per image ({error}); "
            "convert it to a tuple (images, target)"
        ) from error


def _second(pairs: Sequence[tuple[Any, Any]] | None) -> list[Any] | None:
    return None if pairs is None else [label for _, label in pairs]


def _class_names(dataset: Any, labels: list[int]) -> list[str]:
    """WordNet ids where the set has them (they identify a class), else its names, else numbers."""
    names = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)
    if names is None:
        return [str(i) for i in range(class_ids(labels, "target")[1])]
    return [name if isinstance(name, str) else ", ".join(name) for name in names]
