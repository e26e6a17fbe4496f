"""Image files that are decoded when they are fetched. Needs Pillow, the extra `images`."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .._streams import Draws
from ..spec import listed, nearest
from .columns import sorted_names
from .concept_map import ConceptMap
from .decoding import SUFFIXES, as_rgb, read_picture, require_pillow
from .files import files_in, folders_in, images_below, is_image, suffixes_of, tell_left_out
from .ids import Ids
from .image_sets import ImageSet
from .packed import Sources, chosen_of, packed
from .resize import ImageSize, fit_picture, sides
from .views.crops import RandomResizedCrop

if TYPE_CHECKING:
    from PIL import Image


_LEFT = 2
"""How many times the wanted size a JPEG that is decoded at reduced scale has left."""


class DecodedImages(ImageSet):
    """Images decoded, resized and centre cropped to image_size pixels on every fetch, as uint8.

    Nothing is cached; use several workers in `Batches`. A subclass says how to open one of its
    `sources`. Raises OSError naming the image where one cannot be decoded.
    """

    reduced = False
    """whether a JPEG is decoded at reduced scale, as long as that is twice image_size or more"""

    def __init__(
        self,
        sources: Sources,
        target: Sequence[int],
        *,
        image_size: ImageSize,
        classes: Sequence[str],
        concept_map: ConceptMap | None = None,
        name: str,
    ) -> None:
        shape = (3, *sides(image_size))
        require_pillow()
        super().__init__(target, shape, classes=classes, concept_map=concept_map, name=name)
        self.sources = packed(sources)

    def _open(self, source: Any) -> Image.Image:
        """The picture behind one element of `sources`, by `_read`."""
        raise NotImplementedError

    def _read(self, file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
        return read_picture(file, least=_LEFT * max(self.image_shape[1:]) if self.reduced else None)

    def at_reduced_scale(self) -> Self:
        """The same images, and that in their name: a run that goes on must have the same pixels."""
        other = copy.copy(self)
        if not self.reduced:
            other.reduced, other.name = True, f"{self.name}:decode=reduced"
        return other

    def picture(self, row: int, look: Callable[[Image.Image], object]) -> Image.Image:
        """A whole picture, in RGB and upright, for whoever looks at files: ``look`` is shown it as it was
        opened. Raises whatever the decoder does."""
        whole = copy.copy(self)
        whole.reduced = False
        opened = whole._open(self.sources[row])
        look(opened)
        return as_rgb(opened)

    def told(self, source: Any) -> str:
        """What messages, and lists of what is left out, call one element of `sources`."""
        return str(source)

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        rows = self._rows(indices)
        images = torch.empty(len(rows), *self.image_shape, dtype=torch.uint8)
        for out, row in zip(images, rows.tolist(), strict=True):
            source = self.sources[row]
            out.copy_(self._decode(source, lambda whole: fit_picture(whole, self.image_shape[1:])))
        return images, self.target[rows]

    def parts(self, indices: Ids, draws: Sequence[Draws], crop: RandomResizedCrop) -> Tensor:
        """Parts of whole pictures, each at its own size: for each of V draws of these images one of every
        picture, which is decoded once; [V, B, 3, H, W] uint8, of the size of ``crop`` or else of the
        images.

        At reduced scale a JPEG has twice that size left even of the smallest part.
        """
        rows = self._rows(indices)
        size = self.image_shape[1:] if crop.size is None else sides(crop.size)
        whole = self.resized(math.ceil(max(size) / crop.narrowest))
        parts = torch.empty(len(draws), len(rows), 3, *size, dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            its = [of_all[place : place + 1] for of_all in draws]
            of_picture = partial(crop.of_picture, draws=its, size=size)
            parts[:, place] = whole._decode(self.sources[row], of_picture)
        return parts

    def _decode(self, source: Any, make: Callable[[Image.Image], Tensor]) -> Tensor:
        """What ``make`` makes of the whole picture, in RGB and upright."""
        try:
            return make(as_rgb(self._open(source)))
        except Exception as error:  # broken files raise many types, from SyntaxError on
            raise OSError(
                f"{self.name}: cannot decode image {self.told(source)}: {error}; hrrl data check names "
                "every such file, and --on_error skip, or hrrl_ext.data.readable, leaves them out"
            ) from error

    def subset(self, indices: Ids) -> Self:
        rows = self._rows(indices)
        chosen = copy.copy(self)
        chosen.sources = chosen_of(self.sources, rows.numpy())
        chosen.target = self.target[rows]
        chosen.columns = self._columns_of(rows)
        return chosen

    def resized(self, image_size: ImageSize) -> DecodedImages:
        other = copy.copy(self)
        other.image_shape = (3, *sides(image_size))
        return other

    def relabelled(self, classes: Sequence[str], number: Sequence[int]) -> DecodedImages:
        return self._relabelled_copy(classes, number)


class ImageFiles(DecodedImages):
    """Image files; `sources` are their paths."""

    sources: Sequence[str]

    def _open(self, source: str) -> Image.Image:
        return self._read(source)

    def picture(self, row: int, look: Callable[[Image.Image], object]) -> Image.Image:
        return read_picture(self.sources[row], look)


class FolderImages(ImageFiles):
    """Images in root/class/image.{png,jpg,...} and in folders below a class; classes in sorted order of
    their names, files as torchvision has them.

    Classes that are all numbers are sorted by value: 2 before 10.

    classes: the expected class names, e.g. those of the training folder, so that class ids agree
    between splits, and some may have no image; None takes the folders that exist. Hidden files and
    folders are skipped, and __MACOSX; a warning says what else is left out. Raises FileNotFoundError
    for a missing folder or one without images, ValueError for a class folder without images or
    outside `classes`, and for a single one that holds folders: those will be the classes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        image_size: ImageSize,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = Path(root)
        folders = class_folders(root)
        if not folders:
            raise FileNotFoundError(no_class_folders(root))
        known = folders if classes is None else list(classes)
        number = {name: c for c, name in enumerate(known)}
        if unknown := [folder for folder in folders if folder not in number]:
            raise ValueError(f"{root}: unknown class folder {nearest(unknown, known)}")
        beside = [os.path.join(root, name) for name in files_in(root)]
        left = [file for file in beside if not is_image(file)]
        images: dict[str, list[str]] = {}
        for folder in folders:
            images[folder], others = images_below(root / folder)
            if classes is None and not images[folder]:
                raise ValueError(_no_image(root, folder, others))
            left += others
        if classes is None:
            _look_for_classes_below(root, images)
        files = [file for of_class in images.values() for file in of_class]
        if not files:
            raise FileNotFoundError(f"{root}: no image in any class folder ({', '.join(SUFFIXES)})")
        tell_left_out(root, len(files), left, [file for file in beside if is_image(file)])
        target = [number[folder] for folder, of_class in images.items() for _ in of_class]
        super().__init__(files, target, image_size=image_size, classes=known, name=str(root))


