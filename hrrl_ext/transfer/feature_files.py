"""Features on disk: tensors `features` and `labels` in one .safetensors or .npz file.

With them the names of the classes that labels are numbers of, where they are known: as metadata of a
.safetensors, as the array `class_names` of an .npz.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .._reading import reading
from .._regular import regular
from .._shapes import many, maybe, record, text
from ..data.ids import checked_ids
from ..storage import replacing, require_shape, written_whole

_SUFFIXES = (".safetensors", ".npz")
_INTEGERS = {torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32}


class Features(NamedTuple):
    """features [N, D] float32 and labels [N] int64, both on the CPU, row i of one example."""

    features: Tensor
    labels: Tensor


def save_features(
    path: str | os.PathLike[str], features: Features, *, classes: Sequence[str] | None = None
) -> None:
    """Write one file with the arrays `features` and `labels`; folders are created.

    classes: their names, which labels are the numbers of, for `load_classes`.

    Its suffix says which kind: .safetensors or .npz. The file appears whole or not at all: it is
    written beside its place, then renamed.
    """
    check_suffix(path)
    _check_features(features, "save_features")
    write_batches(path, [features], classes)


def load_features(path: str | os.PathLike[str]) -> Features:
    """What `save_features` or `stream_features` wrote, on the CPU, bit for bit.

    Of a file that others wrote, features in another precision become float32, and labels of other
    integers int64; what it holds besides is not read. Raises FileNotFoundError if there is no such file,
    ValueError if it holds anything else.
    """
    path = Path(path)
    if not regular(path).is_file():
        raise FileNotFoundError(f"load_features: no file {path}; save_features writes one")
    names, tensors = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    if missing := {"features", "labels"} - tensors.keys():
        raise ValueError(
            f"load_features: {path} lacks {sorted(missing)}, it holds {sorted(names)}; "
            "expected features [N, D] and labels [N]"
        )
    loaded = _as_saved(tensors["features"], tensors["labels"])
    where = f"load_features: {path}"
    _check_features(loaded, where)
    if (classes := load_classes(path)) is not None:
        checked_ids(loaded.labels, f"{where}: labels, numbers of class_names,", bound=len(classes))
    return loaded


def load_classes(path: str | os.PathLike[str]) -> list[str] | None:
    """The names of the classes of a file that `load_features` reads; None where they are not in it."""
    path = regular(path)
    if path.suffix == ".npz":
        with (
            reading(f"load_classes: {path} is not an .npz of numbers"),
            np.load(path, allow_pickle=False) as arrays,
        ):
            names: Any = arrays["class_names"].tolist() if "class_names" in arrays else None
    else:
        with (
            reading(f"load_classes: {path} is not a safetensors file"),
            safe_open(path, "pt") as file,
        ):
            written = (file.metadata() or {}).get("class_names")
        names = None if written is None else _parsed(written)
    require_shape({"class_names": names}, record(class_names=maybe(many(text))), path)
    return names


def _parsed(written: str) -> Any:
    """What it says; as it stands where it is no JSON, and then it is no list of names."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written


def check_suffix(path: str | os.PathLike[str]) -> None:
    if Path(path).suffix not in _SUFFIXES:
        raise ValueError(
            f"features are saved as {' or '.join(_SUFFIXES)}, by the suffix of the file, "
            f"got {os.fspath(path)}"
        )


def write_batches(
    path: str | os.PathLike[str],
    batches: Iterable[Features],
    classes: Sequence[str] | None = None,
) -> tuple[int, int]:
    """One file of the rows of all batches; returns (N, D). At any time one batch is in memory.

    The rows go to a nameless file first, since N stands at the head of both formats.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [np.zeros(0, np.int64)]  # 8 bytes per example do stay
    columns = 0
    with written_whole(path), tempfile.TemporaryFile(dir=path.parent) as rows:
        for batch in batches:
            columns = batch.features.shape[1]
            rows.write(batch.features.contiguous().numpy().data)
            labels.append(batch.labels.numpy())
        label = np.concatenate(labels)
        rows.seek(0)
        with replacing(path) as partial:
            if path.suffix == ".npz":
                _write_npz(partial, rows, label, columns, classes)
            else:
                _write_safetensors(partial, rows, label, columns, classes)
    return len(label), columns


def _write_safetensors(
    path: Path,
    rows: IO[bytes],
    label: np.ndarray,
    columns: int,
    classes: Sequence[str] | None,
) -> None:
    """The format's layout: 8 bytes of length, a header in JSON, the arrays one after the other.

    Written here because the package takes whole tensors, and makes files that their owner alone can
    read whatever the umask. Labels come first: what is mapped to memory must be aligned.
    """
    n, middle = len(label), label.nbytes
    end = middle + 4 * n * columns
    header: dict[str, Any] = {
        "labels": {"dtype": "I64", "shape": [n], "data_offsets": [0, middle]},
        "features": {"dtype": "F32", "shape": [n, columns], "data_offsets": [middle, end]},
    }
    if classes is not None:
        header["__metadata__"] = {"class_names": json.dumps(list(classes))}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.write(label.data)
        shutil.copyfileobj(rows, f)


def _write_npz(
    path: Path,
    rows: IO[bytes],
    label: np.ndarray,
    columns: int,
    classes: Sequence[str] | None,
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("labels.npy", "w") as f:
            np.lib.format.write_array(f, label)
        if classes is not None:
            with archive.open("class_names.npy", "w") as f:
                np.lib.format.write_array(f, np.array(classes, dtype=np.str_))
        with archive.open("features.npy", "w", force_zip64=True) as f:
            shape = (len(label), columns)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(f, header)
            shutil.copyfileobj(rows, f)


def _read_safetensors(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    with reading(f"load_features: {path} is not a safetensors file"):
        tensors = load_file(path)
    return list(tensors), tensors


def _read_npz(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """What it holds, and of that the numbers: others may keep anything beside them."""
    with (
        reading(f"load_features: {path} is not an .npz of numbers"),
        np.load(path, allow_pickle=False) as arrays,
    ):
        names = arrays.files
        own = [name for name in names if name in Features._fields]
        return names, {name: torch.from_numpy(arrays[name]) for name in own}


def _as_saved(features: Tensor, labels: Tensor) -> Features:
    """In the types that `save_features` writes, where these hold the same numbers, up to rounding."""
    if features.is_floating_point():
        features = features.float()
    if labels.dtype in _INTEGERS:
        labels = labels.long()
    return Features(features, labels)


def _check_features(features: Features, where: str) -> None:
    x, labels = features
    if x.ndim != 2 or x.dtype != torch.float32:
        raise ValueError(f"{where}: features must be [N, D] float32, got {list(x.shape)} {x.dtype}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{where}: labels must be [{len(x)}] int64, one per row of features, "
            f"got {list(labels.shape)} {labels.dtype}"
        )
