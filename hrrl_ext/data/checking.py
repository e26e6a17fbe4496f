"""A source looked at before a long run: every image is read once, and what may go wrong is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .check_report import CheckReport, Part, first_places, part_at
from .columns import sorted_names
from .folders import FolderImages, class_folders
from .image_sets import ImageSet
from .layouts import split_folders
from .leaving_out import split_leave_out
from .lists import metadata_of
from .looking import BIT, LOOKED, Limits, look_at
from .same import same_images
from .sources import ANY_SIZE, Source, open_as_is, takes_root
from .splits import SPLITS
from .unreadable import in_threads, name_of

_REASONS = 10_000  # whose words are kept; of more the kind alone is


def check(
    *sources: Source,
    splits: Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    num_workers: int = 0,
    min_size: int = 32,
    max_aspect: float = 4.0,
    min_images: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every image of one source or of several once, and report what may stop or spoil a training.

    Args:
        sources: whatever :func:`load_images` opens. Several, and the splits of each, are parts, of which
            no image may be in two; the last is what is measured on.
        splits: which of train, val and test to read; those that a source has if not given.
        root: where sets of torchvision, or the images of a list, lie.
        num_workers: threads that decode, besides none.
        min_size: pixels; a picture with a shorter side is reported.
        max_aspect: of the longer side over the shorter; what is beyond is reported.
        min_images: of a class; one with fewer is reported.
        progress: is told how many images of how many are done.

    Returns:
        :class:`CheckReport`. Of an image some 60 bytes and its name are kept, and no pixels.

    Images that show the same pixels, whatever the format of their files, are found by digests of 128
    bits. Sizes, depths and orientations are those of files; images in memory, and those that a source
    decodes for itself, have what is left of them. Deterministic. Raises what :func:`load_images` does
    for a source that cannot be opened, but for a folder whose classes alone are at fault.
    """
    limits = Limits(min_size, max_aspect, min_images)
    return examined(open_parts(sources, splits, root), limits, num_workers, progress)


# --- what is read


def open_parts(
    sources: Sequence[Source],
    splits: Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> list[Part]:
    """Every split of every source, once."""
    if not sources:
        raise ValueError("check: no source is given; name a folder, a list or an archive")
    parts: list[tuple[ImageSet, str, str]] = []
    for source in sources:
        its_root = root if takes_root(source) else None
        of_source: list[tuple[ImageSet, str, str]] = []
        errors = []
        for split in _splits_of(source) if splits is None else splits:
            try:
                images, refused = _opened(source, split, its_root)
            except (FileNotFoundError, ValueError) as error:
                if splits is not None:
                    raise
                errors.append(error)
                continue
            if not any(same_images(images, other) for other, _, _ in of_source):
                of_source.append((images, split, refused))
        if not of_source:
            raise errors[0]
        parts += of_source
    names = [images.name for images, _, _ in parts]
    return [
        Part(f"{name} {split}" if names.count(name) > 1 else name, images, refused)
        for name, (images, split, refused) in zip(names, parts, strict=True)
    ]


def _splits_of(source: Source) -> Sequence[str]:
    """Those to try."""
    source, _ = split_leave_out(source)
    if isinstance(source, str | os.PathLike):
        folder = Path(source)
        if folder.is_dir() and metadata_of(folder) is None:
            return list(split_folders(folder)) or SPLITS[:1]
        return SPLITS
    is_archives = isinstance(source, list | tuple) and isinstance(source[0], str | os.PathLike)
    return SPLITS if is_archives else SPLITS[:1]


def _opened(source: Source, split: str, root: Any) -> tuple[ImageSet, str]:
    """A set, and why training refuses it where its folders of classes are at fault."""
    try:
        return open_as_is(source, split, root), ""
    except (FileNotFoundError, ValueError) as error:
        if not isinstance(source, str | os.PathLike):
            raise
        images = _whatever_classes(Path(source), split)
        if images is None:
            raise
        return images, str(error)


def _whatever_classes(root: Path, split: str) -> ImageSet | None:
    """Of a folder of class folders, where some are empty, or not those of the training folder."""
    if not root.is_dir() or metadata_of(root) is not None:
        return None
    folders = split_folders(root)
    folder = folders.get(split, root)
    classes = {name for at in {folders.get("train", root), folder} for name in class_folders(at)}
    try:
        return FolderImages(folder, image_size=ANY_SIZE, classes=sorted_names(classes))
    except (FileNotFoundError, ValueError):
        return None


# --- reading


def examined(
    parts: Sequence[Part],
    limits: Limits,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """`check` of what is opened."""
    total, done = sum(len(part.images) for part in parts), 0
    looked = np.zeros(total, LOOKED)
    reasons: dict[int, str] = {}
    for part in parts:
        look = partial(_look, part.images, limits)
        for seen, why in in_threads(look, range(len(part.images)), num_workers):
            looked[done] = seen
            if why and len(reasons) < _REASONS:
                reasons[done] = why
            done += 1
            if progress is not None:
                progress(done, total)
    twin, leave = _find_same(parts, looked)
    return CheckReport(list(parts), limits, looked, reasons, twin, _find_case(parts, looked), leave)


def _look(images: ImageSet, limits: Limits, row: int) -> tuple[np.ndarray, str]:
    return look_at(images, row, limits)


# --- images that are alike


def _groups(keys: np.ndarray, among: np.ndarray) -> Iterable[list[int]]:
    """Places ``among`` all [N] whose keys [N, K] are equal, in order, of two and more."""
    rows = np.flatnonzero(among)
    columns = keys[rows]
    order = np.lexsort(columns.T[::-1])  # stable, so that each group is in order
    columns, rows = columns[order], rows[order]
    if not len(rows):
        return
    differ = (columns[1:] != columns[:-1]).any(1)
    ends = [*(np.flatnonzero(differ) + 1).tolist(), len(rows)]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        if end - begin > 1:
            yield rows[begin:end].tolist()


@dataclass(frozen=True)
class _Places:
    """Part and class of each image, counted over all parts."""

    part: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Part]) -> _Places:
        names = {
            name: at
            for at, name in enumerate(dict.fromkeys(n for p in parts for n in p.images.classes))
        }
        labels = [
            np.array([names[name] for name in part.images.classes])[part.images.target.numpy()]
            for part in parts
        ]
        sizes = [len(part.images) for part in parts]
        return cls(np.repeat(np.arange(len(parts)), sizes), np.concatenate(labels))


