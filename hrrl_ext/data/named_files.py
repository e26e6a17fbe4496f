"""Files that a list names as people name them: without their suffix, or from a folder below."""

from __future__ import annotations

import os
import warnings
from pathlib import Path, PurePosixPath

from ..spec import listed
from .files import files_in, folders_in, is_image
from .paths import InsideFolder


class NamedFiles:
    """Paths of the image files that a list names, below one folder.

    A name is relative to ``root``. Where the first one is not there as it stands, it decides how all are
    read: without their suffix, or from the one folder in ``root`` that has it; a warning says so. With
    several such folders nothing is guessed.
    """

    def __init__(self, root: str | os.PathLike[str], first: str, where: str) -> None:
        self._inside = InsideFolder(root)
        self._inside.require_below(first, where)
        self._stems: dict[Path, dict[str, str]] = {}
        self._below, self._bare = "", False
        root = self._inside.folder
        if os.path.lexists(root / first):
            return
        places = [below for below in ("", *folders_in(root)) if self._has(root / below, first)]
        if "" in places:
            places = [""]  # a list names what lies beside it
        if len(places) > 1:
            raise ValueError(
                f"{where}: {first!r} is in {listed(places)} of {root}; give the right one as root"
            )
        if places:
            self._below = places[0]
            self._bare = not os.path.lexists(root / self._below / first)
            how = " with the suffixes they have" if self._bare else ""
            warnings.warn(
                f"{where}: {first!r} and all others are read from {root / self._below}{how}",
                stacklevel=4,
            )

    def file(self, name: str, where: str) -> str:
        """Raises ValueError for a name that leads out or has two files, FileNotFoundError."""
        full = os.path.join(self._below, name)
        if self._bare:
            self._inside.require_below(name, where)  # before its folder is looked into
            if found := self._with_suffix(self._inside.folder / full, where):
                full = str(PurePosixPath(full).with_name(found))
        return self._inside.file(full, where)

    def _has(self, folder: Path, name: str) -> bool:
        path = folder / name
        return os.path.isfile(path) or (not is_image(name) and path.name in self._in(path.parent))

    def _with_suffix(self, path: Path, where: str) -> str | None:
        found = self._in(path.parent).get(path.name)
        if found == "":
            raise ValueError(f"{where}: several images in {path.parent} are called {path.name!r}")
        return found

    def _in(self, folder: Path) -> dict[str, str]:
        """Name without suffix → name of the image, "" where two share it."""
        if folder not in self._stems:
            stems: dict[str, str] = {}
            for name in filter(is_image, files_in(folder) if os.path.isdir(folder) else ()):
                stem = os.path.splitext(name)[0]
                stems[stem] = "" if stem in stems else name
            self._stems[folder] = stems
        return self._stems[folder]
