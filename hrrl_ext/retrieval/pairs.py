"""Images and their captions, however many each image has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._regular import regular
from ..data.image_sets import ImageSet
from ..data.leaving_out import split_leave_out, take_without
from ..data.resize import ImageSize
from ..data.sources import load_images
from ..data.unreadable import Reading
from .emoji import load_emoji
from .formats import read_captioned_files, read_karpathy, read_precomputed, read_table
from .text import as_text

FilePath: TypeAlias = "str | os.PathLike[str]"

EMOJI = "emoji"
"""The name of the embedded set."""

LAYOUTS = (
    '"emoji"; '
    "a .csv or .jsonl with image, caption and optionally group and split; Karpathy's dataset_*.json; a "
    "folder with {split}_ims.npy and {split}_caps.txt, or with a .txt beside each image; a tuple "
    "(images or features, captions)"
)


class Pairs:
    """N images, or features of them, and M captions, each of one image.

    images         an ImageSet, or features [N, ...] float32 on the CPU
    captions       M texts
    owner          [M] int64: the image of each caption, 0..N-1; every image has at least one
    image_group    [N] int64: what belongs together; an image is a group of its own if none are given
    caption_group  [M] int64: that of the caption's image
    group_names    of the groups, where they have names
    name           for messages

    Raises TypeError for captions that are not text (bytes are decoded as UTF-8), ValueError for one that
    is empty, an image without caption, ids of another shape.
    """

    left_out: Sequence[str] = ()
    """Names of images that are not among them, as they cannot be read or a list leaves them out."""

    def __init__(
        self,
        images: ImageSet | Tensor | np.ndarray,
        captions: Sequence[str | bytes],
        owner: Any,
        *,
        group: Any = None,
        group_names: Sequence[str] | None = None,
        name: str = "pairs",
    ) -> None:
        self.images = images if isinstance(images, ImageSet) else as_features(images, name)
        self.captions = [as_text(text, f"{name}: caption {at}") for at, text in enumerate(captions)]
        n = len(self.images)
        self.owner = _ids(owner, len(self.captions), n, f"{name}: owner")
        without = (torch.bincount(self.owner, minlength=n) == 0).nonzero().flatten()
        if len(without):
            raise ValueError(f"{name}: image {int(without[0])} has no caption; leave it out")
        self.image_group = (
            torch.arange(n) if group is None else _ids(group, n, None, f"{name}: group")
        )
        self.group_names = None if group_names is None else list(group_names)
        self.name = name

    @property
    def caption_group(self) -> Tensor:
        return self.image_group[self.owner]

    def __len__(self) -> int:
        """Pairs, which are as many as captions."""
        return len(self.captions)

    def readable(self, reading: Reading, of: str = "data") -> tuple[Pairs, Tensor]:
        """The pairs without images that cannot be read, and the rows of those that are left [N]."""
        if not isinstance(self.images, ImageSet):
            return self, torch.arange(len(self.images))
        images, rows = reading.take(self.images, of)
        return self._of(images, rows), rows

    def without(self, file: FilePath, *, split: str = "") -> Pairs:
        """The pairs without the images that a list names (:func:`hrrl_ext.data.without`)."""
        if not isinstance(self.images, ImageSet):
            raise ValueError(f"{self.name}: leave_out is of images, and these are features")
        return self._of(*take_without(self.images, file, split))

    def _of(self, images: ImageSet, rows: Tensor) -> Pairs:
        """The pairs of some of the images, and of their rows."""
        if images is self.images:
            return self
        place = torch.full((len(self.images),), -1)
        place[rows] = torch.arange(len(rows))
        owner = place[self.owner]
        kept = (owner >= 0).nonzero().flatten()
        captions = [self.captions[at] for at in kept.tolist()]
        group, names = self.image_group[rows], self.group_names
        left = Pairs(images, captions, owner[kept], group=group, group_names=names, name=self.name)
        left.left_out = images.left_out
        return left

    def captions_of(self, image: int) -> list[str]:
        return [self.captions[at] for at in (self.owner == image).nonzero().flatten().tolist()]

    def __repr__(self) -> str:
        return f"Pairs({self.name}: {len(self.images)} images, {len(self)} captions)"


Source: TypeAlias = "FilePath | tuple[Any, Any] | Pairs"


def load_pairs(
    source: Source,
    *,
    split: str = "train",
    image_size: ImageSize | None = None,
    root: FilePath | None = None,
) -> Pairs:
    """Open images with captions; nothing is downloaded.

    source is one of
    - "emoji": the embedded set (`load_emoji`), with splits "train", "val", "test" and "all"
    - a .csv with a header, or a .jsonl: image, caption, and optionally group and split. An image has as
      many rows as captions; in a .jsonl caption may also be a list
    - Karpathy's dataset_*.json; the split "restval" is his, and "train+restval" joins two
    - a folder with {split}_ims.npy (features) and {split}_caps.txt (a caption in each line). How many
      captions an image has is told from the lengths; equal features in a row are one image
    - a folder of images, with the captions of each in a .txt beside it, one in each line; of
      root/{train,val,test} the one that split names
    - a tuple (images, captions): an ImageSet, images [N, H, W, 3] or [N, 3, H, W] of uint8, or features
      [N, ...] of floats; captions a text for each image, or a list of texts for each
    - Pairs, which pass through

    What is written may end with :leave_out=FILE, as for :func:`hrrl_ext.data.load_images`.

    Args:
        split: train, val, test, a name of the file's own, several joined by "+", or all. A source without
            splits is one set, and gives it for every split.
        image_size: of image files, the side in pixels; None where there are none.
        root: the folder that names in a file are relative to, where that is not the file's.

    Raises FileNotFoundError, TypeError or ValueError, with the file, the line, what was expected and got.
    """
    if isinstance(source, Pairs):
        return source
    source, file = split_leave_out(source)
    if file is not None:
        opened = load_pairs(source, split=split, image_size=image_size, root=root)
        return opened.without(file, split=split)
    if isinstance(source, tuple):
        return _of_arrays(source, image_size)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"load_pairs: cannot open this {type(source).__name__}; give {LAYOUTS}")
    if source == EMOJI:
        if root is not None:
            raise ValueError(
                f"load_pairs: root goes with a file of names, and {EMOJI!r} is embedded"
            )
        return _of_emoji(split, image_size)
    path = Path(source)
    folder = None if root is None else Path(root)
    if path.is_dir():
        if root is not None:
            raise ValueError(f"load_pairs: root goes with a file of names, and {path} is a folder")
        if any(path.glob("*_ims.npy")):
            features, captions, owner = read_precomputed(path, split)
            return Pairs(features, captions, owner, name=str(path))
        found = read_captioned_files(path, split)
    elif not regular(path).is_file():
        raise FileNotFoundError(f"load_pairs: {path} does not exist; give {LAYOUTS}")
    elif path.suffix.lower() in (".csv", ".jsonl"):
        found = read_table(path, split, folder)
    elif path.suffix.lower() == ".json":
        found = read_karpathy(path, split, folder)
    else:
        raise ValueError(f"load_pairs: {path} has no known suffix; give {LAYOUTS}")
    return Pairs(
        found.images(image_size, str(path)),
        found.captions,
        found.owner,
        group=found.group_ids(),
        group_names=found.group_names(),
        name=str(path),
    )


def _of_emoji(split: str, image_size: ImageSize | None) -> Pairs:
    found = load_emoji(split)
    images = found.images if image_size is None else found.images.resized(image_size)
    captions = [text for texts in found.texts for text in texts]
    owner = [i for i, texts in enumerate(found.texts) for _ in texts]
    return Pairs(images, captions, owner, group=found.group, name=f"{EMOJI}-{split}")


def _of_arrays(source: tuple[Any, ...], image_size: ImageSize | None) -> Pairs:
    if len(source) != 2:
        raise TypeError(f"load_pairs: a tuple must be (images, captions), got {len(source)} things")
    images, captions = source
    if not isinstance(images, ImageSet):
        images = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
        if images.dtype == torch.uint8:
            images = load_images((images, torch.zeros(len(images), dtype=torch.int64)))
    if isinstance(images, ImageSet) and image_size is not None:
        images = images.resized(image_size)
    captions = captions.tolist() if isinstance(captions, np.ndarray) else list(captions)
    if len(captions) != len(images):
        raise ValueError(
            f"load_pairs: {len(images)} images and {len(captions)} captions; give a text for "
            "each image, or a list of texts for each"
        )
    lists = [_texts_of(at, texts) for at, texts in enumerate(captions)]
    owner = [i for i, texts in enumerate(lists) for _ in texts]
    return Pairs(images, [text for texts in lists for text in texts], owner)


def _texts_of(image: int, texts: Any) -> list[Any]:
    if isinstance(texts, str | bytes):
        return [texts]
    if not isinstance(texts, Iterable):
        raise TypeError(
            f"load_pairs: image {image} must have a text, or a list of texts, got {texts!r}; leave out "
            "images without any"
        )
    return list(texts)


def as_features(x: Any, name: str) -> Tensor:
    x = torch.as_tensor(x).detach().cpu()
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"{name}: features must be floats [N, ...], got {list(x.shape)} {x.dtype}")
    bad = (~x.flatten(1).isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name}: features of image {int(bad[0])} are not finite")
    return x.float()


def _ids(ids: Any, size: int, bound: int | None, what: str) -> Tensor:
    ids = torch.as_tensor(ids).cpu()
    if ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise TypeError(f"{what} must be whole numbers, got {ids.dtype}")
    if ids.shape != (size,):
        raise ValueError(f"{what} must have shape [{size}], got {list(ids.shape)}")
    ids = ids.to(torch.int64)
    if size and (ids.min() < 0 or (bound is not None and ids.max() >= bound)):
        span = "0 or more" if bound is None else f"in 0..{bound - 1}"
        raise ValueError(f"{what} must be {span}, got {int(ids.min())}..{int(ids.max())}")
    return ids