def _find_same(parts: Sequence[Part], looked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Marks images that show the same; the other one of each [N], -1 without, and which to leave out [N].

    Of a class one stays, of classes that contradict each other in a part none, and of parts those that
    are in the last of them.
    """
    places = _Places.of(parts)
    twin = np.full(len(looked), -1)
    leave = np.zeros(len(looked), bool)
    for rows in _groups(looked["pixels"], (looked["pixels"] != 0).any(1)):
        part, label = places.part[rows].tolist(), places.label[rows].tolist()
        in_classes: dict[int, set[int]] = {}
        for p, c in zip(part, label, strict=True):
            in_classes.setdefault(p, set()).add(c)
        met: set[tuple[int, int]] = set()
        for row, p, c in zip(rows, part, label, strict=True):
            kinds = {
                "contradicting": len(set(label)) > 1,
                "leaked": len(in_classes) > 1,
                "repeated": (p, c) in met,
            }
            met.add((p, c))
            looked["found"][row] |= sum(BIT[kind] for kind, there in kinds.items() if there)
            leave[row] = kinds["repeated"] or len(in_classes[p]) > 1 or p != part[-1]
        twin[rows] = _others(rows, label if len(set(label)) > 1 else part)
    return twin, leave


def _others(rows: Sequence[int], of: Sequence[int]) -> list[int]:
    """For each of ``rows`` another one: of another part or class, as ``of`` has it, if there is one."""
    first = rows[0]
    other = next((row for row, place in zip(rows, of, strict=True) if place != of[0]), None)
    if other is None:
        return [rows[1], *[first] * (len(rows) - 1)]
    return [other if place == of[0] else first for place in of]


def _find_case(parts: Sequence[Part], looked: np.ndarray) -> dict[int, int]:
    """Marks files whose names a system without case takes for one; for each another."""
    first = first_places(parts)
    found: dict[int, int] = {}
    for rows in _groups(looked["name"][:, None], looked["name"] != 0):
        names: dict[str, dict[str, int]] = {}
        for row in rows:  # by their letters, as a digest of 64 bits may be shared by chance
            part, at = part_at(parts, first, row)
            name = name_of(part.images, at)
            names.setdefault(name.casefold(), {}).setdefault(name, row)
        for alike in names.values():
            if len(alike) > 1:
                same = list(alike.values())
                looked["found"][same] |= BIT["case"]
                found |= dict(zip(same, _others(same, [0] * len(same)), strict=True))
    return found
