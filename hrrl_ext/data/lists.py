"""Image files named in a list: a metadata table, or a list file of Stanford Online Products.

A list is text and its names lead nowhere but below one folder (`InsideFolder`).
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..spec import TEXT, listed, read_settings, split_spec
from .columns import sorted_names
from .folders import ImageFiles
from .named_files import NamedFiles
from .products import PRODUCTS_LAYOUT, ProductImages
from .resize import ImageSize
from .splits import SPLITS, chosen_split, split_of, split_of_row
from .tables import LAYOUT, TABLES, Table, find_column, read_header, read_table, usual_columns
from .wilds import camelyon_files, camelyon_splits, is_camelyon

# What data sets call these columns; compared without case.
USUAL_IMAGES = (
    "image", "path", "file", "filename", "file_name", "img_filename", "image_path", "img_path",
)  # fmt: skip
_ID = ("id", "image_id", "img_id", "imageid", "id_code", "image_name")  # where there is no other
USUAL_LABELS = ("label", "class", "y", "target", "class_name")
_SPLIT = ("split",)
_SUFFIXES = (*TABLES, ".txt")
_OPTIONS = {"image": "image_column", "label": "label_column", "split": "split_column"}


class CsvImages(ImageFiles):
    """Images named in a table with a header, one per line: CSV, TSV or JSON lines.

    image_column, label_column: the columns of file names and of classes; None takes the one with a
    usual name (image, path, file, filename, img_filename, ...; label, class, y, target).
    split_column: train, val or test (or 0, 1, 2) for each image; None takes "split" where there is
    such a column, or the first folder of the names where they are splits; "" none, and then every
    split is the whole list. "test" falls back to "val".
    root: the folder that the names are relative to, by default that of the file; see `NamedFiles` for
    names without suffix.
    classes: the expected class names, where other images have more; None takes those of the file.

    Classes are those of the whole file, in sorted order (by value where all are numbers), so
    that they agree between splits. `columns` holds every other column too: concepts="column:place"
    makes one of them the concept, "column:y+place" the combinations of two. WILDS' Camelyon17 is known
    by its columns. Raises FileNotFoundError, or ValueError naming the line.
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
        classes: Sequence[str] | None = None,
    ) -> None:
        path = Path(path)
        table = read_table(path)
        image, files = _files(table, image_column)
        label = _label_column(table.header, label_column, path)
        labels = table.column(label)
        empty = next((row for row, name in enumerate(labels) if not name), None)
        if empty is not None:
            raise ValueError(f"{table.where(empty)}: no class in column {label!r}")
        known = sorted_names(labels) if classes is None else list(classes)
        number = {name: c for c, name in enumerate(known)}
        unknown = next((row for row, name in enumerate(labels) if name not in number), None)
        if unknown is not None:
            raise ValueError(
                f"{table.where(unknown)}: class {labels[unknown]!r} is none of {listed(known)}"
            )
        chosen = _rows_of(split, _splits(table, split_column, files), len(files), path)
        named = NamedFiles(
            path.parent if root is None else root, files[chosen[0]], table.where(chosen[0])
        )
        super().__init__(
            [named.file(files[row], table.where(row)) for row in chosen],
            [number[labels[row]] for row in chosen],
            image_size=image_size,
            classes=known,
            name=str(path),
        )
        self.columns = {
            name: np.array([table.rows[row][j] for row in chosen], dtype=object)
            for j, name in enumerate(table.header)
            if name != image
        }


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
        form=PRODUCTS_LAYOUT if products else LAYOUT,
    )
    columns = {_OPTIONS[option]: column for option, column in settings.items()}
    if products:
        return ProductImages(path, image_size=image_size, root=root, **columns)
    return CsvImages(path, image_size=image_size, split=split, root=root, **columns)


def metadata_of(folder: Path) -> Path | None:
    """The metadata of Hugging Face's or WILDS' in a folder, where it has images and classes."""
    for path in (folder / f"metadata{suffix}" for suffix in TABLES):
        header = read_header(path)
        has_image = usual_columns(header, USUAL_IMAGES)
        if is_camelyon(header) or (has_image and usual_columns(header, USUAL_LABELS)):
            return path
    return None


def _files(table: Table, column: str | None) -> tuple[str | None, list[str]]:
    """The column of the names, and the names."""
    if column is None and not usual_columns(table.header, USUAL_IMAGES):
        if is_camelyon(table.header):
            return None, camelyon_files(table)
        if len(ids := usual_columns(table.header, _ID)) == 1:
            column = ids[0]
    column = find_column(table.header, column, USUAL_IMAGES, f"{table.path}: image")
    return column, table.column(column)


def _label_column(header: list[str], name: str | None, path: Path) -> str:
    if name is None and is_camelyon(header) and not usual_columns(header, USUAL_LABELS):
        return "tumor"
    return find_column(header, name, USUAL_LABELS, f"{path}: label")


def _splits(table: Table, column: str | None, files: Sequence[str]) -> list[str] | None:
    """The split of every row, or None: the table is one set."""
    if column == "":
        return None
    if column is None and is_camelyon(table.header):
        splits = camelyon_splits(table)
        count = Counter(splits)
        warnings.warn(
            f"{table.path}: read as WILDS' Camelyon17, where the hospital (center) is the split: "
            f"1 is val, 2 is test, and {count['id_val']} images of the others are set aside as id_val; "
            f'"{table.path.name}:split=split" takes the column split as it stands',
            stacklevel=4,
        )
        return splits
    if column is None and not usual_columns(table.header, _SPLIT):
        folders = {name.partition("/")[0] for name in files}
        if len(folders) < 2 or not all(split_of(folder) for folder in folders):
            return None
        warnings.warn(
            f"{table.path}: the folders that its files lie in, {listed(sorted(folders))}, are the "
            'splits; ":split=" takes all as one set',
            stacklevel=4,
        )
        return [split_of(name.partition("/")[0]) or "" for name in files]
    column = find_column(table.header, column, _SPLIT, f"{table.path}: split")
    splits = [split_of_row(v, table.where(row)) for row, v in enumerate(table.column(column))]
    if aside := sorted(set(splits) - set(SPLITS)):
        warnings.warn(
            f"{table.path}: {listed(aside)} are in none of train, val and test; split='all' has them",
            stacklevel=4,
        )
    return splits


def _rows_of(split: str, splits: Sequence[str] | None, count: int, path: Path) -> Sequence[int]:
    """Never empty, as tables are not."""
    if split == "all" or splits is None:
        return range(count)
    wanted = chosen_split(split, sorted(set(splits)), f"{path}: no image")
    return [row for row, name in enumerate(splits) if name == wanted]
