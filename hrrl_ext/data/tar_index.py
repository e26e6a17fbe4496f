"""Where the samples of a tar file stand, so that any of them is read alone: found once, kept in a cache.

Members of a sample are neighbours, whose names begin alike up to the first dot, as WebDataset has it:
``a/0001.jpg`` and ``a/0001.cls`` are the picture and the label of ``a/0001``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .._regular import regular
from ..storage import write_text
from .decoding import SUFFIXES
from .files import is_clutter
from .tables import cell_text

TEXTS = ("cls", "txt", "text")
"""Members that are a text; of "json" every field is one."""
_FORMAT = 1  # of the files in the cache
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SETTLED = (
    3.0  # seconds; file systems give the same time to what is written within up to two of them
)


@dataclass
class TarIndex:
    """The n samples of a tar file, in its order. Lists have an entry for each."""

    keys: list[str] = field(default_factory=list)
    pictures: dict[str, list[list[int] | None]] = field(default_factory=dict)
    """suffix, without its dot → where such a picture begins in the file, and its bytes"""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """of `TEXTS`, or a field of JSON → what it says; "" where a sample has none"""
    others: dict[str, int] = field(default_factory=dict)
    """how many members with which suffix are neither"""


def tar_index(path: Path) -> TarIndex:
    """Of a tar file as it is now: from the cache, where it was as long and as old when it was scanned.

    The cache is ``$XDG_CACHE_HOME/hrrl_ext/shards`` (``~/.cache/...``); what is in it may be deleted.
    Raises FileNotFoundError, or ValueError naming the place in the file for one that is damaged,
    compressed or of another kind.
    """
    if not regular(path).is_file():
        raise FileNotFoundError(f"{path}: no such tar file")
    stat = path.stat()
    state = {"format": _FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    cache = _cache_of(path)
    if (known := _cached(cache, state)) is not None:
        return known
    index = _scanned(path)
    if time.time() - stat.st_mtime > _SETTLED:  # else it could change and look the same
        text = json.dumps([state, vars(index)])
        try:
            write_text(cache, f"{_digest(text)}\n{text}\n")
        except OSError as error:
            warnings.warn(
                f"{path}: its index is not kept, and made anew each time ({error}); XDG_CACHE_HOME names "
                "another place",
                stacklevel=3,
            )
    return index


def _cache_of(path: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return Path(base) / "hrrl_ext" / "shards" / f"{name}.json"


def _cached(cache: Path, state: dict[str, int]) -> TarIndex | None:
    """None where there is none of this state, or it is not as it was written."""
    try:
        digest, _, text = regular(cache).read_text(encoding="utf-8").partition("\n")
        if digest != _digest(text.removesuffix("\n")):
            return None
        found, index = json.loads(text)
        return TarIndex(**index) if found == state else None
    except (OSError, ValueError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- scanning


@dataclass
class _Sample:
    key: str
    pictures: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    """of its JSON"""


def _scanned(path: Path) -> TarIndex:
    samples: dict[str, _Sample] = {}
    others, last = Counter[str](), None
    with path.open("rb") as file:
        _require_plain(path, file.read(6))
        for member in _members(path, file):
            where = f"{path}, {member.name!r} at byte {member.offset}"
            if not member.name or "\0" in member.name:
                raise ValueError(f"{where}: that is no name of a file; make the shard again")
            key, suffix = _key_and_suffix(member.name)
            if member.isdir() or is_clutter(os.path.basename(member.name)):
                continue
            if not _is_picture(suffix) and suffix not in (*TEXTS, "json"):
                others[f".{suffix}"] += 1
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"{where} is a link, or has holes; write the files themselves")
            if key != last and key in samples:
                raise ValueError(
                    f"{where}: the sample {key!r} began before another; the members of one stand side by "
                    "side, and no two samples have one name"
                )
            last = key
            _take(samples.setdefault(key, _Sample(key)), member, suffix, file, where)
    return _columns(list(samples.values()), dict(others), path)


def _take(
    sample: _Sample, member: tarfile.TarInfo, suffix: str, file: BinaryIO, where: str
) -> None:
    if suffix in sample.pictures or suffix in sample.texts or (suffix == "json" and sample.fields):
        raise ValueError(f"{where}: it is there twice; give each sample a name of its own")
    if _is_picture(suffix):
        sample.pictures[suffix] = [member.offset_data, member.size]
        return
    # Before so much memory is asked for.
    if member.offset_data + member.size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"{where} is to have {member.size} bytes, and the shard ends before them")
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8-sig")
        if "\0" in text:
            raise ValueError(f"a byte of 0 at {text.index(chr(0))}")
        if suffix != "json":
            sample.texts[suffix] = text.strip()
            return
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "valid JSON" if suffix == "json" else "text in UTF-8"
        raise ValueError(f"{where} is not {kind}: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where} must hold an object, got {type(fields).__name__}")
    sample.fields = {name: cell_text(value) for name, value in fields.items()}


def _columns(samples: list[_Sample], others: dict[str, int], path: Path) -> TarIndex:
    pictures = dict.fromkeys(suffix for sample in samples for suffix in sample.pictures)
    if not pictures:
        raise ValueError(f"{path}: no picture in it ({', '.join(SUFFIXES)})")
    said = [{**sample.fields, **sample.texts} for sample in samples]  # a member before a field
    names = dict.fromkeys(name for row in said for name in row)
    return TarIndex(
        [sample.key for sample in samples],
        {suffix: [sample.pictures.get(suffix) for sample in samples] for suffix in pictures},
        {name: [row.get(name, "") for row in said] for name in names},
        others,
    )


def _key_and_suffix(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _is_picture(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in SUFFIXES


def _require_plain(path: Path, head: bytes) -> None:
    for begin, packer in _PACKERS.items():
        if head.startswith(begin):
            raise ValueError(
                f"{path} is compressed by {packer}, and a picture is read from where it stands: unpack "
                "the shard, which grows by little, as pictures are compressed themselves"
            )


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """In order. tarfile takes a damaged header for the end in silence: what stands there is looked at."""
    file.seek(0)
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it keeps them all
                at = archive.offset
                yield member
    except Exception as error:  # tarfile raises many types
        raise _damaged(path, at, str(error)) from error
    file.seek(at)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _damaged(path, at, "it is cut off, as two blocks of zeros are its end")
    while block:
        if any(block):
            raise _damaged(
                path, at, "neither a header nor the end of the file, all zeros, stands there"
            )
        block = file.read(1 << 20)


def _damaged(path: Path, at: int, why: str) -> ValueError:
    return ValueError(
        f"{path} is damaged at byte {at}: {why}; make the shard again, or leave it out"
    )
