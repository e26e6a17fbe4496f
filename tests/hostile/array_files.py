"""Arrays in files: sets of images, features, embeddings, examples of a linear problem, features with captions."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from damage import BYTES, TEXT, Files
from safetensors.numpy import save_file
from trial import Attempt, Family

from hrrl_ext import load_images
from hrrl_ext.cli.examples import read_examples
from hrrl_ext.data import ArrayImages
from hrrl_ext.retrieval import Gallery, load_embeddings, load_pairs
from hrrl_ext.transfer import Features, load_features, save_features
from hrrl_ext.transfer.feature_files import load_classes

_RANDOM = np.random.default_rng(0)
_PIXELS = _RANDOM.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
_LABELS = np.array([0, 1, 2, 0, 1, 2])
_ROWS = _RANDOM.normal(size=(6, 5)).astype(np.float32)


# --- by another route


def npz(path: Path) -> dict[str, np.ndarray]:
    """By zipfile, which checks every member, and the header of each."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("damaged")
        for name in archive.namelist():
            stream = io.BytesIO(archive.read(name))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            shape, fortran, dtype = (
                read if version == (1, 0) else np.lib.format.read_array_header_2_0
            )(stream)
            if dtype.hasobject:
                raise ValueError("pickled")
            values = np.frombuffer(stream.read(), dtype)[: int(np.prod(shape))]
            found[name.removesuffix(".npy")] = values.reshape(shape, order="F" if fortran else "C")
    return found


_DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "F16": np.float16}


def safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata, by the layout of the format alone."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header.pop("__metadata__", {})
    body = content[8 + size :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], _DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }, about


# --- sets of images


def _image_set(path: Path) -> Any:
    images = load_images(path)
    assert isinstance(images, ArrayImages)
    return images.images, images.target, images.classes


def _numbered() -> Any:
    """Where the names of the classes are lost, which a warning says."""
    return _plain({"image": _PIXELS, "label": _LABELS})


def archive(folder: Path) -> Callable[[Random], Attempt]:
    """Stored and deflated: both have a checksum of every array."""
    files = []
    for save, name in ((np.savez, "stored"), (np.savez_compressed, "deflated")):
        path = folder / f"{name}.npz"
        save(path, image=_PIXELS, label=_LABELS, class_names=np.array(["a", "b", "c"]))
        files.append(
            Files(
                {path: BYTES},
                partial(_image_set, path),
                told=_numbered,
            )
        )
    return lambda chance: chance.choice(files)(chance)


_KINDS: tuple[Any, ...] = (
    np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32,
    np.float64, ">f4", ">i8", np.bool_, np.complex64, "S3", "U3", "datetime64[s]", [("a", "i4")],
)  # fmt: skip
_SHAPES = (
    (6,),
    (6, 1),
    (6, 3),
    (),
    (0,),
    (6, 4, 4),
    (6, 4, 4, 3),
    (6, 3, 4, 4),
    (5,),
    (6, 0),
    (6, 0, 4),
    (2, 3),
)
_NUMBERS = (
    0, 1, 2, -1, 3, 127, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64 - 1, 0.5, 1e18, float("nan"),
    float("inf"), 1j,
)  # fmt: skip


def _wild(chance: Random) -> np.ndarray:
    """Of any kind and shape; of few different values, which labels may have."""
    kind, shape = np.dtype(chance.choice(_KINDS)), chance.choice(_SHAPES)
    values = np.zeros(shape, kind)
    for place in range(values.size):
        try:
            values.flat[place] = chance.choice(_NUMBERS if chance.random() < 0.2 else (0, 1, 2))
        except (TypeError, ValueError, OverflowError):
            continue
    return values


