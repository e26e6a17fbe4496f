"""Batches of two views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from .._streams import random_stream
from ..data import ImageSet, RandomResizedCrop
from ..data.batches import batch_sizes
from ..data.fetching import Fetcher, pictures_of
from ..data.image_sets import as_float
from ..data.sampling import Shuffling
from ..data.views.views import crop_draws
from ..processes import Processes


class TwoViews(Protocol):
    """What makes views, such as :class:`hrrl_ext.data.Views`."""

    def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Both views of images [B, 3, H, W], uint8 or float in [0, 1], of the same kind: a function of
        each image, its number in index [B] and the epoch alone. Images [2, B, 3, H, W] are parts of
        pictures, another one for each view, where `ViewBatches` has a crop."""
        ...


class ViewBatches:
    """Epochs of mini-batches of an image set: both views [B, 3, H, W] float32 in [0, 1], target [B], and
    the numbers of the images in the set [B].

    Every image comes once per epoch. The order is a function of (seed, epoch), the views of the images'
    numbers and the epoch: starting at any epoch or batch gives the same bits as getting there, and on
    several processes, each of which has its part, the images of a batch are those of one. A last batch
    with fewer than two images for each process joins the one before it.

    crop: each view is of a part of its own of the whole picture in a file, at its own size, by the draws
    of `Views`; every epoch decodes all pictures anew, and none is kept.
    """

    def __init__(
        self,
        images: ImageSet,
        views: TwoViews,
        batch_size: int,
        *,
        seed: int,
        device: torch.device,
        processes: Processes,
        num_workers: int = 0,
        keep_gib: float = 0.0,
        shuffle_buffer: int | None = None,
        crop: RandomResizedCrop | None = None,
    ) -> None:
        least = 2 * processes.size
        if min(batch_size, len(images)) < least:
            raise ValueError(
                f"batch_size: every process needs at least two images of a batch, which has {batch_size} "
                f"of {len(images)} images for {processes.size} of them"
            )
        if crop is not None:
            pictures_of(images)  # for its error, before any work
        _check_views(images, views, of_parts=crop is not None)
        self.images, self.views, self.seed, self.crop = images, views, seed, crop
        self.device, self.processes = device, processes
        self._shuffling = Shuffling(images, shuffle_buffer)
        self._fetcher = Fetcher(
            images, device=device, num_workers=num_workers, keep_gib=keep_gib, processes=processes
        )
        self.sizes = batch_sizes(len(images), batch_size, least)
        """Examples per batch, over all processes."""

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch, from number ``start`` on."""
        order = self._shuffling.order(random_stream(self.seed, epoch, "order"))
        parts = [rows[_slice(self.processes.part(len(rows)))] for rows in order.split(self.sizes)]
        parts = parts[start:]
        for rows, images in zip(parts, self._images(parts, epoch), strict=True):
            first, second = (as_float(view) for view in self.views.two(images, rows, epoch))
            target, rows = (
                t.to(self.device, non_blocking=True) for t in (self.images.target[rows], rows)
            )
            yield first, second, target, rows

    def _images(self, rows: list[Tensor], epoch: int) -> Iterator[Tensor]:
        """[B, 3, H, W] of each of the rows [B]; with ``crop`` [2, B, 3, H, W], the part of each view."""
        if self.crop is None:
            return self._fetcher.batches(rows)
        draws = [
            [crop_draws(indices, self.seed, epoch, view) for view in (0, 1)] for indices in rows
        ]
        return self._fetcher.parts(rows, draws, self.crop)


def _check_views(images: ImageSet, make: TwoViews, *, of_parts: bool) -> None:
    """That what makes views takes the images, or parts of pictures, before the run has begun."""
    x, _ = images.__getitems__([0, 1])
    try:
        views = make.two(x.expand(2, *x.shape) if of_parts else x, torch.arange(2), 0)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"views: {make} fails on images {list(x.shape[1:])} of {images.name}: {error}"
        ) from error
    views = views if isinstance(views, tuple | list) else [views]
    found = [list(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in views]
    of_two = (isinstance(s, list) and s[:1] == [2] and s[-3:-2] == [x.shape[1]] for s in found)
    if len(found) != 2 or not all(of_two):
        raise ValueError(
            f"views: {make} must give two views of a batch, tensors [B, {x.shape[1]}, H, W] each; of two "
            f"images {list(x.shape)} it gave {found}"
        )


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


def drawn_once(count: int, most: int, seed: int) -> Tensor:
    """Numbers of up to ``most`` of ``count`` images, in order; by ``seed`` alone."""
    drawn = torch.randperm(count, generator=random_stream(seed, "bank"))[:most]
    return drawn.sort().values
