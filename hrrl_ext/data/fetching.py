"""Images of batches that are known beforehand: from memory, or fetched by workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..processes import ALONE, Processes
from .image_sets import ImageSet
from .memory import KeptImages, keep


class Fetcher:
    """Gives the images of batches, one batch after the other; where they come from changes no bit.

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
        if (kept := self._kept) is None:
            for x, _ in self._fetched([indices.tolist() for indices in rows]):
                yield x.to(self.device, non_blocking=True)
            return
        unknown = kept.unknown(rows)
        fetched = self._fetched([indices.tolist() for indices in unknown if len(indices)])
        for indices, new in zip(rows, unknown, strict=True):
            if len(new):
                kept.put(new, next(fetched)[0])
            yield kept.take(indices).to(self.device, non_blocking=True)

    @cached_property  # not before the first epoch: for images in files it opens one
    def _kept(self) -> KeptImages | None:
        return keep(self.images, self.device, self.keep_gib * 2**30)

    def _fetched(self, rows: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.num_workers == 0 or not rows:
            return (self.images.__getitems__(indices) for indices in rows)
        self.processes.let_go()
        loader = DataLoader(
            _Carried(self.images),
            batch_sampler=rows,
            collate_fn=_as_fetched,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global one
        )
        return _raised(loader)


class _Carried(Dataset[Any]):
    """What workers fetch of: an error that names an image comes back as it is, and not as the text of
    a stack of calls in another process."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | OSError:
        try:
            return self._images.__getitems__(indices)
        except OSError as error:
            return OSError(str(error))


def _raised(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if isinstance(batch, OSError):
            raise batch
        yield batch


def _as_fetched(batch: Any) -> Any:
    """Nothing to collate: an image set returns whole batches."""
    return batch
