"""Integer ids given by users: labels of images, concepts of examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Ids: TypeAlias = "Tensor | np.ndarray | Sequence[int]"

SPARE = 100_000
"""Ids beyond one for each row.

A name, a logit and a count are made for every id up to the largest, so one wild label would cost
gigabytes. Of N rows at most N classes have an example; a part of a set lacks others, and no set in use
has this many more (ImageNet-21k has 21,841).
"""


def checked_ids(
    ids: Ids, what: str, *, size: int | None = None, bound: int | None = None
) -> Tensor:
    """An own int64 copy [N] on the CPU, values in 0..bound-1; without a bound below N + `SPARE`.

    what names the argument in messages; size: the N expected. Raises TypeError for anything but
    integers, ValueError for another shape or a value out of range, naming the first such position.
    """
    array = _array(ids)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{what} must hold integers, got {array.dtype}")
    if array.ndim != 1 or (size is not None and len(array) != size):
        expected = "[N]" if size is None else f"[{size}], one entry per image"
        raise ValueError(f"{what} must have shape {expected}, got {list(array.shape)}")
    most = len(array) + SPARE if bound is None else bound
    outside = (array < 0) | (array >= most)  # in its own type: int64 would wrap what uint64 holds
    if outside.any():
        bad = int(np.flatnonzero(outside)[0])
        span = f"in 0..{most - 1}" if bound is not None or array[bad] >= 0 else "0 or more"
        message = f"{what} must be {span}, got {array[bad]} at position {bad}"
        if bound is None and array[bad] >= 0:
            message += (
                f": one for each of {len(array)} rows, and {SPARE:,} more. Number them from 0 on "
                "(np.unique(ids, return_inverse=True)[1]), or give the classes' names"
            )
        raise ValueError(message)
    return torch.from_numpy(array.astype(np.int64))


def class_ids(target: Ids, what: str, *, num_classes: int | None = None) -> tuple[Tensor, int]:
    """Class ids [N] int64 as people have them, and the number of classes: [N] or [N, 1] of any integers
    or truth values, or one-hot [N, C].

    Labels that count from 1 are not moved: a part of a set that lacks the last class would look as if it
    counted from 0. Raises as `checked_ids`, and ValueError for several classes per image.
    """
    array = _array(target)
    if array.ndim == 2 and array.shape[1] > 1:
        one_hot = ((array == 0) | (array == 1)).all(1) & (array.sum(1) == 1)
        if not one_hot.all():
            bad = int(np.flatnonzero(~one_hot)[0])
            raise ValueError(
                f"{what} {list(array.shape)} must be one-hot, with a single 1 in each row, but row {bad} "
                "is not: images of several classes, or of shares of them, are not taken; give one id each"
            )
        array, count = array.argmax(1), array.shape[1]
        if num_classes not in (None, count):
            raise ValueError(f"{what} is one-hot of {count} classes, but {num_classes} have names")
    else:
        array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        array = array.astype(np.int64) if array.dtype == np.bool_ else array
        count = 0
    from_1 = array.size > 0 and array.dtype.kind in "iu" and array.ndim == 1 and array.min() == 1
    if from_1 and num_classes is not None and array.max() == num_classes:
        raise ValueError(
            f"{what} must be in 0..{num_classes - 1}, but counts the classes from 1 to {num_classes}: "
            "subtract 1, here and in the other sets"
        )
    ids = checked_ids(array, what, bound=num_classes)
    count = max(count, int(ids.max()) + 1 if len(ids) else 0)
    if from_1 and num_classes is None and len(np.unique(array)) == count - 1:
        warnings.warn(
            f"{what}: no image is of class 0, and {count} classes are read off the labels; if they count "
            "from 1, subtract 1",
            stacklevel=4,
        )
    return ids, count if num_classes is None else num_classes


def _array(ids: Ids) -> np.ndarray:
    if not isinstance(ids, Tensor):
        return np.asarray(ids)
    ids = ids.detach().cpu()
    return (ids.double() if ids.is_floating_point() else ids).numpy()  # NumPy has no bfloat16
