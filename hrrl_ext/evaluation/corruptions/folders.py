"""Corrupted images on disk, read as they are: the layouts of ImageNet-C and of CIFAR-10-C."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..._reading import reading
from ..._regular import regular
from ...data.folders import FolderImages, class_folders
from ...data.ids import Ids
from ...data.image_sets import ImageSet
from ...data.resize import ImageSize, fit_tensor, sides
from ...spec import not_known
from ...storage import replacing
from .kinds import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, corrupt

if TYPE_CHECKING:
    from PIL import Image

_LAYOUTS = (
    "kind/severity/class/image (ImageNet-C, its archives unpacked beside each other or in a folder "
    "each), or kind.npy [5 N, H, W, 3] uint8 and labels.npy (CIFAR-10-C)"
)
_BATCH = 256


def open_corruptions(
    folder: str | os.PathLike[str], *, classes: Sequence[str] | None = None
) -> Mapping[str, tuple[ImageSet, ...]]:
    """kind → its image sets at severities 1 to 5, of a folder laid out as ImageNet-C or CIFAR-10-C.

    A kind is opened when it is asked for, images are read when they are fetched. Pixels are as
    stored: ImageNet-C is of 224 pixels already, and resizing and cropping it once more is another
    benchmark. An image of another size than its folder's first is an OSError that names it.

    classes: the class names in the order of the model's outputs; None takes the folders of the first
    kind, or the numbers in labels.npy. Raises FileNotFoundError where there is no such layout, and
    ValueError, when a kind is opened, for arrays or folders that do not fit it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {_LAYOUTS}")
    layout = _Arrays if (folder / "labels.npy").is_file() else _Folders
    found = layout(folder, classes)
    if not found:
        raise FileNotFoundError(f"{folder}: no corrupted images; expected {_LAYOUTS}")
    return found


def write_corruptions(
    images: ImageSet,
    folder: str | os.PathLike[str],
    *,
    kinds: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
) -> None:
    """Writes what `open_corruptions` reads, in the layout of CIFAR-10-C: kind.npy and labels.npy.

    Pixels are those of `corrupt` with the same seed, as uint8. A file appears whole or not at all, and
    one that is there is kept, so that a call that was interrupted can be repeated. Raises ValueError
    before anything is written for an unknown kind, or for a folder that holds other images or
    another seed; their first images tell.
    """
    if not len(images):
        raise ValueError(f"write_corruptions: {images.name} has no images")
    folder = Path(folder)
    labels = images.target.repeat(len(SEVERITIES)).numpy()
    missing = []
    first = images.__getitems__([0])[0]
    for kind in kinds:
        expected = [_pixels(corrupt(first, kind, s, seed=seed))[0] for s in SEVERITIES]
        if not (folder / f"{kind}.npy").exists():
            missing.append(kind)
        elif not _begins_with(folder / f"{kind}.npy", expected, len(images)):
            raise ValueError(
                f"{folder / kind}.npy holds other images, or the same with another seed; "
                "write to an empty folder"
            )
    if not (folder / "labels.npy").exists():
        with replacing(folder / "labels.npy") as partial, open(partial, "wb") as file:
            np.save(file, labels)
    elif not np.array_equal(_loaded(folder / "labels.npy"), labels):
        raise ValueError(f"{folder}/labels.npy holds other labels; write to an empty folder")
    for kind in missing:
        with replacing(folder / f"{kind}.npy") as partial:
            _write(images, partial, kind, seed)


def _write(images: ImageSet, path: Path, kind: str, seed: int) -> None:
    n, (channels, height, width) = len(images), images.image_shape
    shape = (len(SEVERITIES) * n, height, width, channels)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, n, _BATCH):
        rows = list(range(start, min(start + _BATCH, n)))
        clean, _ = images.__getitems__(rows)
        for block, severity in enumerate(SEVERITIES):
            made = corrupt(clean, kind, severity, seed=seed, index=rows)
            array[block * n + start : block * n + start + len(rows)] = _pixels(made)
    array.flush()


