"""Paths that a file names: they stay in the folder that they are relative to."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath


class InsideFolder:
    """Turns the names in a list file into paths of regular files below one folder.

    Whoever wrote the list does not choose what is read: absolute names, ``..`` and links that lead
    out of the folder are refused on every system, in the notation of any. ``where`` begins the
    message (file and line).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        self.folder = folder.resolve()
        self._checked: dict[Path, None] = {}  # folders known to be inside: one look-up for each

    def require_below(self, name: str, where: str) -> None:
        """Raises ValueError for a name that leads out by its letters."""
        windows, posix = PureWindowsPath(name), PurePosixPath(name)
        if (
            "\0" in name
            or not posix.parts
            or posix.is_absolute()
            or windows.anchor
            or ".." in (*posix.parts, *windows.parts)
        ):
            raise ValueError(
                f"{where}: {name!r} must be relative to {self.folder} and stay below it"
            )

    def file(self, name: str, where: str) -> str:
        """The path of the file. Raises ValueError for a name that leads out, FileNotFoundError."""
        self.require_below(name, where)
        path = self.folder / name
        try:
            self._require_inside(path.parent, name, where)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                self._require_inside(path, name, where)
                mode = os.stat(path).st_mode
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise FileNotFoundError(
                f"{where}: no file {name!r} below {self.folder} ({error})"
            ) from None
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise ValueError(f"{where}: {name!r} is no regular file")
        return str(path)

    def _require_inside(self, path: Path, name: str, where: str) -> None:
        if path in self._checked:
            return
        if not path.resolve(strict=True).is_relative_to(self.folder):
            raise ValueError(
                f"{where}: {name!r} leads through a link out of {self.folder}; "
                "give the folder that holds the files as root"
            )
        self._checked[path] = None
