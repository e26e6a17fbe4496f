"""Images that a list of files leaves out of a source: photos:leave_out=faults.csv."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._reading import read_text
from .._regular import regular
from .._tables import from_cell
from ..spec import listed
from .folders import ImageFiles
from .image_sets import ImageSet
from .tables import TABLES, read_table
from .unreadable import name_of

_SETTING = re.compile(r"(.+?)[:,]leave_out=(.+)", re.DOTALL)
_FORM = (
    "a table (.csv, .tsv, .jsonl) with a column image, and optionally leave_out (yes or no) and part, as "
    "hrrl data check writes, or a text with a name in each line"
)


class _Listed(NamedTuple):
    image: str
    part: str
    """the set that it is of; "" for any"""


def split_leave_out(source: Any) -> tuple[Any, str | None]:
    """A source, and the list that the setting leave_out at its end names, if there is one."""
    return split_setting(source, _SETTING)


def split_setting(source: Any, setting: re.Pattern[str]) -> tuple[Any, str | None]:
    """A source, and the value of a setting at its end, if it is there: the pattern's two groups.

    A list of sources has it at the end of its last one.
    """
    if isinstance(source, list | tuple) and source and isinstance(source[-1], str):
        last, value = split_setting(source[-1], setting)
        return (source, None) if value is None else ([*source[:-1], last], value)
    if not isinstance(source, str | os.PathLike) or os.path.exists(source):
        return source, None
    found = setting.fullmatch(os.fspath(source))
    return (found[1], found[2]) if found else (source, None)


def without(images: ImageSet, file: str | os.PathLike[str], *, split: str = "") -> ImageSet:
    """The images without those that a list names; ``left_out`` has their names.

    Image files are named by their paths, from the folder of this process on; other images by where they
    stand ("image 7"), of the part that the list has beside them.

    Args:
        file: a table with a column ``image``, in which ``leave_out`` may be yes or no and ``part`` the
            set that the image is of, as :func:`check` writes it; or a text with a name in each line.
        split: that ``images`` are of, where one source has several.

    Raises FileNotFoundError, or ValueError for another kind of file and where no image is left. A warning
    says which of the files that are named do not exist.
    """
    return take_without(images, file, split)[0]


def take_without(
    images: ImageSet, file: str | os.PathLike[str], split: str = ""
) -> tuple[ImageSet, Tensor]:
    """The images of `without`, and their rows [B] in ``images``."""
    listed_rows = _listed_rows(images, Path(file), split)
    rows = torch.tensor([row for row in range(len(images)) if row not in listed_rows]).long()
    if not listed_rows:
        return images, rows
    if not len(rows):
        raise ValueError(f"{images.name}: {os.fspath(file)} leaves out all of {len(images)} images")
    taken = images.subset(rows)
    taken.left_out = [*images.left_out, *(name_of(images, row) for row in sorted(listed_rows))]
    return taken, rows


def _listed_rows(images: ImageSet, file: Path, split: str) -> set[int]:
    names = _read(file)
    if not isinstance(images, ImageFiles):
        parts = ("", images.name, f"{images.name} {split}")
        known = {entry.image for entry in names if entry.part in parts}
        return {row for row in range(len(images)) if name_of(images, row) in known}
    rows = _rows_of_files(images, {os.path.abspath(entry.image) for entry in names})
    missing = [entry.image for entry in names if not os.path.lexists(entry.image)]
    if missing and not rows:
        warnings.warn(
            f"{file}: {listed(missing)} do not exist; files are named from the folder {os.getcwd()} on",
            stacklevel=4,
        )
    return rows


def _rows_of_files(images: ImageFiles, paths: set[str]) -> set[int]:
    lasts = {os.path.basename(path) for path in paths}  # an absolute path takes longer to make
    return {
        row
        for row, path in enumerate(images.sources)
        if os.path.basename(path) in lasts and os.path.abspath(path) in paths
    }


def _read(path: Path) -> Sequence[_Listed]:
    if not regular(path).is_file():
        raise FileNotFoundError(f"leave_out: {path} does not exist; expected {_FORM}")
    if path.suffix.lower() not in TABLES:
        lines = (line.strip() for line in read_text(path).splitlines())
        return [_Listed(_as_written(line), "") for line in lines if line]
    table = read_table(path, least=0)  # nothing was found, and JSON lines have no header then
    if "image" not in table.header and (table.rows or path.suffix.lower() != ".jsonl"):
        raise ValueError(
            f"leave_out: {path} has the columns {listed(table.header)}; expected {_FORM}"
        )
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    for at, row in enumerate(rows):
        if row.get("leave_out", "yes") not in ("yes", "no"):
            raise ValueError(
                f"{table.where(at)}: leave_out must be yes or no, got {row['leave_out']!r}"
            )
    return [
        _Listed(_as_written(from_cell(row["image"])), from_cell(row.get("part", "")))
        for row in rows
        if row.get("leave_out", "yes") == "yes"
    ]


def _as_written(text: str) -> str:
    r"""A name as the system has it: a byte that is no UTF-8 stands in a file as \udcff."""
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda found: chr(int(found[1], 16)), text)
