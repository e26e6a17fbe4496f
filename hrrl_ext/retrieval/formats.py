"""Files of captions as others write them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._reading import reading
from .._regular import regular
from ..data.decoding import SUFFIXES
from ..data.files import files_below, folders_in, is_image, tell_left_out
from ..data.folders import ImageFiles
from ..data.paths import InsideFolder
from ..data.resize import ImageSize
from ..data.splits import split_of
from ..spec import listed, not_known
from ..storage import read_json
from .text import as_text, read_lines

TABLE = "a header or keys image and caption, and optionally group and split"
KARPATHY = (
    'an object with "images", each with "filename" (and "filepath"), "split", "sentences" of "raw"'
)
_OTHERS = {"file_name": "image", "text": "caption"}  # of metadata.csv and metadata.jsonl
_SAME = {"validation": "val", "valid": "val", "dev": "val", "training": "train"}


@dataclass
class Captioned:
    """Image files with captions, in the order in which they were found."""

    owner: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    _files: dict[str, int] = field(default_factory=dict)
    _groups: list[str | None] = field(default_factory=list)

    def add(self, file: str, caption: str, group: str | None, where: str) -> None:
        image = self._files.setdefault(file, len(self._files))
        if image == len(self._groups):
            self._groups.append(group)
        elif self._groups[image] != group:
            raise ValueError(
                f"{where}: the image is in group {group!r}, before it was in {self._groups[image]!r}"
            )
        self.owner.append(image)
        self.captions.append(caption)

    def images(self, image_size: ImageSize | None, name: str) -> ImageFiles:
        if image_size is None:
            raise ValueError(
                f"load_pairs: {name} holds images of any size: give image_size=..., the side in pixels"
            )
        files = list(self._files)
        return ImageFiles(
            files, [0] * len(files), image_size=image_size, classes=["image"], name=name
        )

    def group_names(self) -> list[str] | None:
        if None in self._groups:
            return None
        return list(dict.fromkeys(str(group) for group in self._groups))

    def group_ids(self) -> list[int] | None:
        names = self.group_names()
        if names is None:
            return None
        number = {name: k for k, name in enumerate(names)}
        return [number[str(group)] for group in self._groups]


# --- CSV and JSON lines


def read_table(path: Path, split: str, root: Path | None) -> Captioned:
    """Rows of image, caption[, group, split]."""
    rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path))
    inside = InsideFolder(path.parent if root is None else root)
    grouped = any("group" in row for _, row in rows)
    found = Captioned()
    for where, row in _of_split(rows, split, str(path)):
        name = row["image"]
        if not isinstance(name, str):
            raise ValueError(f"{where}: image must be a file's name, got {name!r}")
        file, group = inside.file(name, where), row.get("group")
        if grouped and (group == "" or not isinstance(group, str | int)):
            raise ValueError(f"{where}: group must be a name or a number, got {group!r}")
        texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        if not texts:
            raise ValueError(f"{where}: the list of captions is empty; leave the image out")
        for text in texts:
            caption = as_text(text, f"{where}: caption")
            found.add(file, caption, None if group is None else str(group), where)
    return found


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    read_lines(path)  # names the line that is not UTF-8
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = _named([name.strip().lower() for name in next(reader, [])])
            _require_columns(header, f"{path}, line 1")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if row and len(row) != len(header):
                    raise ValueError(
                        f"{where}: expected {len(header)} values, as in the header, got {len(row)}; "
                        'a caption with commas stands in quotes, "..."'
                    )
                if row:
                    yield where, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}; expected {TABLE}"
            ) from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be an object with {TABLE}, got {type(row).__name__}")
        row = dict(zip(_named(list(row)), row.values(), strict=True))
        _require_columns(list(row), where)
        yield where, row


def _named(names: list[str]) -> list[str]:
    """Hugging Face's names, where ours are not there."""
    return [_OTHERS[n] if n in _OTHERS and _OTHERS[n] not in names else n for n in names]


def _require_columns(names: list[str], where: str) -> None:
    for name in ("image", "caption"):
        if names.count(name) != 1:
            raise ValueError(f"{where}: expected {TABLE}, got {listed(names) or 'nothing'}")


def _of_split(
    rows: list[tuple[str, dict[str, Any]]], split: str, name: str
) -> list[tuple[str, dict[str, Any]]]:
    """Those of the splits that are asked for: all, where rows have none."""
    if not rows:
        raise ValueError(f"{name} holds no pairs")
    if not any("split" in row for _, row in rows):
        return rows
    for where, row in rows:
        if not isinstance(row.get("split"), str) or not row["split"].strip():
            raise ValueError(f"{where}: split must be a name, got {row.get('split')!r}")
    has = [_split_name(row["split"]) for _, row in rows]
    wanted = _wanted(split, has, name)
    return [row for row, of in zip(rows, has, strict=True) if of in wanted]


def _split_name(text: str) -> str:
    text = text.strip().lower()
    return _SAME.get(text, text)


def _wanted(split: str, has: list[str], name: str) -> set[str]:
    """Never another split in place of one that is not there: recall among it is another number."""
    known = set(has)
    if split == "all":
        return known
    wanted = [_split_name(part) for part in split.split("+")]
    for part in wanted:
        if part not in known:
            raise ValueError(
                f"load_pairs: {name}: split {not_known(part, [*sorted(known), 'all'])}"
            )
    return set(wanted)


# --- Karpathy's JSON


