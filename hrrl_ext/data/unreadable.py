"""Images that cannot be read: found before they are met, and left out where that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from ..processes import ALONE, Processes
from .folders import DecodedImages
from .image_sets import ArrayImages, ImageSet

T = TypeVar("T")
_SHOWN = 3  # images in a message
_AT_ONCE = 1024  # images that threads are given

OnError: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True)
class Unreadable:
    """An image of a set, and what is wrong with it."""

    row: int
    name: str
    """its file"""
    error: str


def unreadable(
    images: ImageSet, *, num_workers: int = 0, processes: Processes | None = None
) -> list[Unreadable]:
    """Every image that cannot be fetched, in order: all are, once.

    num_workers: threads that decode, besides none; processes: those that share the work, and each has
    the whole result.
    """
    if isinstance(images, ArrayImages):
        return []
    processes = processes or ALONE
    mine = processes.part(len(images))
    tried = in_threads(lambda row: _tried(images, row), mine, num_workers)
    found = [u for u in tried if u is not None]
    return [u for part in processes.gather(found) for u in part]


def in_threads(work: Callable[[int], T], rows: Sequence[int], num_workers: int) -> Iterator[T]:
    """``work`` of each row, in order: some at a time, so that a million rows are no million tasks."""
    with ThreadPoolExecutor(max(1, num_workers)) as threads:
        for start in range(0, len(rows), _AT_ONCE):
            yield from threads.map(work, rows[start : start + _AT_ONCE])


def name_of(images: ImageSet, row: int) -> str:
    """Its file, or where it stands."""
    return images.told(images.sources[row]) if isinstance(images, DecodedImages) else f"image {row}"


class Reading:
    """What a run does about images that cannot be read: nothing, until one is met and raises; or all
    are tried before it begins, and those are left out.

    before: names of those that a run left out when it began, by what the images are for. Where it goes
    on the same are left out, whether they can be read by now or not, and nothing is tried.
    """

    def __init__(
        self,
        on_error: OnError = "raise",
        *,
        before: Mapping[str, Sequence[str]] | None = None,
        num_workers: int = 0,
        processes: Processes | None = None,
    ) -> None:
        if on_error not in get_args(OnError):
            known = " or ".join(map(repr, get_args(OnError)))
            raise ValueError(f"on_error must be {known}, got {on_error!r}")
        self._tries, self._before = on_error == "skip", before
        self._num_workers, self._processes = num_workers, processes

    def take(self, images: ImageSet, of: str = "data") -> tuple[ImageSet, Tensor]:
        """The images to take, whose `left_out` names the others, and their rows [B] in ``images``; ``of``
        says what they are for. Raises OSError where none is left."""
        left = self._left(images, of)
        rows = torch.tensor([row for row in range(len(images)) if row not in left]).long()
        if not left:
            return images, rows
        told = "; ".join(list(left.values())[:_SHOWN])
        count = f"{len(left)} of {len(images)} images"
        why = "cannot be read and are left out"
        if self._before is not None:
            why = "are left out, as when the run began"
        if not len(rows):
            raise OSError(f"{images.name}: none of {len(left)} images can be read, such as {told}")
        warnings.warn(f"{images.name}: {count} {why}, such as {told}", stacklevel=3)
        taken = images.subset(rows)
        taken.left_out = [*images.left_out, *(name_of(images, row) for row in left)]
        return taken, rows

    def _left(self, images: ImageSet, of: str) -> dict[int, str]:
        """row → its name, and why."""
        if self._before is not None:
            names = set(self._before.get(of, ())).difference(images.left_out)
            every = range(len(images)) if names else ()
            return {row: name for row in every if (name := name_of(images, row)) in names}
        if not self._tries:
            return {}
        found = unreadable(images, num_workers=self._num_workers, processes=self._processes)
        return {u.row: f"{u.name} ({u.error})" for u in found}


def readable(images: ImageSet, *, num_workers: int = 0) -> ImageSet:
    """The images without those that cannot be read, which a warning and `left_out` name."""
    return Reading("skip", num_workers=num_workers).take(images)[0]


class _WithLeftOut(Protocol):
    left_out: Sequence[str]


def left_out(**sets: _WithLeftOut | None) -> dict[str, Any]:
    """What the description of a run says of them; nothing, where nothing is left out."""
    known = {of: images.left_out for of, images in sets.items() if images is not None}
    names = {of: list(left) for of, left in known.items() if left}
    return {"left_out": names} if names else {}


def _tried(images: ImageSet, row: int) -> Unreadable | None:
    try:
        images.__getitems__([row])
    except OSError as error:
        return Unreadable(row, name_of(images, row), str(error.__cause__ or error))
    return None
