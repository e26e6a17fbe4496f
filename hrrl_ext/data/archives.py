"""Images in NumPy archives (.npz)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .concept_map import ConceptMap
from .image_sets import ArrayImages

LAYOUT = (
    "a NumPy archive (.npz) with image [N, H, W], [N, H, W, 3] or [N, 3, H, W] (uint8, or float "
    "in [0, 1]), label [N] (integers), and optionally class_names [C], concept_names [K], "
    "class_to_concept [C]"
)
_KEYS = ("image", "label", "class_names", "concept_names", "class_to_concept")


def open_archives(paths: Sequence[str | os.PathLike[str]]) -> ArrayImages:
    """One image set out of one archive or of several parts, concatenated in the order given.

    Raises FileNotFoundError, or ValueError naming the file for a broken archive, another layout, or
    parts that disagree on image size, dtype, classes or concepts. Pickled content is refused.
    """
    if not paths:
        raise ValueError("images: the list of archives is empty")
    parts = [_open_archive(Path(path)) for path in paths]
    first, *others = parts
    if not others:
        return first
    for path, part in zip(paths[1:], others, strict=True):
        for what, ours, theirs in (
            ("image size", first.image_shape, part.image_shape),
            ("dtype", first.images.dtype, part.images.dtype),
            ("classes", first.classes, part.classes),
            ("concepts", first.concept_map, part.concept_map),
        ):
            if ours != theirs:
                raise ValueError(f"{path}: {what} differ from {paths[0]}: {theirs} and {ours}")
    joined = first.with_images(
        torch.cat([part.images for part in parts]), torch.cat([part.target for part in parts])
    )
    joined.name = f"{first.name} and {len(others)} more"
    return joined


def _open_archive(path: Path) -> ArrayImages:
    arrays = _read(path)
    try:
        return ArrayImages(
            arrays["image"],
            arrays["label"],
            classes=_strings(arrays["class_names"]) if "class_names" in arrays else None,
            concept_map=_concept_map(arrays),
            name=path.stem,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected {LAYOUT}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {LAYOUT}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KEYS if key in archive}
    except Exception as error:  # numpy, zipfile and zlib raise many types for broken files
        raise ValueError(f"{path}: not a readable archive ({error}); expected {LAYOUT}") from error
    missing = [key for key in ("image", "label") if key not in arrays]
    if missing:
        raise ValueError(f"{path}: no array {' or '.join(missing)}; expected {LAYOUT}")
    return arrays


def _concept_map(arrays: dict[str, np.ndarray]) -> ConceptMap | None:
    names, ids = arrays.get("concept_names"), arrays.get("class_to_concept")
    if names is None and ids is None:
        return None
    if names is None or ids is None:
        raise ValueError("concept_names and class_to_concept belong together, got one of them")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"class_to_concept must hold integers, got {ids.dtype}")
    return ConceptMap(torch.from_numpy(ids.astype(np.int64)), _strings(names))


def _strings(names: np.ndarray) -> list[str]:
    return [str(name) for name in names.astype(np.str_).ravel()]  # bytes too
