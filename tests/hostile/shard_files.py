"""Shards of WebDataset's: tar files that are damaged, or whole and made to mislead; a reader by hand is the other route."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from damage import BYTES, JSON, TEXT, WILD_TEXTS, Damage, Files
from image_files import by_pillow
from PIL import Image
from trial import Attempt, Family

from hrrl_ext.data import load_images
from hrrl_ext.data.columns import sorted_names
from hrrl_ext.data.decoding import SUFFIXES
from hrrl_ext.data.files import is_clutter
from hrrl_ext.data.tables import cell_text
from hrrl_ext.data.tar_index import TEXTS

_SIDE = 6
_BLOCK = tarfile.BLOCKSIZE
_SIZE, _CHECKSUM, _TYPE = slice(124, 136), slice(148, 156), 156  # of a header


def _member(name: str, content: bytes, **header: Any) -> bytes:
    """With pax headers where its name needs some, as tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in header.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % _BLOCK)


def _members() -> list[tuple[str, bytes]]:
    found = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        told = {"place": "ab"[number % 2], "n": number}
        found += [
            (f"a/{number}.png", stream.getvalue()),
            (f"a/{number}.cls", b"%d\n" % (3 * (number % 3))),
            (f"a/{number}.json", json.dumps(told).encode()),
        ]
    return found


MEMBERS = _members()


def _archive(parts: list[bytes]) -> bytes:
    return b"".join(parts) + bytes(2 * _BLOCK)


