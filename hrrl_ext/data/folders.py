"""Image files that are decoded when they are fetched. Needs Pillow, the extra `images`."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..spec import listed, nearest
from .columns import sorted_names
from .concept_map import ConceptMap
from .ids import Ids
from .image_sets import ImageSet
from .packed import packed
from .resize import ImageSize, fit_picture, sides

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class DecodedImages(ImageSet):
    """Images decoded, resized and centre cropped to image_size pixels on every fetch, as uint8.

    Nothing is cached; use several workers in `Batches`. A subclass says how to open one of its
    `sources`. Raises OSError naming the image where one cannot be decoded.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        target: Sequence[int],
        *,
        image_size: ImageSize,
        classes: Sequence[str],
        concept_map: ConceptMap | None = None,
        name: str,
    ) -> None:
        shape = (3, *sides(image_size))
        _require_pillow()
        super().__init__(target, shape, classes=classes, concept_map=concept_map, name=name)
        self.sources = packed(sources)

    def _open(self, source: Any) -> Image.Image:
        """The picture behind one element of `sources`."""
        raise NotImplementedError

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        rows = self._rows(indices)
        images = torch.empty(len(rows), *self.image_shape, dtype=torch.uint8)
        for out, row in zip(images, rows.tolist(), strict=True):
            out.copy_(self._decode(self.sources[row]))
        return images, self.target[rows]

    def _decode(self, source: Any) -> Tensor:
        try:
            return fit_picture(self._open(source), self.image_shape[1:])
        except Exception as error:  # broken files raise many types, from SyntaxError on
            raise OSError(f"{self.name}: cannot decode image {source}: {error}") from error

    def subset(self, indices: Ids) -> DecodedImages:
        rows = self._rows(indices)
        chosen = copy.copy(self)
        chosen.sources = packed([self.sources[row] for row in rows.tolist()])
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

    def _open(self, source: str) -> Image.Image:
        from PIL import Image

        with Image.open(source) as picture:
            picture.load()  # the file is closed on exit
            return picture


class FolderImages(ImageFiles):
    """Images in root/class/image.{png,jpg,...}; classes and files in sorted order of their names.

    Classes that are all numbers are sorted by value: 2 before 10.

    classes: the expected class names, e.g. those of the training folder, so that class ids agree
    between splits; None takes the folders that exist. Hidden folders are skipped. Raises
    FileNotFoundError for a missing folder or one without images, ValueError for a class folder
    without images or outside `classes`.
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
            raise FileNotFoundError(
                f"{root}: no class folders; expected root/class/image.png (or .jpg, ...)"
            )
        classes = folders if classes is None else list(classes)
        unknown = [folder for folder in folders if folder not in set(classes)]
        if unknown:
            raise ValueError(f"{root}: unknown class folder {nearest(unknown, classes)}")
        files, target = [], []
        for folder in folders:
            names = _image_files(root / folder)
            if not names:
                raise ValueError(
                    f"{root}: class folder {folder!r} holds no image ({', '.join(SUFFIXES)})"
                )
            files += [os.path.join(root, folder, name) for name in names]
            target += [classes.index(folder)] * len(names)
        super().__init__(files, target, image_size=image_size, classes=classes, name=str(root))


def class_folders(root: Path) -> list[str]:
    """Names of the folders in root, sorted (`sorted_names`), without hidden ones; FileNotFoundError
    without root."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; expected root/class/image.png (or .jpg, ...)"
        )
    return sorted_names(
        f.name for f in os.scandir(root) if f.is_dir() and not f.name.startswith(".")
    )


def _image_files(folder: Path) -> list[str]:
    names = (f.name for f in os.scandir(folder) if not f.name.startswith("."))
    return sorted(name for name in names if name.lower().endswith(SUFFIXES))


def open_folder(root: Path, split: str, image_size: ImageSize) -> FolderImages:
    """root/{train,val,test}/class/image where such split folders exist, else root/class/image.

    Class ids come from the training folder, so that they agree where a class is absent from the
    other split.
    """
    # A class may be called "train": a split folder is one that holds folders itself.
    folders = [root / split for split in ("train", "val", "test")]
    splits = [folder.name for folder in folders if folder.is_dir() and class_folders(folder)]
    if not splits:
        return FolderImages(root, image_size=image_size)
    wanted = ("test", "val") if split == "test" else (split,)
    found = next((s for s in wanted if s in splits), None)
    if found is None:
        raise FileNotFoundError(f"{root}: no folder for split {split!r}, only {listed(splits)}")
    classes = class_folders(root / "train") if "train" in splits else None
    return FolderImages(root / found, image_size=image_size, classes=classes)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'decoding image files needs Pillow: pip install "hrrl_ext[images]"'
        ) from error