def _plain(arrays: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """A set as docs/data.md has it, read by hand; an error for any other."""
    image, label = arrays["image"], arrays["label"]
    if label.dtype.kind not in "biu":
        one_hot = label.ndim == 2 and label.dtype.kind == "f"
        if not one_hot or label.shape[1] < 2:
            raise TypeError("labels")
    if label.ndim == 2 and label.shape[1] > 1:
        if not (np.isin(label, (0, 1)).all() and (label.sum(1) == 1).all()):
            raise ValueError("one-hot")
        count, label = label.shape[1], label.argmax(1)
    else:
        label, count = label.reshape(len(image)), 0
    ids = [int(value) for value in label]
    if min(ids, default=0) < 0 or max(ids, default=0) > 2**20 or len(ids) != len(image):
        raise ValueError("labels")
    if image.ndim == 3:
        image = np.repeat(image[:, None], 3, 1)
    elif image.shape[1] != 3:
        image = image.transpose(0, 3, 1, 2)
    if image.dtype != np.uint8:
        if image.dtype.kind != "f" or not ((image >= 0) & (image <= 1)).all():
            raise ValueError("images")
        image = image.astype(np.float32)
    count = max(count, max(ids, default=-1) + 1)
    pixels = torch.from_numpy(np.array(image))
    names = [str(c) for c in range(count)]
    return pixels, torch.tensor(ids, dtype=torch.int64), names


def wild_archive(folder: Path) -> Callable[[Random], Attempt]:
    """Whole files, in which images or labels are of any dtype, shape and value."""
    path = folder / "wild.npz"

    def attempt(chance: Random) -> Attempt:
        arrays: dict[str, Any] = {"image": _PIXELS, "label": _LABELS}
        changed = chance.choice(("image", "label", "label"))
        arrays[changed] = _wild(chance)
        if chance.random() < 0.1:
            arrays[changed] = arrays[changed].astype(object)  # which is pickled
        np.savez(path, **arrays)
        value = arrays[changed]
        return Attempt(
            lambda: _image_set(path),
            [lambda: _plain(npz(path))],
            [path.name, path.stem],
            what=f"{changed} {value.dtype} {value.shape} {value.tolist()!r:.200}",
        )

    return attempt


# --- features


def _features(path: Path) -> Any:
    return [list(load_features(path)), load_classes(path)]


def features(folder: Path) -> Callable[[Random], Attempt]:
    kept = Features(torch.from_numpy(_ROWS), torch.from_numpy(_LABELS))
    files = []
    for suffix in (".safetensors", ".npz"):
        path = folder / f"features{suffix}"
        save_features(path, kept, classes=["a", "b", "c"])

        def said(path: Path = path) -> Any:
            if path.suffix == ".npz":
                raise ValueError("a checksum has every array")
            arrays, about = safetensors(path)
            tensors = [torch.from_numpy(arrays[name].copy()) for name in Features._fields]
            return [tensors, json.loads(about["class_names"])]

        files.append(
            Files(
                {path: BYTES},
                partial(_features, path),
                said=said,
            )
        )
    return lambda chance: chance.choice(files)(chance)


# --- embeddings


def embeddings(folder: Path) -> Callable[[Random], Attempt]:
    """Of others, of both formats, and a gallery."""
    arrays = {"image": _ROWS, "caption": _ROWS[::-1].copy(), "image_group": _LABELS}
    np.savez(folder / "embeddings.npz", **arrays)
    save_file(arrays, folder / "embeddings.safetensors")
    Gallery(
        torch.from_numpy(_ROWS),
        torch.from_numpy(_ROWS),
        "cosine",
        names=list("abcdef"),
        captions=list("ghijkl"),
    ).save(folder / "gallery.npz")

    def others(path: Path) -> Any:
        found = load_embeddings(path)
        return [np.asarray(found.image), np.asarray(found.caption), np.asarray(found.image_group)]

    def gallery() -> Any:
        found = Gallery.load(folder / "gallery.npz")
        return [found.image, found.caption, list(found.names), list(found.captions)]

    def said() -> Any:
        found, _ = safetensors(folder / "embeddings.safetensors")
        return [found[name] for name in arrays]

    npz_file, tensors = folder / "embeddings.npz", folder / "embeddings.safetensors"
    files = [
        Files({npz_file: BYTES}, lambda: others(npz_file)),
        Files({tensors: BYTES}, lambda: others(tensors), said=said),
        Files({folder / "gallery.npz": BYTES}, gallery),
    ]
    return lambda chance: chance.choice(files)(chance)


# --- examples of a linear problem


def linear_examples(folder: Path) -> Callable[[Random], Attempt]:
    np.savez(folder / "examples.npz", X=_ROWS, y=_LABELS)
    rows = [[f"{x:.3f}" for x in row] + ["abc"[y]] for row, y in zip(_ROWS, _LABELS, strict=True)]
    table = [["one", "two", "three", "four", "five", "class"], *rows]
    (folder / "examples.csv").write_text("".join(",".join(row) + "\n" for row in table))

    def read(path: Path) -> Any:
        found = read_examples(path)
        return [found.X, [str(label) for label in found.y]]

    def said() -> Any:
        """Rows of one length, numbers and then a label."""
        text = (folder / "examples.csv").read_bytes().decode("utf-8-sig")
        lines = [line.split(text_delimiter(text)) for line in text.splitlines() if line]
        cells = [[unquoted(value) for value in line] for line in lines]
        if not is_number(cells[0][0]):
            del cells[0]
        if len({len(row) for row in cells}) != 1:
            raise ValueError("ragged")
        return [np.array([[float(x) for x in row[:-1]] for row in cells]), [r[-1] for r in cells]]

    def numbered() -> Any:
        """The first column has no name, and is the number of the row."""
        X, labels = said()
        return [X[:, 1:], labels]

    arrays, text = folder / "examples.npz", folder / "examples.csv"
    files = [
        Files({arrays: BYTES}, lambda: read(arrays)),
        Files({text: TEXT}, lambda: read(text), said=said, told=numbered),
    ]
    return lambda chance: chance.choice(files)(chance)


def text_delimiter(text: str) -> str:
    first = text.splitlines()[0]
    return max(",;\t", key=first.count)


def unquoted(value: str) -> str:
    value = value.strip()
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1].replace('""', '"') if quoted else value


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- features with captions


