"""Image files named in a list: a metadata CSV, or a list file of Stanford Online Products.

A list is text and its names lead nowhere but below one folder (`InsideFolder`).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..spec import TEXT, listed, not_known, read_settings, split_spec
from .columns import sorted_names
from .concept_map import ConceptMap
from .folders import ImageFiles
from .paths import InsideFolder
from .resize import ImageSize

CSV_LAYOUT = (
    "a metadata CSV with a header, a column of image files and a column of classes "
    '("meta.csv", or with the columns named "meta.csv:image=FILE,label=CLASS,split=SPLIT")'
)
PRODUCTS_HEADER = ["image_id", "class_id", "super_class_id", "path"]
PRODUCTS_LAYOUT = f"lines headed {' '.join(PRODUCTS_HEADER)!r}, as in Stanford Online Products"

# What data sets call these columns; compared without case.
_IMAGE = (
    "image",
    "path",
    "file",
    "filename",
    "file_name",
    "img_filename",
    "image_path",
    "img_path",
)
_LABEL = ("label", "class", "y", "target", "class_name")
_SPLIT = ("split",)
_SPLITS = {
    **dict.fromkeys(("train", "training", "0"), "train"),  # 0, 1, 2: WILDS and Waterbirds
    **dict.fromkeys(("val", "valid", "validation", "1"), "val"),
    **dict.fromkeys(("test", "2"), "test"),
}
_SUFFIXES = (".csv", ".txt")
_OPTIONS = {"image": "image_column", "label": "label_column", "split": "split_column"}


class CsvImages(ImageFiles):
    """Images named in a CSV file with a header, one per line.

    image_column, label_column: the columns of file names and of classes; None takes the one with a
    usual name (image, path, file, filename, img_filename, ...; label, class, y, target).
    split_column: train, val or test (or 0, 1, 2) for each image; None takes "split" where there is
    such a column, "" none, and then every split is the whole list. "test" falls back to "val".
    root: the folder that the names are relative to, by default that of the file.

    Classes are those of the whole file, in sorted order (by value where all are numbers), so
    that they agree between splits. `columns` holds every other column too: concepts="column:place"
    makes one of them the concept, "column:y+place" the combinations of two. Raises
    FileNotFoundError, or ValueError naming the line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_size: ImageSize,
        split: str = "all",
        image_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        path = Path(path)
        header, rows, lines = _read_csv(path)
        image = _column(header, image_column, _IMAGE, f"{path}: image")
        label = _column(header, label_column, _LABEL, f"{path}: label")
        chosen = range(len(rows))
        if (by := _split_of(header, split_column, path)) is not None:
            splits = [_split_name(r[by], path, n) for r, n in zip(rows, lines, strict=True)]
            chosen = _rows_of(split, splits, path)  # type: ignore[assignment]
        empty = next((n for r, n in zip(rows, lines, strict=True) if not r[label]), None)
        if empty is not None:
            raise ValueError(f"{path}, line {empty}: no class in column {header[label]!r}")
        classes = sorted_names(row[label] for row in rows)
        number = {name: c for c, name in enumerate(classes)}
        inside = InsideFolder(path.parent if root is None else root)
        super().__init__(
            [inside.file(rows[i][image], f"{path}, line {lines[i]}") for i in chosen],
            [number[rows[i][label]] for i in chosen],
            image_size=image_size,
            classes=classes,
            name=str(path),
        )
        self.columns = {
            name: np.array([rows[i][j] for i in chosen], dtype=object)
            for j, name in enumerate(header)
            if j != image
        }


class ProductImages(ImageFiles):
    """Images of a list file of Stanford Online Products: Ebay_train.txt, Ebay_test.txt.

    label_column: "class_id", the products, with the super-classes as concepts; or "super_class_id",
    the twelve super-classes themselves (the HRRL paper's task), without concepts. Super-classes are
    named by their folders ("bicycle_final" is bicycle), or numbered. root: the folder that the paths
    are relative to, by default that of the file. Raises FileNotFoundError, or ValueError naming the
    line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_size: ImageSize,
        label_column: str = "class_id",
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        path = Path(path)
        if label_column not in PRODUCTS_HEADER[1:3]:
            raise ValueError(
                f"{path}: label must be class_id or super_class_id, got {label_column!r}"
            )
        rows = list(_read_products(path))
        names = _super_class_names([row for _, row in rows])
        super_of = _super_classes(rows, path)
        if label_column == "class_id":
            classes = sorted_names(super_of)
            labels = [row[1] for _, row in rows]
            concept_map = ConceptMap.from_names([names[super_of[name]] for name in classes])
        else:
            classes = [names[number] for number in sorted_names(names)]
            labels = [names[row[2]] for _, row in rows]
            concept_map = None
        number = {name: c for c, name in enumerate(classes)}
        inside = InsideFolder(path.parent if root is None else root)
        super().__init__(
            [inside.file(row[3], f"{path}, line {line}") for line, row in rows],
            [number[label] for label in labels],
            image_size=image_size,
            classes=classes,
            concept_map=concept_map,
            name=str(path),
        )


def is_list(source: object) -> bool:
    """Whether `open_list` opens this source."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    name, _ = split_spec(os.fspath(source), suffixes=_SUFFIXES)
    return name.lower().endswith(_SUFFIXES)


