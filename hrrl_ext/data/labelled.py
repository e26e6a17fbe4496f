"""Labelled images batch by batch, from whatever holds them: what every measurement of a model reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._pixels import PixelCheck
from ..processes import ALONE, Processes
from .image_sets import as_float

_ACCEPTED = (
    "an image set with __len__ and __getitems__, a tuple (images, labels) of tensors, or an "
    "iterable of batches (images, labels, ...); wrap any other data set in a DataLoader"
)


def labelled_batches(
    data: Any,
    batch_size: int,
    where: str,
    processes: Processes = ALONE,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of each batch the row of its first example, images [B, 3, H, W], uint8 or floating point, and
    labels [B] int64; no batch is empty.

    data   an image set (`__len__`, and `__getitems__(indices)` giving images [B, 3, H, W] and labels
           [B]), a tuple (images [N, 3, H, W], labels [N]) of tensors, or an iterable of batches
           (images, labels, ...) such as a DataLoader, whose own batch size then holds
    where  who asks, at the head of a message
    processes  those that take a batch in turn: each is given its own

    In the order of the data, each example once. Raises ValueError for data without an example and for
    shapes that do not belong together, TypeError for other data.
    """
    if batch_size < 1:
        raise ValueError(f"{where}: batch_size must be at least 1, got {batch_size}")
    first = row = processes.rank * batch_size
    for batch in _batches(data, batch_size, where, processes):
        images, labels = _checked(batch, where)
        if len(images):
            yield row, images, labels
            row += len(images) + (processes.size - 1) * batch_size
    if row == first and processes.main:  # others may be more than there are batches
        raise ValueError(f"{where}: data has no examples; check its path and split")


def as_input(images: Tensor, device: torch.device, dtype: torch.dtype, check: PixelCheck) -> Tensor:
    """What a model of this device and dtype takes: uint8 as float / 255, floats as they are, checked."""
    images = images.to(device)  # before the conversion: uint8 is a quarter of the bytes
    return as_float(check(images)).to(dtype)


def _batches(data: Any, batch_size: int, where: str, processes: Processes) -> Iterator[Any]:
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, Tensor) for x in data):
        images, labels = data
        if images.shape[:1] != labels.shape:
            raise ValueError(
                f"{where}: labels must be [N] for images [N, ...], "
                f"got {list(labels.shape)} for {list(images.shape)}"
            )
        whole = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        yield from processes.turns(whole)
    elif hasattr(data, "__getitems__") and hasattr(data, "__len__"):
        for start in processes.turns(range(0, len(data), batch_size)):
            yield data.__getitems__(list(range(start, min(start + batch_size, len(data)))))
    else:
        try:
            batches = iter(data)
        except TypeError:
            raise TypeError(
                f"{where}: data must be {_ACCEPTED}; got {type(data).__name__}"
            ) from None
        yield from processes.turns(batches)


def _checked(batch: Any, where: str) -> tuple[Tensor, Tensor]:
    pair = batch[:2] if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
        inside = [type(x).__name__ for x in pair] if pair else type(batch).__name__
        raise TypeError(f"{where}: data must be {_ACCEPTED}; got a batch of {inside}")
    images, labels = pair
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{where}: a batch must be images [B, 3, H, W] and integer labels [B], "
            f"got {list(images.shape)} and {list(labels.shape)} {labels.dtype}"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{where}: images must be uint8 or float in [0, 1], got {images.dtype}")
    ids = labels.to(torch.int64)
    if labels.dtype == torch.uint64 and (wrapped := ids < 0).any():
        bad = int(wrapped.nonzero()[0])
        raise ValueError(
            f"{where}: label {int(ids[bad]) % 2**64} at position {bad} of a batch is no class; labels "
            "are the numbers of classes, from 0 on"
        )
    return images, ids
