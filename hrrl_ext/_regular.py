"""Files that end: a pipe, a socket or a device has a name as files have, and may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def regular(path: str | os.PathLike[str]) -> Path:
    """``path``, which every reader asks for before it opens it; what a link leads to counts.

    ValueError where it is a pipe, a socket or a device: to open one may already wait for a writer, and no
    signal ends that. A file that is not there, and a folder, pass: opening them says so.
    """
    path = Path(path)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return path
    if kind in _OTHERS:
        raise ValueError(
            f"{path} is {_OTHERS[kind]}, no regular file; it is not opened, as reading it may wait for "
            "ever: give a file, or leave it out"
        )
    return path
