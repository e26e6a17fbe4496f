"""Files of others, and damaged ones: whatever reading them raises becomes a line that names them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ._regular import regular
from .storage import why_unreadable

_LONGEST = 300  # characters of a reason: some packages put what a file holds into it


@contextmanager
def reading(what: str, way_out: str = "") -> Iterator[None]:
    """ValueError "``what``: why; ``way_out``" for whatever is raised within.

    For damaged files numpy, zipfile, zlib, tokenize, torch and safetensors raise many types, and none of
    them says which file.
    """
    try:
        yield
    except Exception as error:
        why = why_unreadable(error)
        why = why if len(why) <= _LONGEST else f"{why[:_LONGEST]}..."
        raise ValueError(f"{what}: {why}" + (f"; {way_out}" if way_out else "")) from error


def read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark. ValueError naming the line that is not."""
    try:
        return regular(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not text in UTF-8: {error.reason}") from None


def load_state(path: Path) -> Any:
    """What torch.save wrote, on the CPU; nothing of it is run.

    The checksum of each part is compared first, which torch.load leaves out: a bit of a weight that
    flipped on a disk would be another weight, without a word. Files of before torch 1.6 have none.
    """
    if zipfile.is_zipfile(regular(path)):
        with zipfile.ZipFile(path) as archive:
            some = any(part.CRC for part in archive.infolist())  # torch can be told to write none
            if some and (part := archive.testzip()) is not None:
                raise ValueError(f"{part} in it is damaged: its checksum is another")
    return torch.load(path, map_location="cpu", weights_only=True)
