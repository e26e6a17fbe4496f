"""Embeddings of images and captions in a file, whatever model they are of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import load_file

from .._reading import reading
from .._regular import regular

NAMES = (("image", "caption"), ("image_embeds", "text_embeds"), ("image_features", "text_features"))
"""What the two arrays are called: here, by Hugging Face's CLIP, by OpenAI's and open_clip's."""

_IDS = ("image_group", "caption_group", "concepts")


class Embeddings(NamedTuple):
    """Arguments of `evaluate`, in its order."""

    image: Any
    caption: Any
    image_group: Any = None
    caption_group: Any = None
    concepts: Any = None


def load_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Those of an .npz or .safetensors file: image [N, D] and caption [M, D], under one of `NAMES`.

    With them image_group [N], caption_group [M] and concepts [N], where the file has them. Nothing
    pickled is read. FileNotFoundError; ValueError for a file that holds anything else.
    """
    path = Path(path)
    wanted = " or ".join(f"{i} and {c}" for i, c in NAMES)
    if not regular(path).is_file():
        raise FileNotFoundError(
            f"load_embeddings: no file {path}; an .npz or .safetensors is needed"
        )
    arrays: dict[str, Any]
    with reading(f"load_embeddings: {path}"):
        if path.suffix == ".safetensors":
            arrays = dict(load_file(path))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        else:
            raise ValueError("its suffix must be .npz or .safetensors")
    for image, caption in NAMES:
        if image in arrays and caption in arrays:
            ids = {name: arrays[name] for name in _IDS if name in arrays}
            return Embeddings(arrays[image], arrays[caption], **ids)
    raise ValueError(f"load_embeddings: {path} must hold {wanted}; it holds {sorted(arrays)}")