def _with_header(member: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A plain member whose header is another, with a checksum that fits."""
    header = bytearray(member[:_BLOCK])
    change(header)
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header) + member[_BLOCK:]


# --- whole tar files that mislead


_NAMES = (
    "../../escape", "/etc/passwd", "a/../../b", "..", ".", "", "a/", "x" * 200, "a/b" * 60, "é", "\udcff", "a\nb",
    "._a", "Thumbs.db", "a/0", "a/0.png", "b.seg", "a b", "<b>", "=1+1", "__MACOSX/a", "a//b", "./a/9", "a\\b",
)  # fmt: skip
_SIZES = (0, 1, 12, 511, 512, 513, 5120, 2**31, 2**33 - 1)
_KINDS = b"0123457SVD\0Z"  # of members: links, devices, folders, sparse ones, none that is known
_RECORDS = {
    "path": ("b/9.png", "../9.png", "", "x" * 300, "a/0.png", "\udcff", "a\0b"),
    "size": ("0", "7", "-1", "1e3", "x", "", "9" * 30, "600"),
    "linkpath": ("/etc/passwd",),
    "mtime": ("nan", "x", "1e400"),
    "hdrcharset": ("BINARY", "x"),
    "GNU.sparse.major": ("1",),
    "GNU.sparse.size": ("100", "x", "99999999999"),
    "GNU.sparse.map": ("0,10", "0,10,5", "x", "-1,1"),
    "GNU.sparse.name": ("b/9.png",),
    "GNU.sparse.realsize": ("100",),
    "comment": ("a" * 10_000, "\0"),
    "": ("a",),
}


def other_name(chance: Random, at: int) -> list[bytes]:
    name, suffix = chance.choice(_NAMES), chance.choice((".png", ".cls", ".PNG", ".txt", "", "."))
    return [_member(name + suffix, MEMBERS[at][1])]


def other_size(chance: Random, at: int) -> list[bytes]:
    size = max(0, chance.choice((*_SIZES, len(MEMBERS[at][1]) + chance.randrange(-40, 600))))
    field = b"%011o\0" % size
    if chance.random() < 0.3:  # of GNU's, below 0 too
        size = chance.choice((size, -size, 2**62, -1))
        field = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    elif chance.random() < 0.2:
        field = chance.choice((b"12x4567890\0\0", bytes(12), b" " * 12, b"-0000000001\0"))

    def change(header: bytearray) -> None:
        header[_SIZE] = field

    return [_with_header(_member(*MEMBERS[at]), change)]


def other_kind(chance: Random, at: int) -> list[bytes]:
    kind = chance.choice(_KINDS)

    def change(header: bytearray) -> None:
        header[_TYPE] = kind
        if chance.random() < 0.5:
            header[157:168] = b"/etc/passwd"

    return [_with_header(_member(*MEMBERS[at]), change)]


def a_link(chance: Random, at: int) -> list[bytes]:
    kind, to = chance.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), chance.choice(_NAMES)
    return [_member(MEMBERS[at][0], b"", type=kind, linkname=to)]


def again(chance: Random, at: int) -> list[bytes]:
    """A member of a sample that was there before, or is to come."""
    other = chance.randrange(len(MEMBERS))
    return [_member(*MEMBERS[at]), _member(*MEMBERS[other])]


def left_out(chance: Random, at: int) -> list[bytes]:
    return []


def other_content(chance: Random, at: int) -> list[bytes]:
    name, content = MEMBERS[at]
    ways: tuple[Damage, ...] = JSON if name.endswith(".json") else BYTES
    changed = chance.choice(ways)(chance, content)
    if name.endswith(".cls") and chance.random() < 0.7:
        changed = chance.choice(WILD_TEXTS).encode("utf-8", "surrogatepass")
    return [_member(name, changed)]


def records(chance: Random, at: int) -> list[bytes]:
    """A pax header before it, of one member or of all that follow; some are no records."""
    key = chance.choice(list(_RECORDS))
    value = chance.choice(_RECORDS[key])
    body = b" %s=%s\n" % (key.encode(), value.encode("utf-8", "surrogateescape"))
    length = len(body) + len(str(len(body) + 2))
    content = b"%d" % chance.choice((length, length, length, 0, 3, length + 9, 10**12)) + body
    kind = chance.choice(
        (tarfile.XHDTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
    )
    before = _member("PaxHeader", content, type=kind)
    return [before, _member(*MEMBERS[at])]


def _misleading(way: Callable[[Random, int], list[bytes]]) -> Damage:
    def damage(chance: Random, content: bytes) -> bytes:
        parts = [[_member(*member)] for member in MEMBERS]
        at = chance.randrange(len(parts))
        parts[at] = way(chance, at)
        return _archive([part for of_member in parts for part in of_member])

    damage.__name__ = way.__name__
    return damage


MISLEADING = tuple(
    map(_misleading, (other_name, other_size, other_kind, a_link, again, left_out, other_content, records))
)  # fmt: skip


# --- by another route


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int


def by_hand(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files, by the layout of ustar with records of pax for a member; an error for all else."""
    at, for_all, records = 0, dict[str, str](), dict[str, str]()
    while any(block := content[at : at + _BLOCK]):
        header = _header(block)
        size = int((for_all | records).get("size", header.size))
        at += _BLOCK
        body = content[at : at + size]
        if size < 0 or len(content) < at + size:
            raise ValueError("cut off")
        at += -(-size // _BLOCK) * _BLOCK
        if header.kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            found = _pax(body)
            if header.kind == tarfile.XGLTYPE:
                for_all |= found
            else:
                records = found
            continue
        name = (for_all | records).get("path", header.name)
        records = {}
        if header.kind == tarfile.DIRTYPE:
            continue
        if header.kind not in (tarfile.REGTYPE, tarfile.CONTTYPE):
            raise ValueError("no file")
        yield name, body
    if len(block) < _BLOCK or any(content[at:]):
        raise ValueError("no end")


def _header(block: bytes) -> _Header:
    told = int(block[_CHECKSUM].split(b"\0")[0], 8)
    blank = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    if len(block) < _BLOCK or sum(blank) != told:
        raise ValueError("checksum")
    name, prefix = (block[part].split(b"\0")[0] for part in (slice(100), slice(345, 500)))
    full = prefix + b"/" + name if prefix else name
    field = block[_SIZE]
    size = int.from_bytes(field[1:]) if field[0] == 0x80 else int(field.split(b"\0")[0], 8)
    return _Header(os.fsdecode(full), block[_TYPE : _TYPE + 1], size)


def _pax(content: bytes) -> dict[str, str]:
    records = {}
    while content:
        length, _, _ = content.partition(b" ")
        record, content = content[: int(length)], content[int(length) :]
        key, is_, value = record[len(length) + 1 : -1].partition(b"=")
        if len(record) != int(length) or not record.endswith(b"\n") or not is_ or not key:
            raise ValueError("record")
        if key.startswith(b"GNU.sparse"):
            raise ValueError("sparse")
        records[key.decode()] = os.fsdecode(value)
    return records


def _samples(content: bytes) -> Any:
    """Pixels, targets, classes, and a field of the JSON, of samples that are in order."""
    samples: dict[str, dict[str, bytes]] = {}
    last = None
    for name, body in by_hand(content):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        picture = f".{suffix.lower().rpartition('.')[2]}" in SUFFIXES
        if is_clutter(base) or not (picture or suffix.lower() in (*TEXTS, "json")):
            continue
        key, suffix = f"{folder}{slash}{stem}", suffix.lower()
        if suffix in samples.get(key, ()) or (key in samples and key != last):
            raise ValueError("twice")
        samples.setdefault(key, {})[suffix] = body
        last = key
    fields = {key: _fields(sample) for key, sample in samples.items()}
    with_picture = [key for key, sample in samples.items() if "png" in sample]
    labels = [samples[key].get("cls", b"").decode("utf-8-sig").strip() for key in with_picture]
    if not all(labels) or any("\0" in label for label in labels):
        raise ValueError("no label")
    classes = sorted_names(labels)
    pixels = [by_pillow(samples[key]["png"]) for key in with_picture]
    if any(picture.shape != (_SIDE, _SIDE, 3) for picture in pixels):
        raise ValueError("resized by the library alone")
    places = [cell_text(fields[key].get("place")) for key in with_picture]
    return pixels, [classes.index(label) for label in labels], classes, places


def _fields(sample: dict[str, bytes]) -> dict[str, Any]:
    fields = json.loads(sample["json"].decode("utf-8-sig")) if "json" in sample else {}
    if not isinstance(fields, dict):
        raise ValueError("no object")
    return fields


# --- the families


def _read(path: Path) -> Any:
    images = load_images(f"wds:{path}:label=cls", image_size=_SIDE)
    x, target = images.__getitems__(range(len(images)))
    pixels = list(x.permute(0, 2, 3, 1).numpy())
    places = images.columns.get("place")
    return (
        pixels,
        target.tolist(),
        images.classes,
        [""] * len(x) if places is None else list(places),
    )


def shards(folder: Path) -> Callable[[Random], Attempt]:
    """Damaged at any place, made to mislead, and the index that is kept of one."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    path = folder / "train-000.tar"
    path.write_bytes(_archive([_member(*member) for member in MEMBERS]))
    return Files(
        {path: (*BYTES, *MISLEADING, *MISLEADING)},
        partial(_read, path),
        said=lambda: _samples(path.read_bytes()),
    )


def kept_index(folder: Path) -> Callable[[Random], Attempt]:
    """Of a shard that was written some time ago."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    path = folder / "train-000.tar"
    path.write_bytes(_archive([_member(*member) for member in MEMBERS]))
    os.utime(path, (1e9, 1e9))
    _read(path)
    (index,) = (folder / "cache").rglob("*.json")
    return Files({index: TEXT}, partial(_read, path))


FAMILIES: dict[str, Family] = {"shards": shards, "indices of shards": kept_index}