def class_folders(root: Path) -> list[str]:
    """Names of the folders in root, sorted (`sorted_names`), without hidden ones; FileNotFoundError
    without root."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; expected root/class/image.png (or .jpg, ...)"
        )
    return sorted_names(folders_in(root))


def no_class_folders(root: Path) -> str:
    """What is wrong with a folder of another layout, and what to do about it."""
    files = files_in(root)
    expected = "expected root/class/image.png (or .jpg, ...)"
    if (image := next(filter(is_image, files), None)) is not None:
        return (
            f"{root}: no class folders, but images in itself, such as {image!r}; {expected}, or a "
            f'metadata CSV that has the class of each file; "files:{root}" takes all images as of one '
            "class, to pretrain on"
        )
    return f"{root}: no class folders; {expected}" + (f", got {listed(files)}" if files else "")


def _no_image(root: Path, folder: str, others: Sequence[str]) -> str:
    found = f" but {suffixes_of(others)}" if others else ""
    return (
        f"{root}: class folder {folder!r} holds no image ({', '.join(SUFFIXES)}){found}; move it away, "
        "or convert what is in it"
    )


def _look_for_classes_below(root: Path, images: Mapping[str, Sequence[str]]) -> None:
    """Folders that hold classes, such as sets or domains, are no classes themselves."""
    below = {folder: _folders_of(root / folder, files) for folder, files in images.items()}
    if len(images) == 1 and len(folders := next(iter(below.values()))) > 1:
        (only,) = images
        raise ValueError(
            f"{root}: there is one folder only, {only!r}, which holds the folders {listed(folders)}; if "
            f"those are the classes, give {root / only}"
        )
    count = Counter(folder for folders in below.values() for folder in folders)
    shared = [folder for folder, times in count.items() if times > 1]
    if len(shared) > 1:
        both = [folder for folder, folders in below.items() if shared[0] in folders]
        warnings.warn(
            f"{root}: {listed(both)} are taken for classes, with all images below them; they hold "
            f"folders of the same names, {listed(shared)}. If those are the classes, give "
            f"{root / both[0]}",
            stacklevel=3,
        )


def _folders_of(folder: Path, files: Sequence[str]) -> list[str]:
    """The folders in it that the files lie in, which are in the order of `files_below`; none where one
    lies in itself, as the first then does."""
    if not files or Path(files[0]).parent == folder:
        return []
    begin = len(os.path.join(folder, ""))
    return list(dict.fromkeys(file[begin:].partition(os.sep)[0] for file in files))
