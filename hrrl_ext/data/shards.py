"""WebDataset's shards: tar files of pictures and of what is known of each, read in any order."""

from __future__ import annotations

import glob
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._regular import regular
from ..spec import TEXT, listed, not_known, read_settings, split_spec
from .classes import read_classes
from .columns import sorted_names
from .folders import DecodedImages
from .lists import USUAL_LABELS
from .packed import PackedTexts
from .resize import ImageSize
from .tables import usual_columns
from .tar_index import TarIndex, tar_index

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "wds:"
LAYOUT = (
    '"wds:train-{000..127}.tar", "wds:*.tar" or "wds:FOLDER", with settings '
    '"wds:train.tar:label=NAME,image=SUFFIX,classes=FILE": tar files that have a picture and a label '
    "(.cls, or a field of .json) of each sample"
)
_CLASSES = ("classes.txt", "classnames.txt")  # beside the shards
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST = 1_000_000  # shards that one pattern may stand for
_NONE = (-1, 0)  # where a sample has no picture


class ShardImages(DecodedImages):
    """Pictures in tar files, each of which is read from where it stands, in any order.

    label: "cls", another text such as "txt", or a field of the JSON; None takes cls, or the only field
    with a usual name (label, class, y, target, class_name). image: the suffix of the pictures to take,
    where samples have several. classes: a file of the names of classes, a line each; None takes
    classes.txt or classnames.txt beside the first shard. Without one, classes are what the labels say, in
    sorted order.

    `columns` has all texts and all fields of JSON, "" where a sample has none. Where samples stand is
    found once (`tar_index`). Raises FileNotFoundError, or ValueError naming the shard and the sample.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        *,
        image_size: ImageSize,
        label: str | None = None,
        image: str | None = None,
        classes: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> None:
        self._shards = [Path(shard) for shard in shards]
        if not self._shards:
            raise ValueError(f"images: the list of shards is empty; expected {LAYOUT}")
        indices = [tar_index(path) for path in self._shards]
        places = _places(indices, self._shards, image)
        rows = [np.flatnonzero(place[:, 0] >= 0) for place in places]
        _tell_left_out(indices, rows, self._shards)
        taken = list(zip(indices, rows, strict=True))
        self._shard = np.repeat(np.arange(len(rows)), [len(of_shard) for of_shard in rows])
        self._place = np.concatenate([p[r] for p, r in zip(places, rows, strict=True)])
        self._keys = PackedTexts([index.keys[row] for index, chosen in taken for row in chosen])
        columns = {
            text: _column(text, taken)
            for text in dict.fromkeys(text for index in indices for text in index.texts)
        }
        label = _label(label, list(columns), self._shards[0])
        if (empty := np.flatnonzero(columns[label] == "")).size:
            raise ValueError(f"{self._sample(empty[0])} has no label in {label!r}")
        target, known = self._labelled(columns[label], _class_file(classes, self._shards[0]))
        super().__init__(
            np.arange(len(self._place)),
            target,
            image_size=image_size,
            classes=known,
            name=name or str(self._shards[0]),
        )
        self.columns = columns

    @property
    def shards(self) -> Sequence[Tensor]:
        sources = torch.as_tensor(self.sources)
        rows = sources.argsort(stable=True)  # of a subset, too
        shard = torch.from_numpy(self._shard)[sources]
        return rows.split(torch.bincount(shard, minlength=len(self._shards)).tolist())

    def _labelled(self, labels: np.ndarray, file: Path | None) -> tuple[list[int], list[str]]:
        """The ids, and the names of the classes. Of a file labels are its names, or else its numbers."""
        known = sorted_names(labels) if file is None else read_classes(file)
        number = {name: c for c, name in enumerate(known)}
        if not all(label in number for label in labels):
            number = {str(c): c for c in range(len(known))}
        for row, label in enumerate(labels):
            if label not in number:
                raise ValueError(
                    f"{self._sample(row)} has the label {label!r}, which is neither a name nor a number "
                    f"of the {len(known)} classes in {file}"
                )
        return [number[label] for label in labels], known

    def _open(self, source: int) -> Image.Image:
        path, (begin, size) = self._shards[self._shard[source]], self._place[source].tolist()
        with regular(path).open("rb") as file:
            file.seek(begin)
            content = file.read(size)
        if len(content) < size:
            raise ValueError("the shard ends before it; it is another than when it was opened")
        return self._read(io.BytesIO(content))

    def told(self, source: int) -> str:
        return f"{self._sample(source)} at byte {self._place[source, 0]}"

    def _sample(self, row: int) -> str:
        return f"{self._shards[self._shard[row]]}, sample {self._keys[row]!r}"


def open_shards(source: str | Sequence[str], image_size: ImageSize) -> ShardImages:
    """Of "wds:PATTERN" with its settings, or of several: a shell may have written out the braces."""
    sources = [source] if isinstance(source, str) else list(source)
    specs = [split_spec(text.removeprefix(PREFIX), suffixes=("",)) for text in sources]
    where = f"images {sources[0]!r}"
    if len({settings for _, settings in specs}) > 1:
        raise ValueError(f"{where} and the shards after it have other settings; give all the same")
    settings = read_settings(
        where, specs[0][1], dict.fromkeys(("label", "image", "classes"), TEXT), form=LAYOUT
    )
    shards = [path for pattern, _ in specs for path in shard_paths(pattern)]
    name = sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"
    return ShardImages(shards, image_size=image_size, name=name, **settings)


def shard_paths(pattern: str) -> list[str]:
    """What braces, * and ? stand for; of a folder its .tar files. FileNotFoundError without any."""
    found: list[str] = []
    for text in [pattern] if os.path.exists(pattern) else _written_out(pattern):
        paths = [text]
        if os.path.isdir(text):
            paths = sorted(glob.glob(os.path.join(glob.escape(text), "*.tar")))
        elif not os.path.exists(text):
            paths = sorted(glob.glob(text))
        if not paths:
            raise FileNotFoundError(f"images: no shard {text!r}; expected {LAYOUT}")
        found += paths
    return found


def _written_out(pattern: str) -> Iterator[str]:
    """{000..127} and {a,b} as a shell has them."""
    texts = [pattern]
    while (braces := _BRACES.search(texts[0])) is not None:
        first, last, several = braces.groups()
        if several is not None:
            words: Sequence[str] = several.split(",")
        else:
            width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
            numbers = range(int(first), int(last) + 1)
            if not 0 < len(numbers) * len(texts) <= _MOST:
                raise ValueError(
                    f"images: {braces[0]} of {pattern!r} must count up, to {_MOST:,} shards at most"
                )
            words = [f"{number:0{width}}" for number in numbers]
        texts = [text.replace(braces[0], word, 1) for text in texts for word in words]
    yield from texts


def _places(
    indices: Sequence[TarIndex], shards: Sequence[Path], image: str | None
) -> list[np.ndarray]:
    """Of each shard [n, 2] where the picture of each sample begins, and its bytes; or `_NONE`."""
    there = dict.fromkeys(suffix for index in indices for suffix in index.pictures)
    if image is not None and image not in there:
        raise ValueError(f"{shards[0]}: a picture {not_known(image, there)}")
    plain = [suffix for suffix in there if "." not in suffix] or list(there)
    wanted = plain if image is None else [image]
    found = []
    for index, shard in zip(indices, shards, strict=True):
        lists = [index.pictures[suffix] for suffix in wanted if suffix in index.pictures]
        several = [
            row for row, of in enumerate(zip(*lists, strict=True)) if len(of) - of.count(None) > 1
        ]
        if several:
            raise ValueError(
                f"{shard}, sample {index.keys[several[0]]!r} has several pictures; say which to take, "
                f"image=SUFFIX, of {listed(wanted)}"
            )
        places = np.full((len(index.keys), 2), _NONE, dtype=np.int64)
        for of_suffix in lists:
            for row, place in enumerate(of_suffix):
                if place is not None:
                    places[row] = place
        found.append(places)
    return found


def _column(name: str, taken: Sequence[tuple[TarIndex, np.ndarray]]) -> np.ndarray:
    """[N] texts; equal ones are one object, as there are few classes and many samples."""
    values: list[str] = []
    once: dict[str, str] = {}
    for index, rows in taken:
        texts = index.texts.get(name)
        found = [""] * len(rows) if texts is None else [texts[row] for row in rows]
        values += [once.setdefault(text, text) for text in found]
    return np.array(values, dtype=object)


def _label(label: str | None, columns: list[str], shard: Path) -> str:
    if label is not None:
        if label not in columns:
            raise ValueError(f"{shard}: label {not_known(label, columns)}")
        return label
    usual = ["cls"] if "cls" in columns else usual_columns(columns, USUAL_LABELS)
    if len(usual) != 1:
        got = (
            f"{listed(usual)} may all be it"
            if usual
            else "no .cls, and no field of .json with a usual name"
        )
        raise ValueError(
            f"{shard}: label: {got}; give label=NAME, of {listed(columns) or 'none'}; expected {LAYOUT}"
        )
    return usual[0]


def _class_file(given: str | os.PathLike[str] | None, shard: Path) -> Path | None:
    if given is not None:
        return Path(given)
    return next((path for name in _CLASSES if (path := shard.parent / name).is_file()), None)


def _tell_left_out(
    indices: Sequence[TarIndex], rows: Sequence[np.ndarray], shards: Sequence[Path]
) -> None:
    others = sum((Counter(index.others) for index in indices), Counter[str]())
    suffixes = [f"{n} x {s if s.isprintable() else ascii(s)}" for s, n in others.most_common(5)]
    told = [f"members {', '.join(suffixes)}"] if others else []
    without = sum(len(i.keys) - len(chosen) for i, chosen in zip(indices, rows, strict=True))
    told += [f"{without} samples without a picture"] if without else []
    if told:
        warnings.warn(
            f"{shards[0]}: left out of {len(shards)} shards are {' and '.join(told)}", stacklevel=5
        )
