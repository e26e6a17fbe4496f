"""`ImageSet`, the data that every part of the library takes, and `ArrayImages`, one in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._pixels import in_range
from .columns import Columns
from .concept_map import ConceptMap
from .ids import Ids, checked_ids, class_ids
from .resize import ImageSize, fit_tensor, sides

Array: TypeAlias = "Tensor | np.ndarray"


class ImageSet(Dataset[tuple[Tensor, int]]):
    """N labelled images of one size, of 3 channels (RGB) or any other number of them.

    target: [N] int64 on the CPU, in 0..C-1; given as [N], [N, 1] or one-hot [N, C];
    classes: the C class names (a class may have no image);
    concept_map: the concepts that come with the data, or None; columns: what else is known about each
    example, such as the columns of a metadata CSV; image_shape: (C, H, W); name: for messages.

    images[i] → (image [C, H, W], class id); images.__getitems__(indices) → (images [B, C, H, W],
    target [B]). Images are uint8, or float32 in [0, 1]. A fetch is deterministic and never
    augments. A subclass implements `__getitems__`, `subset` and `resized`.
    """

    left_out: Sequence[str] = ()
    """Names of images that are not in the set, as they cannot be read or a list leaves them out."""

    def __init__(
        self,
        target: Ids,
        image_shape: tuple[int, int, int],
        *,
        classes: Sequence[str] | None,
        concept_map: ConceptMap | None,
        name: str,
    ) -> None:
        self.name = name
        known = None if classes is None else len(classes)
        self.target, count = class_ids(target, f"{name}: target", num_classes=known)
        if classes is None:
            classes = [str(c) for c in range(count)]
        self.classes = [str(c) for c in classes]
        if concept_map is not None and concept_map.num_classes != len(self.classes):
            raise ValueError(
                f"{name}: concept_map has {concept_map.num_classes} classes, "
                f"the images have {len(self.classes)}"
            )
        self.concept_map = concept_map
        self.image_shape = image_shape
        self.columns: Columns = {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shards(self) -> Sequence[Tensor] | None:
        """Of images in files of many, the rows of each file in the order in which they stand there."""
        return None

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, target = self.__getitems__([index])
        return images[0], int(target[0])

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and target [B] of B indices; negative ones count from the end."""
        raise NotImplementedError

    def subset(self, indices: Ids) -> ImageSet:
        """The images at these indices, in this order, with the same classes and concepts."""
        raise NotImplementedError

    def resized(self, image_size: ImageSize) -> ImageSet:
        """The same images with sides of image_size pixels: scaled to cover them, centre cropped."""
        raise NotImplementedError

    def relabelled(self, classes: Sequence[str], number: Sequence[int]) -> ImageSet:
        """The same images, whose class c is number[c] of ``classes``; -1: no image is of class c.

        By names: :func:`hrrl_ext.data.with_classes`.
        """
        return _Relabelled(self, classes, number)

    def _relabelled_copy(self, classes: Sequence[str], number: Sequence[int]) -> Self:
        """For a set whose labels are nowhere but in ``target``."""
        other = copy.copy(self)
        other.target = _renumbered(self, classes, number)
        other.classes = list(classes)
        if self.concept_map is not None:
            other.concept_map = self.concept_map.renumbered(number, len(classes))
        return other

    def _columns_of(self, rows: Tensor) -> Columns:
        return {name: values[rows.numpy()] for name, values in self.columns.items()}

    def _rows(self, indices: Ids) -> Tensor:
        """Row numbers [B] int64 in -N..N-1. IndexError out of range, TypeError for a mask."""
        rows = torch.as_tensor(indices)
        if rows.numel() == 0:
            return rows.to(torch.int64).reshape(0)
        if rows.dtype == torch.bool or rows.is_floating_point():
            raise TypeError(
                f"{self.name}: indices must be integers, got {rows.dtype}; "
                "of a mask take mask.nonzero().flatten()"
            )
        if rows.ndim != 1:
            raise ValueError(f"{self.name}: indices must have shape [B], got {list(rows.shape)}")
        low, high = int(rows.min()), int(rows.max())
        if low < -len(self) or high >= len(self):
            raise IndexError(
                f"{self.name}: indices must lie in 0..{len(self) - 1}, got {low}..{high}"
            )
        return rows.to(torch.int64)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}: {len(self)} images {list(self.image_shape)}, "
            f"{self.num_classes} classes)"
        )


class _Relabelled(ImageSet):
    """Images of another set, whatever gives them their labels there."""

    def __init__(self, images: ImageSet, classes: Sequence[str], number: Sequence[int]) -> None:
        concept_map = images.concept_map
        super().__init__(
            _renumbered(images, classes, number),
            images.image_shape,
            classes=classes,
            concept_map=None
            if concept_map is None
            else concept_map.renumbered(number, len(classes)),
            name=images.name,
        )
        self.columns = images.columns
        self._images, self._number = images, number

    @property
    def shards(self) -> Sequence[Tensor] | None:
        return self._images.shards

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        return self._images.__getitems__(indices)[0], self.target[self._rows(indices)]

    def subset(self, indices: Ids) -> ImageSet:
        return _Relabelled(self._images.subset(indices), self.classes, self._number)

    def resized(self, image_size: ImageSize) -> ImageSet:
        return _Relabelled(self._images.resized(image_size), self.classes, self._number)


