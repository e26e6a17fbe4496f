"""Images in NumPy archives (.npz)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .._reading import reading
from .._regular import regular
from ..spec import listed
from .concept_map import ConceptMap
from .ids import checked_ids, class_ids
from .image_sets import ArrayImages
from .splits import SPLITS, chosen_split, split_of

LAYOUT = (
    "a NumPy archive (.npz) with image [N, H, W], [N, H, W, 3] or [N, 3, H, W] (uint8, or float "
    "in [0, 1]), label [N] (integers), and optionally class_names [C], concept_names [K], "
    "class_to_concept [C]; or with both for several splits, as x_train, y_train, x_test, y_test or "
    "train_images, train_labels, ..."
)
_NAMES = ("class_names", "concept_names", "class_to_concept")
_IMAGES = ("image", "images", "x", "data")
_LABELS = ("label", "labels", "y", "target", "targets")


def open_archives(paths: Sequence[str | os.PathLike[str]], split: str = "train") -> ArrayImages:
    """One image set out of one archive or of several parts, concatenated in the order given.

    split counts where an archive has splits, as Keras' and MedMNIST's have; "test" falls back to "val".
    Classes without names are counted by the labels of the training split, or of the first part: others
    may lack some of them, and a label beyond them is refused. Raises FileNotFoundError, or ValueError
    naming the file for a broken archive, another layout, or parts that disagree on image size, dtype,
    classes or concepts. Pickled content is refused.
    """
    if not paths:
        raise ValueError("images: the list of archives is empty")
    first = _open_archive(Path(paths[0]), split)
    if len(paths) == 1:
        return first
    of_first = _Counted(len(first.classes), os.fspath(paths[0])) if _is_counted(first) else None
    others = [_open_archive(Path(path), split, of_first) for path in paths[1:]]
    parts = [first, *others]
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


class _Counted(NamedTuple):
    """How many classes there are, and by whose labels."""

    classes: int
    by: str


def _is_counted(images: ArrayImages) -> bool:
    return images.classes == [str(c) for c in range(images.num_classes)]


def _open_archive(path: Path, split: str, of_first: _Counted | None = None) -> ArrayImages:
    """of_first: what the classes are where a part of several, that is not the first, has no names."""
    if not regular(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {LAYOUT}")
    with reading(f"{path}: not a readable archive", f"expected {LAYOUT}"):
        archive = np.load(path, allow_pickle=False)
        names = archive.files
    with closing(archive):
        sets = _sets(names, path)
        of_split = _of_split(sets, split, path)
        left = set(names) - set(_NAMES) - {key for pair in sets.values() for key in pair.values()}
        if left:
            warnings.warn(
                f"{path}: the arrays {listed(sorted(left))} are left out; {of_split['image']} and "
                f"{of_split['label']} are taken",
                stacklevel=4,
            )
        arrays = _read(archive, {key: key for key in _NAMES if key in names} | of_split, path)
        labels = _read(archive, {s: pair["label"] for s, pair in sets.items()}, path)
    try:
        if "class_names" not in arrays:
            opened = next(s for s, pair in sets.items() if pair is of_split)
            arrays |= _counted(labels, opened, of_first)
        return _images(arrays, path.stem)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected {LAYOUT}") from error


def _counted(
    labels: Mapping[str, np.ndarray], opened: str, of_first: _Counted | None
) -> dict[str, np.ndarray]:
    """The label of each image as an id, and names for all: "0", "1", ...; of those of the training split,
    or of all splits where there is none."""
    counted = ["train"] if "train" in labels else list(labels)
    found = {s: class_ids(labels[s], "label") for s in dict.fromkeys([opened, *counted])}
    most = max(found[s][1] for s in counted)
    count = of_first or _Counted(most, f"the split {counted[0]}")
    ids = found[opened][0].numpy()
    if len(ids) and (beyond := ids.max()) >= count.classes:
        raise ValueError(
            f"image {ids.argmax()} has the label {beyond}, and those of {count.by} are in "
            f"0..{count.classes - 1}; mend it, or name all classes by class_names, in every part"
        )
    return {"label": ids, "class_names": np.array([str(c) for c in range(count.classes)])}


def _images(arrays: Mapping[str, np.ndarray], name: str) -> ArrayImages:
    return ArrayImages(
        arrays["image"],
        arrays["label"],
        classes=_strings(arrays["class_names"]),
        concept_map=_concept_map(arrays),
        name=name,
    )


def _sets(names: Sequence[str], path: Path) -> dict[str, dict[str, str]]:
    """split → the names of its images and labels; "" where the archive is one set."""
    if {"image", "label"} <= set(names):
        return {"": {"image": "image", "label": "label"}}
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        kind, split = _kind_and_split(name)
        if kind is not None:
            found.setdefault(split, {}).setdefault(kind, []).append(name)
    for kinds in found.values():
        if several := next((keys for keys in kinds.values() if len(keys) > 1), None):
            raise ValueError(
                f"{path}: {listed(several)} may all be the same; rename the right ones to image and "
                f"label; expected {LAYOUT}"
            )
    pairs = {s: {k: keys[0] for k, keys in kinds.items()} for s, kinds in found.items()}
    whole = {split: pair for split, pair in pairs.items() if len(pair) == 2}
    if "" in whole and len(whole) > 1:
        raise ValueError(
            f"{path}: {listed(list(pairs[''].values()))} stand beside those of splits, "
            f"{listed(sorted(set(whole) - {''}))}; write an archive of each"
        )
    if not whole:
        have = {kind for pair in pairs.values() for kind in pair}
        missing = [kind for kind in ("image", "label") if kind not in have] or [
            "image and label alike"
        ]
        raise ValueError(
            f"{path}: no array {' or '.join(missing)} among {listed(sorted(names))}; expected {LAYOUT}"
        )
    return whole


def _of_split(sets: Mapping[str, dict[str, str]], split: str, path: Path) -> dict[str, str]:
    if "" in sets:  # one set, whatever is asked for
        return sets[""]
    return sets[chosen_split(split, [s for s in SPLITS if s in sets], f"{path}: no image")]


def _kind_and_split(name: str) -> tuple[str | None, str]:
    """x_train, train_images, labels → image or label, and the split, which may be none."""
    words = name.lower().split("_")
    kinds = {"image" if w in _IMAGES else "label" for w in words if w in _IMAGES + _LABELS}
    splits = [split_of(word) for word in words if split_of(word)]
    if len(kinds) != 1 or len(splits) + 1 != len(words):
        return None, ""
    return kinds.pop(), splits[0] or "" if splits else ""


def _read(archive: Any, names: Mapping[str, str], path: Path) -> dict[str, np.ndarray]:
    """What is called names[key] in the archive, by key."""
    with reading(f"{path}: not a readable archive", f"expected {LAYOUT}"):
        return {key: archive[name] for key, name in names.items()}


def _concept_map(arrays: Mapping[str, np.ndarray]) -> ConceptMap | None:
    names, ids = arrays.get("concept_names"), arrays.get("class_to_concept")
    if names is None and ids is None:
        return None
    if names is None or ids is None:
        raise ValueError("concept_names and class_to_concept belong together, got one of them")
    concepts = _strings(names)
    return ConceptMap(checked_ids(ids, "class_to_concept", bound=len(concepts)), concepts)


def _strings(names: np.ndarray) -> list[str]:
    return [str(name) for name in names.astype(np.str_).ravel()]  # bytes too
