"""Image files of which nothing but the pixels is taken, as pretraining has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .decoding import SUFFIXES
from .files import files_below, folders_in, is_image, tell_left_out
from .folders import ImageFiles
from .resize import ImageSize
from .splits import chosen_split, splits_among

PREFIX = "files:"


def image_files(root: Path, split: str, image_size: ImageSize) -> ImageFiles:
    """All images in a folder and below it, by their paths, whatever the folders between are called.

    Where it holds folders train, val or test, by any of their usual names, those in that of ``split``:
    "test" falls back to "val", and "all" is everything. Raises FileNotFoundError for a missing folder
    and where no file is an image, ValueError for a split that is not there.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; {PREFIX}FOLDER takes all images below it")
    splits = splits_among(folders_in(root))
    tops = [root]
    if splits and split != "all":
        wanted = chosen_split(split, sorted(set(splits.values())), f"{root}: no folder")
        tops = [root / name for name, of in splits.items() if of == wanted]
    return images_within(root, tops, image_size)


def images_within(root: Path, tops: Sequence[Path], image_size: ImageSize) -> ImageFiles:
    """Those of some of its folders."""
    found = [file for top in tops for file in files_below(top)]
    images = sorted(filter(is_image, found))
    if not images:
        raise FileNotFoundError(f"{root}: no image in it or below it ({', '.join(SUFFIXES)})")
    tell_left_out(root, len(images), [file for file in found if not is_image(file)])
    return without_classes(images, image_size, str(root))


def without_classes(files: Sequence[str], image_size: ImageSize, name: str) -> ImageFiles:
    """Image files of which nothing else is known: one class, "image"."""
    return ImageFiles(files, [0] * len(files), image_size=image_size, classes=["image"], name=name)
