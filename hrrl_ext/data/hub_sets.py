"""Data sets of Hugging Face's on disk: Arrow, as `datasets` saves it, or Parquet, as their hub has it.

Needs `datasets`, the extra of that name. Nothing is ever downloaded.
"""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._reading import reading
from ..spec import TEXT, listed, not_known, read_settings, split_spec
from .columns import Columns, sorted_names
from .files import files_below
from .folders import DecodedImages
from .lists import USUAL_IMAGES, USUAL_LABELS
from .paths import InsideFolder
from .resize import ImageSize
from .splits import chosen_split, split_of, split_within
from .tables import cell_text, usual_columns

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "hf:"
LAYOUT = (
    '"hf:FOLDER", or with names "hf:FOLDER:image=COLUMN,label=COLUMN,split=NAME": a folder that '
    "save_to_disk of Hugging Face's datasets has written, or one of Parquet files as their hub has them"
)
_SAVED = ("dataset_dict.json", "state.json")  # of several splits; of one set
_OF_HUB = re.compile(r"(.+)-\d+-of-\d+")  # train-00000-of-00002
_SCALARS = ("string", "large_string", "bool", "int", "uint", "float")  # beginnings of types


class HuggingFaceImages(DecodedImages):
    """Rows of a `datasets.Dataset`, whose images are bytes, or else files below ``root``.

    image: the column of images. columns: what else is known of each row. The rest as of `DecodedImages`;
    :func:`open_hugging_face` finds all of it out.
    """

    def __init__(
        self,
        dataset: Any,
        target: Sequence[int],
        *,
        image: str,
        columns: Columns,
        root: str | os.PathLike[str],
        **settings: Any,
    ) -> None:
        self._pictures = dataset.select_columns([image])
        self._image, self._inside = image, InsideFolder(root)
        super().__init__(np.arange(len(target)), target, **settings)
        self.columns = columns

    def _open(self, source: int) -> Image.Image:
        picture = self._pictures[int(source)][self._image]
        content, path = picture, None
        if isinstance(picture, Mapping):
            content, path = picture.get("bytes"), picture.get("path")
        if content is not None:
            return self._read(io.BytesIO(content))
        if path is None:
            raise ValueError("there is no image in it")
        if os.path.isabs(path):  # as datasets writes them where it does not keep the bytes
            path = os.path.relpath(path, self._inside.folder)
        return self._read(self._inside.file(path, "path"))

    def told(self, source: int) -> str:
        return f"row {source}"


def open_hugging_face(
    source: str, split: str, image_size: ImageSize, root: str | os.PathLike[str] | None = None
) -> HuggingFaceImages:
    """ "hf:FOLDER" with its settings; rows stay on disk, mapped into memory.

    image: the column of images; by default the only one, or the one with a usual name. label: that of
    classes, by default one of a usual name (label, class, y, target, class_name), or the only ClassLabel.
    split: a split by its own name, in place of the one that is asked for. Names of a ClassLabel are the
    classes; otherwise the values of all splits, in sorted order. Every other column of text or
    numbers may be a concept.

    Of Parquet files datasets makes Arrow in its own cache, once: these take as much again on disk. Images
    that are files must lie below ``root``, by default the folder. Raises ImportError without datasets,
    FileNotFoundError for what is not on disk, or ValueError.
    """
    name, text = split_spec(source.removeprefix(PREFIX), suffixes=("",))
    settings = read_settings(
        f"images {source!r}", text, dict.fromkeys(("image", "label", "split"), TEXT), form=LAYOUT
    )
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"images: {PREFIX}{name} is no folder here, and nothing is downloaded. Where there is a "
            f"network, datasets.load_dataset({name!r}).save_to_disk(FOLDER) writes one; expected {LAYOUT}"
        )
    library = _library()
    with reading(f"{folder}: not a readable data set", f"expected {LAYOUT}"):
        sets = _saved(folder, library) or _parquet(folder, library)
    dataset = sets[_chosen(list(sets), split, settings.get("split"), folder)]
    features = dataset.features
    image = _image_column(features, settings.get("image"), library, folder)
    label = _label_column(features, settings.get("label"), library, folder)
    with reading(f"{folder}: not readable", "write the data set again"):
        if isinstance(features[image], library.Image):
            dataset = dataset.cast_column(image, library.Image(decode=False))
        columns = {
            column: _texts(dataset, column)
            for column, feature in features.items()
            if column != image and _is_scalar(feature, library)
        }
        everywhere = [_texts(s, label) for s in sets.values() if label in s.features]
    target, classes = _ids(
        columns[label], features[label], everywhere, f"{folder}, column {label!r}"
    )
    return HuggingFaceImages(
        dataset,
        target,
        image=image,
        columns=columns,
        root=folder if root is None else root,
        image_size=image_size,
        classes=classes,
        name=f"{PREFIX}{folder}",
    )


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f'"{PREFIX}FOLDER" needs datasets of Hugging Face\'s ({error}): '
            'pip install "hrrl_ext[datasets]"'
        ) from error


# --- splits