class ArrayImages(ImageSet):
    """Images in memory, as NumPy array or tensor [N, H, W], [N, H, W, 3] or [N, 3, H, W].

    uint8, or floats in [0, 1] (kept as float32). Grey images [N, H, W] are repeated to three channels.
    Other numbers of channels, 1 among them, stay as they are, first or last, where the images are square
    or that axis is the shortest. `images` is the stored contiguous tensor [N, C, H, W] on the CPU; where
    nothing had to be converted it shares memory with the argument. Raises TypeError for another dtype,
    ValueError for another shape, or values that are not finite or not in [0, 1].
    """

    def __init__(
        self,
        images: Array,
        target: Ids,
        *,
        classes: Sequence[str] | None = None,
        concept_map: ConceptMap | None = None,
        name: str = "images",
    ) -> None:
        self.images = _checked_images(images, name)
        channels, height, width = self.images.shape[1:]
        super().__init__(
            target, (channels, height, width), classes=classes, concept_map=concept_map, name=name
        )
        if len(self.images) != len(self.target):
            raise ValueError(
                f"{name}: {len(self.images)} images, but {len(self.target)} labels in target"
            )

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        rows = self._rows(indices)
        return self.images[rows], self.target[rows]

    def subset(self, indices: Ids) -> ArrayImages:
        rows = self._rows(indices)
        chosen = self.with_images(self.images[rows], self.target[rows])
        chosen.columns = self._columns_of(rows)
        return chosen

    def relabelled(self, classes: Sequence[str], number: Sequence[int]) -> ArrayImages:
        return self._relabelled_copy(classes, number)

    def resized(self, image_size: ImageSize) -> ArrayImages:
        if self.image_shape[1:] == sides(image_size):
            return self
        return self.with_images(fit_tensor(self.images, image_size), self.target)

    def with_images(self, images: Tensor, target: Tensor) -> ArrayImages:
        """This set with other images, in the stored form [N, C, H, W], and other targets [N]."""
        # Not through the constructor: a stored side of 3 pixels would be an ambiguous layout there.
        other = copy.copy(self)
        other.images, other.target = images, target
        other.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        return other


def _renumbered(images: ImageSet, classes: Sequence[str], number: Sequence[int]) -> Tensor:
    target = torch.tensor(list(number), dtype=torch.int64)[images.target]
    return checked_ids(target, f"{images.name}: target", bound=len(classes))


def as_float(images: Tensor) -> Tensor:
    """What models take: uint8 images become float32 in [0, 1], float images are taken as they are."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def as_picture(images: Tensor) -> Tensor:
    """Images [..., C, H, W] as RGB, to be looked at: of other channels than 3 the mean, as grey."""
    if images.shape[-3] == 3:
        return images
    grey = images.mean(-3, keepdim=True)
    return grey.expand(*images.shape[:-3], 3, *images.shape[-2:])


def _checked_images(images: Array, name: str) -> Tensor:
    if isinstance(images, np.ndarray):
        if images.dtype.kind == "f" and not (images.itemsize <= 8 and images.dtype.isnative):
            images = images.astype(np.float32)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise TypeError(f"{name}: images must be uint8, or float in [0, 1], got {images.dtype}")
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name}: images must be a tensor or a NumPy array, got {type(images).__name__}"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{name}: images must be uint8, or float in [0, 1], got {images.dtype}")
    images = _channels_first(images.detach().cpu(), name)
    if images.is_floating_point():  # in its own precision, by which rounding is told from an error
        images = in_range(images, name).to(torch.float32)
    return images.contiguous()


def _channels_first(images: Tensor, name: str) -> Tensor:
    """[N, H, W], [N, H, W, C] or [N, C, H, W] → [N, C, H, W], C = 3 of the first."""
    layouts = "[N, H, W], [N, H, W, 3] or [N, 3, H, W]"
    shape = list(images.shape)
    if images.ndim not in (3, 4) or 0 in shape[1:]:
        raise ValueError(f"{name}: images must have shape {layouts}, got {shape}")
    if images.ndim == 3:
        return images.unsqueeze(1).expand(-1, 3, -1, -1)
    first, last = shape[1] == 3, shape[3] == 3
    if first and last:
        raise ValueError(
            f"{name}: images {shape} may be [N, H, W, 3] or [N, 3, H, W]; pad the side of 3 pixels"
        )
    if not first and not last:  # not RGB: squares of any number, or else the one short axis
        _, a, b, c = shape
        first = b == c != a or a < min(b, c)
        last = a == b != c or c < min(a, b)
    if not first and not last:
        raise ValueError(
            f"{name}: images must have shape {layouts}, got {shape}; of another number of channels "
            "that axis must be the shortest, or the images square"
        )
    return images if first else images.permute(0, 3, 1, 2)
