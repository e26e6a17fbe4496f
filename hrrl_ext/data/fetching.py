"""Images of batches that are known beforehand: from memory, or fetched by workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._streams import Draws
from ..processes import ALONE, Processes
from .folders import DecodedImages
from .image_sets import ImageSet
from .memory import KeptImages, keep
from .views.crops import RandomResizedCrop


class Fetcher:
    """Gives the images of batches, one batch after the other, or parts of the pictures behind them; where
    they come from changes no bit.

    device: where they are wanted; num_workers: processes that fetch them, worthwhile for images decoded
    from files; keep_gib: up to so many GiB of images are kept as they were fetched, on the device or else
    in RAM, and not fetched again (0 keeps none).
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        device: torch.device,
        num_workers: int = 0,
        keep_gib: float = 0.0,
        processes: Processes = ALONE,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"Batches: num_workers must be at least 0, got {num_workers}")
        if not keep_gib >= 0:
            raise ValueError(f"Batches: keep_gib must be at least 0, got {keep_gib}")
        self.images = images
        self.device = device
        self.num_workers = num_workers
        self.keep_gib = keep_gib
        self.processes = processes

    def batches(self, rows: list[Tensor]) -> Iterator[Tensor]:
        """Images [B, 3, H, W] of each of the rows [B], on the device and of the dtype of the set: those
        kept, and the others from the set."""
        fetch = self.images.__getitems__
        if (kept := self._kept) is None:
            for x, _ in self._fetched(fetch, [[indices.tolist()] for indices in rows]):
                yield x.to(self.device, non_blocking=True)
            return
        unknown = kept.unknown(rows)
        asked = [[indices.tolist()] for indices in unknown if len(indices)]
        fetched = self._fetched(fetch, asked)
        for indices, new in zip(rows, unknown, strict=True):
            if len(new):
                kept.put(new, next(fetched)[0])
            yield kept.take(indices).to(self.device, non_blocking=True)

    def parts(
        self, rows: list[Tensor], draws: Sequence[Sequence[Draws]], crop: RandomResizedCrop
    ) -> Iterator[Tensor]:
        """Parts [V, B, 3, H, W] of the whole pictures behind each of the rows [B], by V draws of these
        images, on the device (:meth:`DecodedImages.parts`). None is kept, as none comes again: every
        picture is decoded anew."""
        fetch = partial(pictures_of(self.images).parts, crop=crop)
        asked = [[indices.tolist(), its] for indices, its in zip(rows, draws, strict=True)]
        for parts in self._fetched(fetch, asked):
            yield parts.to(self.device, non_blocking=True)

    @cached_property  # not before the first epoch: for images in files it opens one
    def _kept(self) -> KeptImages | None:
        return keep(self.images, self.device, self.keep_gib * 2**30)

    def _fetched(self, fetch: Callable[..., Any], asked: list[list[Any]]) -> Iterator[Any]:
        """What ``fetch`` gives for each of the arguments, in order."""
        if self.num_workers == 0 or not asked:
            return (fetch(*one) for one in asked)
        self.processes.let_go()
        loader = DataLoader(
            _Carried(fetch),
            batch_sampler=asked,
            collate_fn=_as_fetched,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global one
        )
        return _raised(loader)


def pictures_of(images: ImageSet) -> DecodedImages:
    """The images, that whole pictures can be had of; ValueError where there are none."""
    if isinstance(images, DecodedImages):
        return images
    height, width = images.image_shape[1:]
    raise ValueError(
        f"crop_of='picture' crops pictures as they are decoded, at their own size, and {images.name} has "
        f"images of {height} x {width} pixels and no others; leave crop_of out, or give image files: a "
        'folder, "files:", a table, "hf:", "wds:", or files that torchvision names'
    )


class _Carried(Dataset[Any]):
    """What workers fetch by: an error that names an image comes back as it is, and not as the text of
    a stack of calls in another process."""

    def __init__(self, fetch: Callable[..., Any]) -> None:
        self._fetch = fetch

    def __getitems__(self, asked: list[Any]) -> Any:
        try:
            return self._fetch(*asked)
        except OSError as error:
            return OSError(str(error))


def _raised(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, OSError):
            raise batch
        yield batch


def _as_fetched(batch: Any) -> Any:
    """Nothing to collate: an image set returns whole batches."""
    return batch