def read_karpathy(path: Path, split: str, root: Path | None) -> Captioned:
    content = read_json(path)
    images = content.get("images")
    if not isinstance(images, list):
        raise ValueError(f"{path}: expected {KARPATHY}, got the keys {listed(sorted(content))}")
    rows = []
    for at, image in enumerate(images):
        where = f"{path}: images[{at}]"
        if not isinstance(image, Mapping) or not isinstance(image.get("filename"), str):
            raise ValueError(f"{where}: no filename; expected {KARPATHY}")
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            raise ValueError(f"{where}: no sentences; expected {KARPATHY}")
        rows.append((where, dict(image)))
    inside = InsideFolder(path.parent if root is None else root)
    found = Captioned()
    for where, image in _of_split(rows, split, str(path)):
        folder = image.get("filepath", "")
        name = f"{folder}/{image['filename']}" if folder else image["filename"]
        file = inside.file(name, where)
        for at, sentence in enumerate(image["sentences"]):
            of = f"{where}.sentences[{at}]"
            if not isinstance(sentence, Mapping) or "raw" not in sentence:
                raise ValueError(f'{of}: no "raw"; expected {KARPATHY}')
            found.add(file, as_text(sentence["raw"], of), None, where)
    return found


# --- precomputed features


def read_precomputed(folder: Path, split: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Features [N, ...], captions and the owner of each: {split}_ims.npy, {split}_caps.txt."""
    has = sorted(path.name.removesuffix("_ims.npy") for path in folder.glob("*_ims.npy"))
    wanted = has if split == "all" else split.split("+")
    parts = []
    for name in wanted:
        # "val" is "dev" in these folders.
        alike = [name] if name in has else [o for o in has if _split_name(o) == _split_name(name)]
        if not alike:
            raise ValueError(f"load_pairs: {folder}: split {not_known(name, [*has, 'all'])}")
        parts.append(_precomputed(folder / f"{alike[0]}_ims.npy", folder / f"{alike[0]}_caps.txt"))
    before = np.cumsum([0, *(len(features) for features, _, _ in parts[:-1])])
    owner = [ids + n for (_, _, ids), n in zip(parts, before, strict=True)]
    texts = [text for _, captions, _ in parts for text in captions]
    return np.concatenate([features for features, _, _ in parts]), texts, np.concatenate(owner)


def _precomputed(ims: Path, caps: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    if not regular(caps).is_file():
        raise FileNotFoundError(f"{caps} does not exist; it holds the captions of {ims.name}")
    regular(ims)
    with reading(f"{ims} is not an array of numbers"):
        features = np.load(ims, allow_pickle=False)
    if not isinstance(features, np.ndarray):
        raise ValueError(f"{ims} is not an array of numbers, but an archive of several")
    if features.ndim < 2 or features.dtype.kind != "f":
        raise ValueError(
            f"{ims}: expected floats [N, D], got {list(features.shape)} {features.dtype}"
        )
    lines = read_lines(caps)
    captions = [as_text(line, f"{caps}, line {at}") for at, line in enumerate(lines, 1)]
    n, m = len(features), len(captions)
    if n == 0 or m == 0 or m % n:
        raise ValueError(
            f"{caps}: expected as many lines as {ims.name} has rows, {n}, or a multiple (5 captions "
            f"of each image, one after another), got {m}"
        )
    if m > n:
        return features, captions, np.arange(m) // (m // n)
    # A row for each caption: those of one image are equal, and stand together.
    flat = features.reshape(n, -1)
    first = np.ones(n, bool)
    first[1:] = [not np.array_equal(a, b) for a, b in zip(flat[1:], flat[:-1], strict=True)]
    return features[first], captions, np.cumsum(first) - 1


# --- a text beside each image


def read_captioned_files(folder: Path, split: str) -> Captioned:
    """image.png with image.txt, in the folder and below it."""
    files = sorted(file for top in split_folders(folder, split) for file in files_below(top))
    images = [file for file in files if is_image(file)]
    texts = {file for file in files if file.lower().endswith(".txt")}
    if not images:
        raise FileNotFoundError(f"{folder}: no image ({', '.join(SUFFIXES)}) with a .txt beside it")
    left = sorted(set(files) - set(images) - texts)
    tell_left_out(folder, len(images), left)
    found = Captioned()
    for image in images:
        text = _text_of(image)
        if text not in texts:
            raise FileNotFoundError(f"{image} has no captions: expected {text}, one in each line")
        lines = [(at, line) for at, line in enumerate(read_lines(Path(text)), 1) if line.strip()]
        if not lines:
            raise ValueError(f"{text} is empty; expected the captions of {image}, one in each line")
        for at, line in lines:
            where = f"{text}, line {at}"
            found.add(image, as_text(line, where), None, where)
    return found


def has_captioned_files(folder: Path) -> bool:
    """Whether any image in the folder or below it has its text."""
    files = set(files_below(folder))
    return any(is_image(file) and _text_of(file) in files for file in files)


def split_folders(folder: Path, split: str) -> list[Path]:
    """Those of the splits that are asked for; the folder itself, where it has none."""
    splits = {name: of for name in folders_in(folder) if (of := split_of(name))}
    if not splits:
        return [folder]
    wanted = _wanted(split, list(splits.values()), str(folder))
    return [folder / name for name, of in splits.items() if of in wanted]


def _text_of(image: str) -> str:
    return f"{os.path.splitext(image)[0]}.txt"
