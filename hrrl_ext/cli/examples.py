"""Examples X [n, d] with labels, of a file: a CSV table, features, or arrays of images."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._reading import reading
from .._regular import regular
from ..data.classes import numbers_among
from ..data.columns import sorted_names, value_of
from ..data.ids import class_ids
from ..spec import not_known

_PAIRS = (("features", "labels"), ("X", "y"), ("image", "label"), ("images", "labels"))
_DELIMITERS = ",;\t"


class Examples(NamedTuple):
    """X [n, d], finite; y [n]; what the file calls its classes, in its order, of which some may have no
    example; the names of the d features, where the file has any."""

    X: np.ndarray
    y: np.ndarray
    classes: np.ndarray
    names: list[str] | None = None


def read_examples(
    path: str | Path, target: str | None = None, without: Sequence[str] = ()
) -> Examples:
    """.csv: a row per example, labels in the column ``target`` or else the last one.

    Commas, semicolons or tabs part the columns. The first row names them; where it is an example itself,
    they are 0, 1, 2, ... Columns of ``without`` are no features, nor is a first one without a name.

    .npz and .safetensors: features and labels (as `hrrl extract` writes them), X and y, or image and
    label; whatever is beyond [n, d] is flattened, and whole bytes become x / 255. Where the file names
    the classes that its labels are numbers of, as class_names, y holds the names.
    """
    path = Path(path)
    if not regular(path).is_file():
        raise FileNotFoundError(
            f"no file {path}; a .csv, .npz or .safetensors of examples is needed"
        )
    if path.suffix.lower() == ".csv":
        return _of_table(path, target, without)
    if target is not None or without:
        raise ValueError(
            f"{path} has no columns with names, which target and without are of; leave them out"
        )
    if path.suffix == ".npz":
        way_out = "labels that are objects can be saved as y.astype(str)"
        with (
            reading(f"{path} is not an .npz of numbers and texts", way_out),
            np.load(path, allow_pickle=False) as stored,
        ):
            arrays = {name: stored[name] for name in stored.files}
    elif path.suffix == ".safetensors":
        from ..transfer import load_classes, load_features

        arrays = {name: v.numpy() for name, v in load_features(path)._asdict().items()}
        if (classes := load_classes(path)) is not None:
            arrays["class_names"] = np.array(classes, dtype=np.str_)
    else:
        raise ValueError(f"{path} must be a .csv, .npz or .safetensors, by its suffix")
    for rows, labels in _PAIRS:
        if rows in arrays and labels in arrays:
            named = arrays.get("class_names")
            return _of_arrays(path, rows, arrays[rows], labels, arrays[labels], named)
    wanted = ", ".join(f"{rows} and {labels}" for rows, labels in _PAIRS)
    raise ValueError(f"{path} must hold one of the pairs {wanted}; it holds {sorted(arrays)}")


def of_classes(
    examples: Examples, classes: Sequence[str] | None, *, every: bool = True
) -> Examples:
    """The examples of the classes that are named, or whose value is; of all where None are.

    every: whether each of them must have an example.
    """
    if classes is None:
        return examples
    met = examples.classes[np.isin(examples.classes, examples.y)]
    words = _words(met)
    chosen = set()
    for name in classes:
        value = value_of(name)
        own = {name} & set(words) or {
            w for w in words if value is not None and value_of(w) == value
        }
        if not own and every:
            raise ValueError(f"class {not_known(name, words)}")
        chosen |= own
    met = met[[word in chosen for word in words]]
    rows = np.isin(examples.y, met)
    return examples._replace(X=examples.X[rows], y=examples.y[rows], classes=met)


def labelled_as(known: Examples, of: str, examples: Examples, data: str) -> Examples:
    """``examples`` with the labels that their classes have in ``known``: by name, numbers by value.

    As `hrrl_ext.data.with_classes` has it; ValueError for a class that has no example in ``known``.
    of, data: the two files, in messages.
    """
    found = _words(examples.classes)
    labels, label_of_row = np.unique(examples.y, return_inverse=True)
    met = [found.index(word) for word in _words(labels)]
    numbers = numbers_among(_words(known.classes), found, met, of=of, data=data)
    meant = known.classes[met if numbers is None else [numbers[c] for c in met]]
    for c, there in zip(met, np.isin(meant, known.y), strict=True):
        if not there:
            raise ValueError(
                f"{data}: class {found[c]!r} has no example in {of}; leave it out by --classes"
            )
    return examples._replace(y=meant[label_of_row], classes=known.classes)


def _words(labels: np.ndarray) -> list[str]:
    return [str(label) for label in labels.tolist()]


# --- arrays


def _of_arrays(
    path: Path, rows: str, X: np.ndarray, labels: str, y: np.ndarray, named: np.ndarray | None
) -> Examples:
    if y.shape != X.shape[:1]:
        raise ValueError(
            f"{path}: {labels} must be [n], a label per row of {rows}, got {list(y.shape)} and "
            f"{list(X.shape)}"
        )
    if not len(X):
        raise ValueError(f"{path}: {rows} has no example; a row per example is needed")
    X = (X / 255 if X.dtype == np.uint8 else X).reshape(len(X), -1)
    if X.dtype.kind == "f" and not (finite := np.isfinite(X)).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"{path}: number {column} of example {row} of {rows} is {X[row, column]}; fill in what is "
            "missing, or leave the example out"
        )
    if named is None:
        return Examples(X, y, np.unique(y))
    classes = named.astype(np.str_).ravel()
    if len(np.unique(classes)) < len(classes):
        raise ValueError(
            f"{path}: two of class_names are equal; give every class a name of its own"
        )
    numbers, _ = class_ids(y, f"{path}: {labels}", num_classes=len(classes))
    return Examples(X, classes[numbers.numpy()], classes)


# --- tables


def _of_table(path: Path, target: str | None, without: Sequence[str]) -> Examples:
    rows = _rows(path)
    header = [name.strip() for name in rows[0]]
    numbered = [str(k) for k in range(len(header))]
    at = numbered.index(target) if target in numbered else -1
    if _is_example(header, at, rows[1:]):
        header = numbered
    else:
        del rows[0]
    target = header[-1] if target is None else target
    for name in (target, *without):
        if name not in header:
            raise ValueError(f"{path}: column {not_known(name, header)}")
        if header.count(name) > 1:
            raise ValueError(
                f"{path}: {header.count(name)} columns are called {name!r}; rename one"
            )
    at = header.index(target)
    left_out = {target, *without}
    if header[0] == "" != target:
        left_out.add("")
        warnings.warn(
            f"{path}: the first column has no name, and is left out as the number of the row",
            stacklevel=2,
        )
    columns = [k for k, name in enumerate(header) if name not in left_out]
    if not rows or not columns:
        raise ValueError(
            f"{path}: {len(rows)} examples of {len(columns)} features beside the label {target!r}; a "
            "row per example is needed, with columns parted by commas, semicolons or tabs"
        )
    X, labels = np.empty((len(rows), len(columns))), []
    for number, row in enumerate(rows):
        where = f"{path}: row {number + 1}"
        if len(row) != len(header):
            raise ValueError(f"{where} has {len(row)} columns, where the first has {len(header)}")
        if not (label := row[at].strip()):
            raise ValueError(f"{where} has no label in the column {target!r}; see --target")
        labels.append(label)
        X[number] = [_number(row[k], f"{where}, column {header[k]!r}") for k in columns]
    classes = np.array(sorted_names(set(labels)))
    return Examples(X, np.array(labels), classes, [header[k] for k in columns])


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            first = file.readline()
            file.seek(0)
            delimiter = max(
                _DELIMITERS, key=lambda d: len(next(csv.reader([first], delimiter=d), ()))
            )
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
        except csv.Error as error:
            raise ValueError(
                f"{path} is no table of commas, semicolons or tabs: {error}"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not text in UTF-8 ({error.reason}); save it as that"
            ) from error
    if not rows:
        raise ValueError(f"{path} is empty; a row per example is needed")
    return rows


def _is_example(first: list[str], at: int, others: list[list[str]]) -> bool:
    """Whether a first row is no header: numbers beside the label, and a label that others have too.

    Columns that are called 0, 1, 2, ... or 1, 2, 3, ..., the label's too, have a header.
    """
    numbers = sum(_value(cell) is not None for cell in first)
    counted = [[str(k + start) for k in range(len(first))] for start in (0, 1)]
    if numbers < len(first) - 1 or first in counted:
        return False
    return any(len(row) == len(first) and row[at].strip() == first[at] for row in others)


def _value(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _number(cell: str, where: str) -> float:
    value = _value(cell)
    if value is None or not math.isfinite(value):
        way = (
            "decimals are written with a point" if "," in cell else
            "fill in what is missing; a column that is no feature can be left out (--without), and "
            "labels need not be in the last one (--target)"
        )  # fmt: skip
        raise ValueError(f"{where}: {cell.strip()!r} is not a number; {way}")
    return value
