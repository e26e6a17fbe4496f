"""Examples X [n, d] with labels, of a file: a CSV table, features, or arrays of images."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..spec import not_known

_PAIRS = (("features", "labels"), ("X", "y"), ("image", "label"), ("images", "labels"))


def read_examples(path: str | Path, target: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """.csv: a header, a row per example, labels in the column ``target`` or else the last one.

    .npz and .safetensors: features and labels (as `hrrl extract` writes them), X and y, or image and
    label; whatever is beyond [n, d] is flattened, and whole bytes become x / 255.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; a .csv, .npz or .safetensors of examples is needed"
        )
    if path.suffix == ".csv":
        return _of_table(path, target)
    if target is not None:
        raise ValueError(f"target names a column of a .csv, and {path} is none; leave it out")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not an .npz of numbers and texts: {error}") from error
    elif path.suffix == ".safetensors":
        from ..transfer import load_features

        arrays = {name: v.numpy() for name, v in load_features(path)._asdict().items()}
    else:
        raise ValueError(f"{path} must be a .csv, .npz or .safetensors, by its suffix")
    for rows, labels in _PAIRS:
        if rows in arrays and labels in arrays:
            X = arrays[rows]
            X = X / 255 if X.dtype == np.uint8 else X
            return X.reshape(len(X), -1), arrays[labels]
    wanted = ", ".join(f"{rows} and {labels}" for rows, labels in _PAIRS)
    raise ValueError(f"{path} must hold one of the pairs {wanted}; it holds {sorted(arrays)}")


def of_classes(
    X: np.ndarray, y: np.ndarray, classes: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples of the classes that are named; of all where None are."""
    if classes is None:
        return X, y
    words = np.array([str(label) for label in y.tolist()])
    for name in classes:
        if name not in words:
            raise ValueError(f"class {not_known(name, sorted(set(words.tolist())))}")
    rows = np.isin(words, classes)
    return X[rows], y[rows]


def _of_table(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    target = header[-1] if target is None and header else target
    if target not in header:
        raise ValueError(f"{path}: column {not_known(target, header)}")
    at = header.index(target)
    X = np.empty((len(rows), len(header) - 1))
    labels = []
    for number, row in enumerate(rows):
        try:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} columns, where the header has {len(header)}")
            labels.append(row[at].strip())
            X[number] = [float(cell) for cell in row[:at] + row[at + 1 :]]
        except ValueError as error:
            raise ValueError(
                f"{path}: row {number + 1} is not numbers and a label in the column {target!r}: {error}"
            ) from None
    return X, np.array(labels)