def _saved(folder: Path, library: Any) -> dict[str, Any]:
    """name → its set; "" of one without splits; none where save_to_disk has not written the folder."""
    if not any((folder / name).is_file() for name in _SAVED):
        return {}
    found = library.load_from_disk(os.fspath(folder), keep_in_memory=False)
    sets = dict(found) if isinstance(found, Mapping) else {"": found}
    return {name: dataset.with_format(None) for name, dataset in sets.items()}


def _parquet(folder: Path, library: Any) -> dict[str, Any]:
    files = parquet_files(folder)
    return {
        name: library.Dataset.from_parquet(of_set, keep_in_memory=False)
        for name, of_set in files.items()
    }


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """Files of each split: train-00000-of-00002.parquet, train.parquet, or train/0000.parquet."""
    found: dict[str, list[str]] = {}
    places: dict[str, None] = {}
    for file in files_below(folder):
        path = Path(file)
        if path.suffix.lower() != ".parquet":
            continue
        of_hub = _OF_HUB.fullmatch(path.stem)
        name = (
            of_hub[1] if of_hub else path.stem if split_of(path.stem) else split_within(path.stem)
        )
        place = path.parent.relative_to(folder)
        if name is None and split_of(place.name):
            name, place = place.name, place.parent
        found.setdefault(name or "", []).append(file)
        places[str(place)] = None
    if not found:
        raise FileNotFoundError(f"neither {' nor '.join(_SAVED)} nor a .parquet file is in it")
    if len(places) > 1:
        raise ValueError(
            f"several sets of Parquet files are in it, {listed(list(places))}: give one"
        )
    return found


def _chosen(names: list[str], split: str, given: str | None, folder: Path) -> str:
    """Which of the sets is meant."""
    if given is not None:
        if given not in names:
            raise ValueError(f"{folder}: split {not_known(given, names)}")
        return given
    if len(names) == 1 and not split_of(names[0]):
        return names[0]  # one set, whatever is asked for
    by_split: dict[str, str] = {}
    for name in names:
        kind = split_of(name) or name
        if kind in by_split:
            raise ValueError(
                f"{folder}: {by_split[kind]!r} and {name!r} are both the split {kind}; say which, "
                "split=NAME"
            )
        by_split[kind] = name
    return by_split[chosen_split(split, list(by_split), f"{folder}: no image")]


# --- columns


def _image_column(
    features: Mapping[str, Any], given: str | None, library: Any, folder: Path
) -> str:
    if given is not None:
        if given not in features:
            raise ValueError(f"{folder}: image column {not_known(given, features)}")
        return given
    found = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    found = found or [name for name, feature in features.items() if _is_bytes(feature)]
    usual = found if len(found) == 1 else usual_columns(found, USUAL_IMAGES)
    if len(usual) != 1:
        got = f"{listed(found)} may all be it" if found else "none has images"
        raise ValueError(
            f"{folder}: image column: {got}, of {listed(list(features))}; expected {LAYOUT}"
        )
    return usual[0]


def _label_column(
    features: Mapping[str, Any], given: str | None, library: Any, folder: Path
) -> str:
    scalars = [name for name, feature in features.items() if _is_scalar(feature, library)]
    if given is not None:
        if given not in scalars:
            raise ValueError(f"{folder}: label column {not_known(given, scalars)}")
        return given
    named = [name for name in scalars if isinstance(features[name], library.ClassLabel)]
    usual = usual_columns(scalars, USUAL_LABELS)
    for found in (usual, named):
        if len(found) == 1:
            return found[0]
    got = f"{listed(usual or named)} may all be it" if usual or named else "none has a usual name"
    raise ValueError(
        f"{folder}: label column: {got}; give label=COLUMN, of {listed(scalars)}; expected {LAYOUT}"
    )


def _is_bytes(feature: Any) -> bool:
    """Whether a column without the type of images may hold them: bytes, or what Image is made of."""
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return str(getattr(feature, "dtype", "")) in ("binary", "large_binary")


def _is_scalar(feature: Any, library: Any) -> bool:
    if isinstance(feature, library.ClassLabel):
        return True
    return isinstance(feature, library.Value) and feature.dtype.startswith(_SCALARS)


def _texts(dataset: Any, column: str) -> np.ndarray:
    """[N] what stands in a column, as in a table; of a ClassLabel the names, and -1 is none."""
    values = dataset.select_columns([column])[:][column]
    names = getattr(dataset.features[column], "names", None)
    if names is not None:
        values = [names[c] if c is not None and c >= 0 else "" for c in values]
    return np.array([cell_text(value) for value in values], dtype=object)


def _ids(
    labels: np.ndarray, feature: Any, everywhere: Sequence[np.ndarray], where: str
) -> tuple[list[int], list[str]]:
    """Class ids, and the names of the classes."""
    if (empty := np.flatnonzero(labels == "")).size:
        raise ValueError(
            f"{where}: row {empty[0]} has no label, and {len(empty)} rows have none; give another split, "
            "or select the rows that have one"
        )
    names = getattr(feature, "names", None)
    classes = names or sorted_names(text for texts in everywhere for text in texts if text)
    number = {name: c for c, name in enumerate(classes)}
    return [number[label] for label in labels], list(classes)
