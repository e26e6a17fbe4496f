"""Which files of a folder are images, and which are left out."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

from .decoding import SUFFIXES

# What systems put beside the files of a user. Whatever begins with a dot is hidden.
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}


def is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def folders_in(root: str | os.PathLike[str]) -> list[str]:
    """Names of the folders in root, sorted, without hidden ones and clutter."""
    return sorted(f.name for f in os.scandir(root) if not is_clutter(f.name) and _is_folder(f))


def files_in(root: str | os.PathLike[str]) -> list[str]:
    """Names of the files in root, not below it, sorted, without hidden ones and clutter."""
    return sorted(f.name for f in os.scandir(root) if not is_clutter(f.name) and not _is_folder(f))


def files_below(root: str | os.PathLike[str]) -> list[str]:
    """Paths of the files in root and below, without hidden ones and clutter, in torchvision's order: by
    the path of their folder, then by name. Links are followed, but not to a folder above them."""
    found = []
    for at, folders, names in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not is_clutter(f) and not _leads_up(at, f)]
        found.append((at, sorted(name for name in names if not is_clutter(name))))
    return [
        first + name  # of a million files os.path.join takes seconds
        for first, names in ((os.path.join(at, ""), names) for at, names in sorted(found))
        for name in names
    ]


def images_below(root: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """The images among the files below root, and the other files."""
    images: list[str] = []
    others: list[str] = []
    for file in files_below(root):
        (images if is_image(file) else others).append(file)
    return images, others


def tell_left_out(
    root: str | os.PathLike[str], taken: int, others: Sequence[str], beside: Sequence[str] = ()
) -> None:
    """Says once what of a folder is not taken: other files, and images beside its class folders."""
    told = [f"other files, {suffixes_of(others)}"] if others else []
    told += [f"images beside the class folders, {len(beside)}"] if beside else []
    if told:
        such = ", ".join(repr(os.path.relpath(f[0], root)) for f in (others, beside) if f)
        warnings.warn(
            f"{root}: {taken} images are taken; left out are {' and '.join(told)}, such as {such}",
            stacklevel=3,
        )


def suffixes_of(files: Iterable[str]) -> str:
    """3 x .heic, 1 x .txt; most frequent first."""
    count = Counter(os.path.splitext(file)[1].lower() or "without suffix" for file in files)
    return ", ".join(f"{n} x {suffix}" for suffix, n in count.most_common(5))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _leads_up(at: str, name: str) -> bool:
    path = os.path.join(at, name)
    if not os.path.islink(path):
        return False
    real = os.path.realpath(path)
    return os.path.commonpath([real, os.path.realpath(at)]) == real