def _pixels(images: Tensor) -> np.ndarray:
    """[B, H, W, 3] uint8."""
    if images.is_floating_point():
        images = (images * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _begins_with(path: Path, expected: Sequence[np.ndarray], n: int) -> bool:
    array = _loaded(path)
    if array.shape != (len(SEVERITIES) * n, *expected[0].shape):
        return False
    # Another processor may round the other way.
    pairs = zip(array[::n], expected, strict=True)
    return all(np.abs(np.subtract(a, b, dtype=np.int16)).max() <= 1 for a, b in pairs)


def _loaded(path: Path) -> np.ndarray:
    regular(path)
    with reading(f"{path} is no array of NumPy"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


class _OnDisk(Mapping[str, tuple[ImageSet, ...]]):
    """Kinds by name, the published ones first, each opened on its first use."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        known = [kind for kind in CORRUPTIONS + EXTRA_CORRUPTIONS if kind in places]
        others = sorted(set(places) - set(known))
        self._places = {kind: places[kind] for kind in known + others}
        self._opened: dict[str, tuple[ImageSet, ...]] = {}

    def _open(self, kind: str, place: Path) -> tuple[ImageSet, ...]:
        raise NotImplementedError

    def __getitem__(self, kind: str) -> tuple[ImageSet, ...]:
        if kind not in self._places:
            raise KeyError(not_known(kind, self._places))
        if kind not in self._opened:
            self._opened[kind] = self._open(kind, self._places[kind])
        return self._opened[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Arrays(_OnDisk):
    def __init__(self, folder: Path, classes: Sequence[str] | None) -> None:
        files = (file for file in folder.glob("*.npy") if not file.name.startswith("."))
        super().__init__({file.stem: file for file in files if file.stem != "labels"})
        self._labels, self._classes = _loaded(folder / "labels.npy"), classes

    def _open(self, kind: str, place: Path) -> tuple[ImageSet, ...]:
        array = _loaded(place)
        n = len(array) // len(SEVERITIES)
        fits = array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8
        if not fits or len(array) != n * len(SEVERITIES):
            raise ValueError(
                f"{place} must be [5 N, H, W, 3] uint8, one block per severity, "
                f"got {list(array.shape)} {array.dtype}"
            )
        if self._labels.shape not in ((n,), (len(array),)):
            raise ValueError(
                f"{place} has 5 x {n} images, labels.npy must have {n} or {len(array)} labels, "
                f"got {list(self._labels.shape)}"
            )
        labels = np.resize(self._labels, len(array))  # those of one severity hold for all
        blocks = [slice(s * n, (s + 1) * n) for s in range(len(SEVERITIES))]
        return tuple(
            _MappedImages(array[block], labels[block], self._classes, f"{place.stem} {severity}")
            for severity, block in zip(SEVERITIES, blocks, strict=True)
        )


class _MappedImages(ImageSet):
    """Images of an array on disk [N, H, W, 3] uint8, of which the system reads what is fetched."""

    def __init__(
        self, array: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None, name: str
    ) -> None:
        shape = (3, array.shape[1], array.shape[2])
        super().__init__(labels, shape, classes=classes, concept_map=None, name=name)
        self._array, self._place = array, np.arange(len(array))
        self._image_size: ImageSize | None = None

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        rows = self._rows(indices)
        stored = torch.from_numpy(self._array[self._place[rows.numpy()]])
        images = stored.permute(0, 3, 1, 2).contiguous()
        if self._image_size is not None:
            images = fit_tensor(images, self._image_size)
        return images, self.target[rows]

    def subset(self, indices: Ids) -> ImageSet:
        rows = self._rows(indices)
        chosen = copy.copy(self)
        chosen._place, chosen.target = self._place[rows.numpy()], self.target[rows]
        chosen.columns = self._columns_of(rows)
        return chosen

    def resized(self, image_size: ImageSize) -> ImageSet:
        other = copy.copy(self)
        other._image_size, other.image_shape = image_size, (3, *sides(image_size))
        return other


class _Folders(_OnDisk):
    def __init__(self, folder: Path, classes: Sequence[str] | None) -> None:
        candidates = [*folder.glob("*/1"), *folder.glob("*/*/1")]  # kind/1, noise/kind/1
        super().__init__(
            {place.parent.name: place.parent for place in candidates if place.is_dir()}
        )
        if classes is None and self:
            classes = class_folders(self._places[next(iter(self))] / "1")
        self._classes = classes

    def _open(self, kind: str, place: Path) -> tuple[ImageSet, ...]:
        return tuple(_StoredImages(place / str(s), self._classes) for s in SEVERITIES)


class _StoredImages(FolderImages):
    """Files of one size, in root/class/image, whose pixels are not touched."""

    def __init__(self, root: Path, classes: Sequence[str] | None) -> None:
        super().__init__(root, image_size=1, classes=classes)
        self._size: tuple[int, int] | None = None
        self._size = self._open(self.sources[0]).size
        self.image_shape = (3, *self._size[::-1])

    def _open(self, source: str) -> Image.Image:
        picture = super()._open(source)
        if self._size not in (None, picture.size):
            raise ValueError(
                f"expected {self._size} pixels as in the first image, got {picture.size}"
            )
        return picture
