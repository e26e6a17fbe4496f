"""Integer ids given by users: labels of images, concepts of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Ids: TypeAlias = "Tensor | np.ndarray | Sequence[int]"


def checked_ids(
    ids: Ids, what: str, *, size: int | None = None, bound: int | None = None
) -> Tensor:
    """An own int64 copy [N] on the CPU, values in 0..bound-1.

    what names the argument in messages; size: the N expected. Raises TypeError for anything but
    integers, ValueError for another shape or a value out of range, naming the first such position.
    """
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{what} must hold integers, got {array.dtype}")
    if array.ndim != 1 or (size is not None and len(array) != size):
        expected = "[N]" if size is None else f"[{size}], one entry per image"
        raise ValueError(f"{what} must have shape {expected}, got {list(array.shape)}")
    outside = array < 0 if bound is None else (array < 0) | (array >= bound)
    if outside.any():
        bad = int(np.flatnonzero(outside)[0])
        span = "0 or more" if bound is None else f"in 0..{bound - 1}"
        raise ValueError(f"{what} must be {span}, got {array[bad]} at position {bad}")
    return torch.from_numpy(array.astype(np.int64))
