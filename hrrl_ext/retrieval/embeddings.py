"""Embeddings of images and captions in a file, whatever model they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from .._reading import reading
from .._regular import regular
from .._shapes import entries, having, many, maybe, record, text
from .ranks import check_similarity

NAMES = (("image", "caption"), ("image_embeds", "text_embeds"), ("image_features", "text_features"))
"""What the two arrays are called: here, by Hugging Face's CLIP, by OpenAI's and open_clip's."""

_IDS = ("image_group", "caption_group", "concepts")


_TOLD = ("similarity", "weights", "source", "names", "captions")
_ABOUT = record(
    having(weights=maybe(text), source=entries, names=many(text), captions=many(text)),
    similarity=text,
)


class Embeddings(NamedTuple):
    """Arguments of `evaluate`, in its order."""

    image: Any
    caption: Any
    image_group: Any = None
    caption_group: Any = None
    concepts: Any = None
    similarity: str | None = None
    """None where the file does not say"""


def load_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Those of an .npz or .safetensors file: image [N, D] and caption [M, D], under one of `NAMES`.

    With them image_group [N], caption_group [M] and concepts [N], where the file has them, and how they
    are compared, where `hrrl embed` wrote it. What else is in it is not read; nothing pickled is.
    FileNotFoundError; ValueError for a file that holds anything else.
    """
    path = Path(path)
    if not regular(path).is_file():
        raise FileNotFoundError(
            f"load_embeddings: no file {path}; an .npz or .safetensors is needed"
        )
    with reading(f"load_embeddings: {path}"), _opened(path) as (names, read):
        pair = next((pair for pair in NAMES if set(pair) <= set(names)), ())
        arrays = [read(name) for name in pair]
        ids = {name: read(name) for name in _IDS if name in names}
    if not pair:
        wanted = " or ".join(f"{i} and {c}" for i, c in NAMES)
        raise ValueError(f"load_embeddings: {path} must hold {wanted}; it holds {sorted(names)}")
    image, caption = arrays
    return Embeddings(image, caption, **ids, similarity=load_about(path).get("similarity"))


def load_about(path: Path) -> dict[str, Any]:
    """What `hrrl embed` wrote beside the arrays of an .npz; nothing of a file by others."""
    if path.suffix != ".npz":
        return {}
    with reading(f"load_embeddings: {path}"), _opened(path) as (names, read):
        if "about" not in names:
            return {}
        about = read("about").tobytes()
    try:
        told = json.loads(about)
        _ABOUT(told, "")
        check_similarity(told["similarity"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: about is not as hrrl embed writes it: {error}") from error
    return {name: told[name] for name in _TOLD if name in told}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Sequence[str], Callable[[str], Any]]]:
    """The names of what is in a file, and what reads one of them."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as tensors:
            yield tensors.keys(), tensors.get_tensor
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            yield stored.files, partial(_array, stored)
    else:
        raise ValueError("its suffix must be .npz or .safetensors")


def _array(stored: Mapping[str, Any], name: str) -> Any:
    with reading(name):
        return stored[name]
