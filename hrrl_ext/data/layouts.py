"""Folders as data sets come in them: split folders of classes, or one folder of classes."""

from __future__ import annotations

from pathlib import Path

from ..spec import listed
from .folders import FolderImages, class_folders


def open_folder(root: Path, split: str, image_size: int) -> FolderImages:
    """root/{train,val,test}/class/image where such split folders exist, else root/class/image.

    Class ids come from the training folder, so that they agree where a class is absent from the
    other split.
    """
    # A class may be called "train": a split folder is one that holds folders itself.
    folders = [root / split for split in ("train", "val", "test")]
    splits = [folder.name for folder in folders if folder.is_dir() and class_folders(folder)]
    if not splits:
        return FolderImages(root, image_size=image_size)
    wanted = ("test", "val") if split == "test" else (split,)
    found = next((s for s in wanted if s in splits), None)
    if found is None:
        raise FileNotFoundError(f"{root}: no folder for split {split!r}, only {listed(splits)}")
    classes = class_folders(root / "train") if "train" in splits else None
    return FolderImages(root / found, image_size=image_size, classes=classes)