def open_list(
    source: str | os.PathLike[str],
    split: str,
    image_size: ImageSize,
    root: str | os.PathLike[str] | None,
) -> ImageFiles:
    """A source for which `is_list` holds: FILE.csv, FILE.csv:image=...,label=...,split=..., FILE.txt."""
    name, text = split_spec(os.fspath(source), suffixes=_SUFFIXES)
    path = Path(name)
    products = path.suffix.lower() == ".txt"
    settings = read_settings(
        f"images {os.fspath(source)!r}",
        text,
        dict.fromkeys(("label",) if products else _OPTIONS, TEXT),
        form=PRODUCTS_LAYOUT if products else CSV_LAYOUT,
    )
    columns = {_OPTIONS[option]: column for option, column in settings.items()}
    if products:
        return ProductImages(path, image_size=image_size, root=root, **columns)
    return CsvImages(path, image_size=image_size, split=split, root=root, **columns)


def _read_csv(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows, and the line that each row ends in."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {CSV_LAYOUT}")
    rows, lines = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} values, the header has {len(header)}")
                rows.append([value.strip() for value in row])
                lines.append(reader.line_num)
        except (ValueError, csv.Error) as error:  # ValueError: also undecodable UTF-8
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}; expected {CSV_LAYOUT}"
            ) from error
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if not rows or twice:
        what = f"column {listed(twice)} comes twice" if twice else "no image is listed"
        raise ValueError(f"{path}: {what}; expected {CSV_LAYOUT}")
    return header, rows, lines


def _read_products(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and the four fields of each line below the header."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {PRODUCTS_LAYOUT}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}; expected {PRODUCTS_LAYOUT}") from error
    if len(lines) < 2 or lines[0].split() != PRODUCTS_HEADER:
        raise ValueError(f"{path}: expected {PRODUCTS_LAYOUT}")
    for number, line in enumerate(lines[1:], 2):
        fields = line.split(maxsplit=3)
        if not fields:
            continue
        if len(fields) != 4 or not all(field.isdecimal() for field in fields[:3]):
            raise ValueError(f"{path}, line {number}: expected three numbers and a path")
        yield number, [*fields[:3], fields[3].strip()]


def _super_classes(rows: Sequence[tuple[int, list[str]]], path: Path) -> dict[str, str]:
    """class_id → super_class_id."""
    super_of: dict[str, str] = {}
    for line, row in rows:
        if super_of.setdefault(row[1], row[2]) != row[2]:
            raise ValueError(
                f"{path}, line {line}: class {row[1]} is in super-class {row[2]}, before it was in "
                f"{super_of[row[1]]}"
            )
    return super_of


def _super_class_names(rows: Sequence[Sequence[str]]) -> dict[str, str]:
    """super_class_id → its folder without "_final", where each has one such folder of its own."""
    pairs = {(row[2], row[3].partition("/")[0]) for row in rows}
    ids, folders = ([pair[i] for pair in pairs] for i in (0, 1))
    unique = len(set(ids)) == len(set(folders)) == len(pairs)
    if unique and all(folder.endswith("_final") for folder in folders):
        return {i: folder.removesuffix("_final") for i, folder in pairs}
    return {i: i for i in ids}


def _column(header: Sequence[str], name: str | None, usual: Sequence[str], what: str) -> int:
    """Index of the column of this name, or of the only one with a usual name."""
    if name is not None:
        if name not in header:
            raise ValueError(f"{what} column {not_known(name, header)}")
        return header.index(name)
    found = [i for i, column in enumerate(header) if column.lower() in usual]
    if len(found) != 1:
        got = f"{listed([header[i] for i in found])} may all be it" if found else "none found"
        raise ValueError(
            f"{what} column: {got}; name it, of the columns {listed(list(header))}; "
            f"expected {CSV_LAYOUT}"
        )
    return found[0]


def _split_of(header: Sequence[str], name: str | None, path: Path) -> int | None:
    if name == "":
        return None
    if name is None and not any(column.lower() in _SPLIT for column in header):
        return None
    return _column(header, name, _SPLIT, f"{path}: split")


def _split_name(value: str, path: Path, line: int) -> str:
    if value.lower() not in _SPLITS:
        raise ValueError(
            f"{path}, line {line}: unknown split {value!r}; expected train, val, test or 0, 1, 2; "
            "split= without a name takes the whole list"
        )
    return _SPLITS[value.lower()]


def _rows_of(split: str, splits: Sequence[str], path: Path) -> list[int]:
    if split == "all":
        return list(range(len(splits)))
    wanted = "val" if split == "test" and "test" not in splits else split
    rows = [i for i, name in enumerate(splits) if name == wanted]
    if not rows:
        raise ValueError(f"{path}: no image of split {split!r}, only {listed(sorted(set(splits)))}")
    return rows
