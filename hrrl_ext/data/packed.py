"""Many texts in two arrays: processes that are forked share them for good.

Python counts references in the object itself. Workers that read a list of a million paths write to each
of them so, and the system copies page by page what parent and workers had in common: some 120 bytes a
path in every worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import numpy as np

Sources: TypeAlias = "Sequence[Any] | np.ndarray"
"""Where each image comes from: paths, or the numbers of rows."""


class PackedTexts(Sequence[str]):
    """A sequence of texts, such as paths, that takes their bytes and 8 more for each."""

    def __init__(self, texts: Sequence[str]) -> None:
        how = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as os.fsencode
        encoded = [text.encode(*how) for text in texts]
        self._end = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._end)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # negative ones, and IndexError
        start = self._end[place - 1] if place else 0
        return os.fsdecode(self._bytes[start : self._end[place]].tobytes())


def packed(sources: Sources) -> Sources:
    """Texts packed, anything else as it is."""
    if isinstance(sources, PackedTexts | np.ndarray):
        return sources
    if not all(isinstance(source, str) for source in sources):
        return sources
    return PackedTexts(sources)


def chosen_of(sources: Sources, rows: np.ndarray) -> Sources:
    """Those of these rows: packed, or an array, as the whole is."""
    if isinstance(sources, np.ndarray):
        return sources[rows]
    return packed([sources[row] for row in rows.tolist()])
