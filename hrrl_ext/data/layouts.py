"""Folders as data sets unpack: split folders of classes, one folder of them, or a table beside images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .._reading import read_text
from ..spec import listed, nearest
from .columns import sorted_names
from .files import files_in, folders_in, is_image
from .folders import FolderImages, ImageFiles, class_folders
from .lists import CsvImages, metadata_of
from .named_files import NamedFiles
from .resize import ImageSize
from .splits import SPLITS, splits_among
from .tables import read_table

_ANNOTATIONS = "{}_annotations.txt"  # of tiny-imagenet: file, class, box, between tabs
_SOLUTION = "LOC_{}_solution.csv"  # of ImageNet at Kaggle: ImageId, then class and box
_PLAIN = ("images", "image", "imgs", "img")  # a folder that keeps files together, and is no class


def open_folder(root: Path, split: str, image_size: ImageSize) -> ImageFiles:
    """root/{train,val,test}/class/image where such split folders exist, else root/class/image.

    Split folders may be called Training, valid, seg_test and the like. Class ids come from the training
    folder, so that they agree where a class is absent from the other split. A metadata.csv (.tsv,
    .jsonl) in the root or in the split folders has the classes, where it has a column of them. A
    held-out folder may hold its images side by side, with tiny-imagenet's or Kaggle's file of their
    classes; a test folder without classes gives way to val.
    """
    if (table := metadata_of(root)) is not None:
        _tell(root, f"read as {table.name} says, not by its folders")
        return CsvImages(table, image_size=image_size, split=split)
    folders = split_folders(root)
    if not folders:
        return FolderImages(root, image_size=image_size)
    _tell_splits(root, folders)
    found = "val" if split == "test" and "test" not in folders else split
    if found not in folders:
        raise FileNotFoundError(
            f"{root}: no folder for split {split!r}, only {listed(list(folders))}"
        )
    classes = _classes(folders["train"], image_size) if "train" in folders else None
    if found == "test" and "val" in folders and _without_classes(root, folders["test"], classes):
        _tell(
            root, f"the images in {folders['test'].name} have no classes, so val is taken for test"
        )
        found = "val"
    return _open_split(root, folders[found], found, classes, image_size)


def split_folders(root: Path) -> dict[str, Path]:
    """train, val, test → the folder of that split; none where folders are classes.

    A class may be called "train": folders are splits where one of them holds folders, or a table,
    itself. Raises ValueError where two folders are one split.
    """
    names = folders_in(root)
    found = splits_among(names)
    if not any(folders_in(root / name) or metadata_of(root / name) for name in found):
        return {}
    folders: dict[str, Path] = {}
    for split in SPLITS:
        of_split = [name for name in names if found.get(name) == split]
        if len(of_split) > 1:
            raise ValueError(
                f"{root}: {listed(of_split)} are all the split {split}; keep one there"
            )
        if of_split:
            folders[split] = root / of_split[0]
    return folders


def _open_split(
    root: Path,
    folder: Path,
    split: str,
    classes: Sequence[str] | None,
    image_size: ImageSize,
) -> ImageFiles:
    expected = None if split == "train" else classes
    if (table := metadata_of(folder)) is not None:
        _tell(folder, f"read as {table.name} says, not by its folders")
        return CsvImages(table, image_size=image_size, split_column="", classes=expected)
    if _side_by_side(folder, classes):
        if (annotations := _annotations(root, folder, split)) is None:
            raise FileNotFoundError(
                f"{folder}: images without class folders, and in it or {root} neither tiny-imagenet's "
                f"{_ANNOTATIONS.format(split)} nor Kaggle's {_SOLUTION.format(split)}; move them into "
                "folders of their classes, or give a metadata CSV. ImageNet as its archives unpack also "
                "opens as torchvision:ImageNet"
            )
        return _AnnotatedImages(folder, annotations, image_size=image_size, classes=expected)
    return FolderImages(folder, image_size=image_size, classes=expected)


def _classes(train: Path, image_size: ImageSize) -> list[str]:
    if (table := metadata_of(train)) is not None:
        return CsvImages(table, image_size=image_size, split_column="").classes
    return class_folders(train)


def _side_by_side(folder: Path, classes: Sequence[str] | None) -> bool:
    """Whether all images of a folder lie in itself, or in one folder that is no class."""
    inner = folders_in(folder)
    if not inner:
        return any(map(is_image, files_in(folder)))
    return (
        len(inner) == 1 and inner[0] in _PLAIN and classes is not None and inner[0] not in classes
    )


def _without_classes(root: Path, test: Path, classes: Sequence[str] | None) -> bool:
    """Whether nothing says which classes the images of a test folder are of, as in a competition."""
    known = metadata_of(test) or _annotations(root, test, "test")
    return known is None and _side_by_side(test, classes)


def _annotations(root: Path, folder: Path, split: str) -> Path | None:
    places = (
        place / name.format(split) for place in (folder, root) for name in (_ANNOTATIONS, _SOLUTION)
    )
    return next((path for path in places if path.is_file()), None)


class _AnnotatedImages(ImageFiles):
    """Images side by side, or in the folder images, whose classes are in one of the two files."""

    def __init__(
        self,
        folder: Path,
        annotations: Path,
        *,
        image_size: ImageSize,
        classes: Sequence[str] | None,
    ) -> None:
        rows = list(_annotated(annotations))
        if not rows:
            raise ValueError(f"{annotations}: no image is listed")
        known = sorted_names(row[2] for row in rows) if classes is None else list(classes)
        number = {name: c for c, name in enumerate(known)}
        for where, _, name in rows:
            if name not in number:
                raise ValueError(f"{where}: unknown class {nearest([name], known)}")
        first = rows[0]
        named = NamedFiles(folder, first[1], first[0])
        super().__init__(
            [named.file(file, where) for where, file, _ in rows],
            [number[name] for _, _, name in rows],
            image_size=image_size,
            classes=known,
            name=str(folder),
        )


def _annotated(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where a row stands, its file, its class."""
    if path.suffix == ".csv":
        table = read_table(path)
        rows = zip(table.column("ImageId"), table.column("PredictionString"), strict=True)
        for row, (file, boxes) in enumerate(rows):
            yield table.where(row), file, boxes.partition(" ")[0]
        return
    for number, line in enumerate(read_text(path).splitlines(), 1):
        file, _, rest = line.partition("\t")
        where, name = f"{path}, line {number}", rest.partition("\t")[0].strip()
        if not name:
            raise ValueError(f"{where}: expected a file and its class, with a tab between")
        yield where, file, name


def _tell_splits(root: Path, folders: Mapping[str, Path]) -> None:
    others = sorted(set(folders_in(root)) - {folder.name for folder in folders.values()})
    renamed = [f"{f.name!r} as {split}" for split, f in folders.items() if f.name != split]
    told = [f"read are {', '.join(renamed)}"] if renamed else []
    told += [f"left out are the folders {listed(others)}"] if others else []
    if told:
        _tell(root, "; ".join(told))


def _tell(folder: Path, what: str) -> None:
    warnings.warn(f"{folder}: {what}", stacklevel=4)
