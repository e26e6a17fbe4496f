"""List files of Stanford Online Products."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._reading import read_text
from .._regular import regular
from .columns import sorted_names
from .concept_map import ConceptMap
from .folders import ImageFiles
from .paths import InsideFolder
from .resize import ImageSize

PRODUCTS_HEADER = ["image_id", "class_id", "super_class_id", "path"]
PRODUCTS_LAYOUT = f"lines headed {' '.join(PRODUCTS_HEADER)!r}, as in Stanford Online Products"


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


def _read_products(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and the four fields of each line below the header."""
    if not regular(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; expected {PRODUCTS_LAYOUT}")
    lines = read_text(path).splitlines()
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
