"""Where images come from. Nothing is ever downloaded."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeGuard, overload

import numpy as np
from torch import Tensor

from .archives import open_archives
from .folders import DecodedImages, FolderImages
from .hub_sets import PREFIX as HUGGING_FACE
from .hub_sets import open_hugging_face
from .ids import Ids
from .image_sets import Array, ArrayImages, ImageSet
from .layouts import open_folder
from .leaving_out import split_leave_out, split_setting, without
from .lists import CsvImages, is_list, open_list
from .products import ProductImages
from .resize import ImageSize, sides
from .shards import PREFIX as SHARDS
from .shards import open_shards
from .torchvision_sets import open_torchvision
from .unlabelled import PREFIX as FILES
from .unlabelled import image_files

__all__ = [
    "ArrayImages",
    "CsvImages",
    "FolderImages",
    "ImageSet",
    "ProductImages",
    "Source",
    "load_images",
    "takes_root",
]

FilePath: TypeAlias = "str | os.PathLike[str]"
Source: TypeAlias = "FilePath | Sequence[FilePath] | tuple[Array, Ids] | ImageSet"

_LAYOUTS = (
    '"digits"; a NumPy archive (.npz) with image and label, or a list of its parts; a folder '
    "root/class/image.png or root/{train,val,test}/class/image.png; "
    '"files:FOLDER", all images below it, of one class; '
    "a metadata .csv with columns of images and classes; a .txt list of Stanford Online Products; "
    '"torchvision:NAME" with root=...; "hf:FOLDER", a data set of Hugging Face\'s that is saved on disk; '
    '"wds:train-{000..127}.tar", shards of WebDataset\'s; a tuple (images, target); or an ImageSet'
)
_SPLITS = ("train", "val", "test", "all")
_DIGITS_SEED = 0
_DECODE = re.compile(r"(.+?)[:,]decode=(.+)", re.DOTALL)
ANY_SIZE = 64  # pixels, of image files that are not resized


@overload
def load_images(
    source: Literal["digits"] | tuple[Array, Ids] | ArrayImages,
    *,
    split: str = ...,
    image_size: ImageSize | None = ...,
    root: FilePath | None = ...,
) -> ArrayImages: ...


@overload
def load_images(
    source: Source,
    *,
    split: str = ...,
    image_size: ImageSize | None = ...,
    root: FilePath | None = ...,
) -> ImageSet: ...


def load_images(
    source: Source,
    *,
    split: str = "train",
    image_size: ImageSize | None = None,
    root: FilePath | None = None,
) -> ImageSet:
    """Open images; nothing is downloaded.

    source is one of
    - "digits": scikit-learn's 1797 images of 8 x 8, with splits "train", "test" and "all"
    - a .npz archive, or a list of parts: image, label, and optionally class_names,
      concept_names, class_to_concept; or x_train, y_train, x_test, ... of Keras and MedMNIST
    - a folder: root/{train,val,test}/class/image, or root/class/image; "test" falls back to "val";
      with a metadata.csv the classes are there
    - "files:FOLDER", all images in a folder and below it, of one class, "image"; of folders train, val
      and test in it those of the split
    - a metadata CSV, TSV or JSON lines: "meta.csv", or with its columns named
      "meta.csv:image=FILE,label=CLASS,split=SPLIT", see `CsvImages`
    - Ebay_train.txt, Ebay_test.txt of Stanford Online Products, see `ProductImages`
    - "torchvision:CIFAR10" and other names, with root=... the folder that torchvision expects
    - "hf:FOLDER", what `datasets` of Hugging Face's has saved there (Arrow), or Parquet files as its hub
      has them, see `open_hugging_face`
    - "wds:train-{000..127}.tar", shards of WebDataset's, see `ShardImages`; or a list of such
    - a tuple (images, target), see `ArrayImages`; or an ImageSet, which passes through

    What is written may end with the setting leave_out=FILE, "photos:leave_out=faults.csv" or
    "meta.csv:label=kind,leave_out=faults.csv": the images that FILE names are left out (`without`). Of
    image files, but torchvision's, decode=reduced may stand before it, "photos:decode=reduced": large
    JPEG files are decoded at a half, a quarter or an eighth of their sides, of which twice image_size
    is left.

    root also goes with a list, and with "hf:": the folder that its names are relative to, if another one.
    split counts where the source has splits: a folder without split folders, an archive and a list
    without splits, a tuple and an ImageSet hold one set, and give it for every split. image_size makes
    square images of that side (shorter side resized, bilinear and antialiased, then centre cropped), or
    images of (height, width), scaled to cover them; None keeps the size of arrays, image files need it.
    Raises FileNotFoundError, ValueError or TypeError saying which layouts are accepted.
    """
    images = _open(source, split, image_size, root)
    return images if image_size is None else images.resized(image_size)


def load_images_for(
    source: Source,
    image_size: ImageSize,
    of: str,
    *,
    split: str = "train",
    root: FilePath | None = None,
) -> ImageSet:
    """`load_images` at the size that a model was trained on. A warning says where images that have a size
    of their own are resized to it; ``of`` says whose it is."""
    images = _open(source, split, image_size, root)
    (height, width), there = sides(image_size), images.image_shape[1:]
    if there == (height, width):
        return images
    cropped = "" if there[0] * width == there[1] * height else ", and what is too long is cropped"
    warnings.warn(
        f"{images.name}: images of {there[0]} x {there[1]} pixels are resized to {height} x {width}, "
        f"the size of {of}{cropped}; image_size takes another",
        stacklevel=2,
    )
    return images.resized(image_size)


def open_as_is(source: Source, split: str, root: FilePath | None) -> ImageSet:
    """`load_images` for whoever looks at whole images: arrays in the size that they have."""
    return _open(source, split, ANY_SIZE, root)


def _open(
    source: Source, split: str, image_size: ImageSize | None, root: FilePath | None
) -> ImageSet:
    """In the size that they have, if they have one; files in that which is asked for."""
    if split not in _SPLITS:
        raise ValueError(f"images: split must be one of {', '.join(_SPLITS)}, got {split!r}")
    if image_size is not None:
        sides(image_size)
    source, file = split_leave_out(source)
    if file is not None:
        return without(_open(source, split, image_size, root), file, split=split)
    source, reduced = _split_decode(source)
    if reduced:
        return _at_reduced_scale(_open(source, split, image_size, root))
    if isinstance(source, str) and source.startswith("torchvision:"):
        return open_torchvision(source.removeprefix("torchvision:"), split, image_size, root)
    if isinstance(source, str) and source.startswith(HUGGING_FACE):
        return open_hugging_face(source, split, _required(image_size, source), root)
    if root is not None and not takes_root(source):
        raise ValueError(
            'images: root goes with "torchvision:NAME", "hf:FOLDER", a .csv or a .txt list, got '
            f"root={root!r}"
        )
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, str) and source.startswith(FILES):
        return image_files(Path(source.removeprefix(FILES)), split, _required(image_size, source))
    if isinstance(source, str) and source == "digits":
        return _digits(split)
    if isinstance(source, (str, os.PathLike)) and is_list(source):
        return open_list(source, split, _required(image_size, source), root)
    if _of_shards(source):
        first = source if isinstance(source, str) else source[0]
        return open_shards(source, _required(image_size, first))
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), split, image_size)
    if isinstance(source, (list, tuple)):
        if source and all(isinstance(part, (str, os.PathLike)) for part in source):
            return open_archives([Path(part) for part in source], split)
        if len(source) == 2 and isinstance(source[0], (np.ndarray, Tensor)):
            return ArrayImages(source[0], source[1])
    raise TypeError(f"images: cannot open this {type(source).__name__}; give {_LAYOUTS}")


def _split_decode(source: Any) -> tuple[Any, bool]:
    """A source, and whether the setting decode=reduced stands at its end."""
    source, decode = split_setting(source, _DECODE)
    if decode not in (None, "reduced"):
        raise ValueError(f"images: decode must be reduced, or not there, got {decode!r}")
    return source, decode is not None


def _at_reduced_scale(images: ImageSet) -> ImageSet:
    if not isinstance(images, DecodedImages) or images.name.startswith("torchvision:"):
        raise ValueError(
            f"{images.name}: decode=reduced goes with image files that we decode, of folders, tables, "
            'lists, "hf:" and "wds:"; leave it out'
        )
    return images.at_reduced_scale()


def _open_path(path: Path, split: str, image_size: ImageSize | None) -> ImageSet:
    if path.is_dir():
        return open_folder(path, split, _required(image_size, path))
    if not path.exists():
        raise FileNotFoundError(f"images: {str(path)!r} does not exist; give {_LAYOUTS}")
    if path.suffix.lower() == ".tar":
        raise ValueError(
            f'images: {path} is a tar file; "wds:{path}" reads it as a shard of WebDataset\'s'
        )
    if path.suffix.lower() != ".npz":
        raise ValueError(f"images: {path} is no .npz archive; give {_LAYOUTS}")
    return open_archives([path], split)


def takes_root(source: Source) -> bool:
    """Whether root means something for this source."""
    source, _ = _split_decode(split_leave_out(source)[0])
    with_root = isinstance(source, str) and source.startswith(("torchvision:", HUGGING_FACE))
    return with_root or is_list(source)


def _of_shards(source: Source) -> TypeGuard[str | list[str]]:
    """Whether these are shards; of a pattern with braces a shell makes a list of them."""
    parts = source if isinstance(source, list) else [source]
    return bool(parts) and all(isinstance(p, str) and p.startswith(SHARDS) for p in parts)


def _required(image_size: ImageSize | None, source: FilePath) -> ImageSize:
    if image_size is None:
        raise ValueError(
            f"images: {os.fspath(source)} holds files of any size: give image_size=..., "
            "the side in pixels, or (height, width)"
        )
    return image_size


def _digits(split: str) -> ArrayImages:
    from sklearn.datasets import load_digits

    if split == "val":
        raise ValueError("images: digits has the splits train, test and all, got 'val'")
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 → 0..255
    target = digits.target.astype(np.int64)
    in_test = np.zeros(len(target), dtype=bool)
    # RandomState: NumPy guarantees its stream, so the split never changes.
    random = np.random.RandomState(_DIGITS_SEED)
    for digit in range(10):
        members = random.permutation(np.flatnonzero(target == digit))
        in_test[members[: round(len(members) / 4)]] = True
    chosen = {"train": ~in_test, "test": in_test, "all": np.ones_like(in_test)}[split]
    names = [str(name) for name in digits.target_names]
    return ArrayImages(images[chosen], target[chosen], classes=names, name=f"digits-{split}")
