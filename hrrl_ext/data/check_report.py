"""What a look at every image of a source has found: as text, as a list of images, as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._shapes import count, flag, many, mapping, maybe, number, record, text
from .._tables import aligned, one_line
from ..storage import read_json, write_csv, write_rows
from .image_sets import ImageSet
from .looking import BIT, STOPS, WARNS, Limits
from .unreadable import name_of

OF_CLASSES = {
    "empty class": "no image",
    "small class": "fewer than min_images images",
    "class case": "names of classes that differ by case alone",
}
"""Kinds that are found of classes, and what they are."""
KINDS = STOPS | WARNS | OF_CLASSES
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)

_SAME = ("contradicting", "leaked", "repeated")
_FIRST = 3  # names that are shown of a kind
_COLUMNS = ("image", "class", "part", "kind", "leave_out", "why")


class Part(NamedTuple):
    """A set that was read."""

    name: str
    images: ImageSet
    refused: str
    """why training does not open it, or nothing"""


def first_places(parts: Sequence[Part]) -> np.ndarray:
    """Where the images of each part begin among all, and where they end."""
    return np.cumsum([0, *(len(part.images) for part in parts)])


def part_at(parts: Sequence[Part], first: np.ndarray, place: int) -> tuple[Part, int]:
    """Of a place among all images the part, and the row in it."""
    number = int(np.searchsorted(first, place, side="right")) - 1
    return parts[number], place - int(first[number])


@dataclass(frozen=True)
class Finding:
    """One thing that was found of an image, or of a class."""

    kind: str
    """of ``KINDS``"""
    part: str
    image: str
    """its file, or where it stands; nothing, where it is of a class"""
    class_name: str
    why: str
    leave_out: bool
    """whether the list has training leave it out"""


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What :func:`check` has found; ``str`` is the report as `hrrl data check` prints it.

    parts: the sets that were read, each with its ``name`` and its ``images``.
    limits: from where on an image or a class was remarkable.
    """

    parts: Sequence[Part]
    limits: Limits
    _looked: np.ndarray = field(repr=False)
    _reasons: Mapping[int, str] = field(repr=False)
    _twin: np.ndarray = field(repr=False)
    _case: Mapping[int, int] = field(repr=False)
    _leave: np.ndarray = field(repr=False)

    # --- in numbers

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many images, or classes, of each kind there are, of the kinds that there are."""
        bits = self._looked["found"]
        found = {kind: int(np.count_nonzero(bits & bit)) for kind, bit in BIT.items()}
        for one in self._of_classes():
            found[one.kind] = found.get(one.kind, 0) + 1
        return {kind: found[kind] for kind in KINDS if found.get(kind)}

    @property
    def stopping(self) -> int:
        """Images that stop a training which meets them."""
        return sum(self.counts.get(kind, 0) for kind in STOPS)

    @property
    def clean(self) -> bool:
        """Whether training opens every part, and can read all of it; warnings do not count."""
        return not self.stopping and not any(part.refused for part in self.parts)

    def readable(self, part: int) -> np.ndarray:
        """Which images of a part, by its number, can be read [N]."""
        bits = self._looked["found"][self._first[part] : self._first[part + 1]]
        return (bits & sum(BIT[kind] for kind in STOPS)) == 0

    # --- one by one

    def findings(self, kind: str | None = None) -> Iterator[Finding]:
        """What was found, of one kind or of all, in the order of ``KINDS`` and of the images."""
        for name, bit in BIT.items():
            if kind in (None, name):
                for place in np.flatnonzero(self._looked["found"] & bit).tolist():
                    yield self._finding(name, place)
        yield from (one for one in self._of_classes() if kind in (None, one.kind))

    def rows(self, kind: str) -> Iterator[tuple[Part, int, Finding]]:
        """The images of one kind: the part, the row in it, and what was found."""
        for place in np.flatnonzero(self._looked["found"] & BIT[kind]).tolist():
            part, row = self._at(place)
            yield part, row, self._finding(kind, place)

    @cached_property
    def _first(self) -> np.ndarray:
        return first_places(self.parts)

    def _at(self, place: int) -> tuple[Part, int]:
        return part_at(self.parts, self._first, place)

    def _finding(self, kind: str, place: int) -> Finding:
        part, row = self._at(place)
        return Finding(
            kind,
            part.name,
            name_of(part.images, row),
            part.images.classes[part.images.target[row]],
            self._why(kind, place),
            kind in STOPS or (kind in _SAME and bool(self._leave[place])),
        )

    def _why(self, kind: str, place: int) -> str:
        looked = self._looked[place]
        if kind in STOPS:
            return self._reasons.get(place, "")
        if kind in (*_SAME, "case"):
            part, row = self._at(int(self._case[place] if kind == "case" else self._twin[place]))
            name = part.images.classes[part.images.target[row]]
            return f"as {name_of(part.images, row)}, {name!r} of {part.name}"
        if kind in ("small", "long"):
            return f"{looked['width']} x {looked['height']} pixels"
        return looked["mode"].item().decode() if kind == "converted" else ""

    def _of_classes(self) -> Iterator[Finding]:
        for part in self.parts:
            counted = np.bincount(part.images.target.numpy(), minlength=part.images.num_classes)
            of_case: dict[str, list[str]] = {}
            for name, images in zip(part.images.classes, counted.tolist(), strict=True):
                of_case.setdefault(name.casefold(), []).append(name)
                if images < max(1, self.limits.min_images):
                    kind = "small class" if images else "empty class"
                    yield Finding(kind, part.name, "", name, f"{images} images", False)
            for alike in of_case.values():
                for name in alike[1:]:
                    yield Finding("class case", part.name, "", name, f"as {alike[0]!r}", False)

    # --- to be written

    def write_list(self, file: str | os.PathLike[str]) -> None:
        """Every finding in a table, .csv or .jsonl: image, class, part, kind, leave_out, why.

        A source leaves out those of the images for which leave_out is yes: "photos:leave_out=FILE"
        (:func:`without`). ValueError for another suffix.
        """
        path = Path(file)
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise ValueError(f"check: a list is a .csv or a .jsonl, got {os.fspath(file)!r}")
        entries = (
            (f.image, f.class_name, f.part, f.kind, "yes" if f.leave_out else "no", f.why)
            for f in self.findings()
        )
        rows = (dict(zip(_COLUMNS, entry, strict=True)) for entry in entries)
        if path.suffix.lower() == ".csv":
            write_csv(path, _COLUMNS, rows)
        else:
            write_rows(path, rows)

    def to_dict(self) -> dict[str, Any]:
        """What :func:`read_check` reads: numbers, and the first names of each kind."""
        return {
            "limits": asdict(self.limits),
            "parts": [self._part(number) for number in range(len(self.parts))],
            "clean": self.clean,
            "found": {
                kind: {
                    "count": many_,
                    "stops": kind in STOPS,
                    "first": [asdict(one) for one in self._some(kind)],
                }
                for kind, many_ in self.counts.items()
            },
        }

    def _some(self, kind: str) -> list[Finding]:
        return [one for one, _ in zip(self.findings(kind), range(_FIRST), strict=False)]

    def _part(self, number: int) -> dict[str, Any]:
        name, images, refused = self.parts[number]
        looked = self._looked[self._first[number] : self._first[number + 1]]
        counted = np.bincount(images.target.numpy(), minlength=images.num_classes)
        some = counted[counted > 0]
        known = looked[looked["width"] > 0]
        return {
            "name": name,
            "images": len(images),
            "refused": refused or None,
            "classes": dict(zip(images.classes, counted.tolist(), strict=True)),
            "ratio": float(some.max() / some.min()) if len(some) else None,
            "formats": _times(looked["format"]),
            "modes": _times(looked["mode"]),
            "width": _percentiles(known["width"]),
            "height": _percentiles(known["height"]),
        }

    def __str__(self) -> str:
        lines = []
        for about in self.to_dict()["parts"]:
            lines += _described(about)
        for kind, times in self.counts.items():
            named = "; ".join(_named(one) for one in self._some(kind))
            more = f"; and {times - _FIRST} more" if times > _FIRST else ""
            level = "stops" if kind in STOPS else "warns"
            lines.append(f"{level}  {kind:13} {times:7}  {KINDS[kind]}: {named}{more}")
        if not self.counts:
            lines.append("nothing was found")
        return "\n".join(map(one_line, lines))


def _named(one: Finding) -> str:
    name = one.image or f"{one.class_name!r} of {one.part}"
    return f"{name} ({one.why})" if one.why else name


def _described(part: Mapping[str, Any]) -> list[str]:
    """Of a part of :meth:`CheckReport.to_dict`."""
    classes: Mapping[str, int] = part["classes"]
    lines = [f"{part['name']}: {part['images']} images of {len(classes)} classes"]
    if part["refused"] is not None:
        lines.append(f"stops  {part['refused']}")
    if any(classes.values()):
        of = {name: images for name, images in classes.items() if images}
        least, most = min(of, key=of.__getitem__), max(of, key=of.__getitem__)
        lines.append(
            f"images a class: {of[least]}"
            if of[least] == of[most]
            else f"images a class: {of[least]} ({least!r}) to {of[most]} ({most!r}), ratio "
            f"{part['ratio']:.3g}"
        )
    for what in ("formats", "modes"):
        if part[what]:
            lines.append(
                f"{what}: {', '.join(f'{name} {times}' for name, times in part[what].items())}"
            )
    if part["width"]:
        header = ["pixels", "least", *(f"{p} %" for p in PERCENTILES[1:-1]), "most"]
        sides = [[side, *map(str, part[side])] for side in ("width", "height")]
        lines += aligned([header, *sides]).split("\n")
    return lines


def _times(values: np.ndarray) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    names, times = np.unique(values[values != b""], return_counts=True)
    found = sorted(zip(names.tolist(), times.tolist(), strict=True), key=lambda pair: -pair[1])
    return {name.decode(): int(n) for name, n in found}


def _percentiles(sides: np.ndarray) -> list[int]:
    if not len(sides):
        return []
    return np.percentile(sides, PERCENTILES, method="inverted_cdf").astype(int).tolist()


_FINDING = record(kind=text, part=text, image=text, class_name=text, why=text, leave_out=flag)
_PART = record(
    name=text,
    images=count,
    refused=maybe(text),
    classes=mapping(count),
    ratio=maybe(number),
    formats=mapping(count),
    modes=mapping(count),
    width=many(count),
    height=many(count),
)
_REPORT = record(
    limits=record(min_size=count, max_aspect=number, min_images=count),
    parts=many(_PART, least=1),
    clean=flag,
    found=mapping(record(count=count, stops=flag, first=many(_FINDING))),
)


def read_check(file: str | os.PathLike[str]) -> dict[str, Any]:
    """What `hrrl data check --json` has written (:meth:`CheckReport.to_dict`), each field as it was
    written. FileNotFoundError, or ValueError naming the field."""
    return read_json(Path(file), _REPORT)