def precomputed_captions(folder: Path) -> Callable[[Random], Attempt]:
    np.save(folder / "train_ims.npy", _ROWS)
    (folder / "train_caps.txt").write_text("".join(f"a caption of {at}\n" for at in range(12)))

    def read() -> Any:
        pairs = load_pairs(folder, split="train")
        return [pairs.images, list(pairs.captions), pairs.owner]

    def said() -> Any:
        content = (folder / "train_ims.npy").read_bytes()
        stream = io.BytesIO(content)
        np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or dtype.kind != "f":
            raise ValueError("no numbers")
        count = int(np.prod(shape))
        if any(side < 1 for side in shape):
            raise ValueError("no rows")
        rows = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
        rows = rows.reshape(shape, order="F" if fortran else "C")
        lines = (folder / "train_caps.txt").read_bytes().decode("utf-8-sig")
        texts = [
            line.strip() for line in lines.replace("\r\n", "\n").removesuffix("\n").split("\n")
        ]
        if not all(texts) or len(texts) % len(rows):
            raise ValueError("captions")
        owner = torch.arange(len(texts)) // (len(texts) // len(rows))
        return [torch.from_numpy(np.array(rows, np.float32)), texts, owner]

    damaged = {folder / "train_ims.npy": BYTES, folder / "train_caps.txt": TEXT}
    return Files(damaged, read, said=said)


FAMILIES: dict[str, Family] = {
    "archives of images": archive,
    "archives, wild arrays": wild_archive,
    "features": features,
    "embeddings": embeddings,
    "linear examples": linear_examples,
    "features with captions": precomputed_captions,
}
