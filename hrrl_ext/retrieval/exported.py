"""Both encoders in files that need none of this library: by torch.export, and as ONNX."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from .._modes import borrowed
from ..data.resize import sides
from ..storage import replacing
from .model import JointEmbedding

FORMATS = ("torch", "onnx")


class _Image(nn.Module):
    def __init__(self, model: JointEmbedding) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode_image(image)


class _Text(nn.Module):
    def __init__(self, model: JointEmbedding) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.model.encode_text(tokens, lengths)


def export(
    model: JointEmbedding,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] = FORMATS,
    images: Tensor | None = None,
) -> list[Path]:
    """Writes encode_image and encode_text to files of a folder, and returns those.

    image.pt2, text.pt2      for ``torch.export.load(...).module()``; float32, on the CPU
    image.onnx, text.onnx    for onnxruntime and others; to write them takes the extra ``onnx``
    tokenizer.json           the words, where the model has them

    image takes ``image`` [B, C, H, W] in [0, 1], or features [B, F]; text takes ``tokens`` [B, L] and
    ``lengths`` [B], int64. B and L are free, C, H and W those of the model. Both give ``encoded``
    [B, dim], with which what :meth:`JointEmbedding.encode_image` does to it is done.

    Args:
        formats: of "torch" and "onnx".
        images: two or more images, or features, of a model of whose images no size is known.
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats:
        raise ValueError(f"export: formats must be of {', '.join(FORMATS)}, got {list(formats)}")
    folder = Path(folder)
    if images is None:
        images = _example(model)
    if len(images) < 2:  # of one, B would be 1 for ever
        raise ValueError(f"export: images must be two or more, got {len(images)}")
    longest = getattr(model.text_encoder, "max_length", None)  # of an encoder with positions
    batch, length = Dim("batch", min=1), Dim("length", min=1, max=longest)
    towers: list[tuple[str, nn.Module, tuple[Tensor, ...], dict[str, Any]]] = [
        ("image", _Image(model), (images,), {"image": {0: batch}}),
        (
            "text",
            _Text(model),
            (torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2])),
            {"tokens": {0: batch, 1: length}, "lengths": {0: batch}},
        ),
    ]
    written = []
    with borrowed(model, "cpu"), _quiet():
        for name, tower, arguments, shapes in towers:
            tower.eval()
            for kind in formats:
                write = _write_torch if kind == "torch" else _write_onnx
                written.append(write(folder / name, tower, arguments, shapes))
    model.save_files(folder)
    return written


def _example(model: JointEmbedding) -> Tensor:
    if isinstance(model.image_encoder, nn.Identity):
        return torch.rand(2, model.project_image.in_features)
    size = model.built_as.get("image_size")
    if size is None:
        raise ValueError("export: the size of the model's images is not known; give images=")
    return torch.rand(2, model.built_as.get("channels", 3), *sides(size))


def _write_torch(
    path: Path, tower: nn.Module, arguments: tuple[Tensor, ...], shapes: dict[str, Any]
) -> Path:
    program = torch.export.export(tower, arguments, dynamic_shapes=shapes)
    path = path.with_suffix(".pt2")
    with replacing(path) as partial, partial.open("wb") as file:
        torch.export.save(program, file)
    return path


def _write_onnx(
    path: Path, tower: nn.Module, arguments: tuple[Tensor, ...], shapes: dict[str, Any]
) -> Path:
    try:
        import onnxscript  # noqa: F401  torch.onnx says no more than that it is missing
    except ImportError as error:
        raise ImportError(
            'export: "onnx" needs onnxscript: pip install "hrrl_ext[onnx]", or give formats=["torch"]'
        ) from error
    program = torch.onnx.export(
        tower,
        arguments,
        dynamic_shapes=shapes,
        input_names=list(shapes),
        output_names=["encoded"],
        dynamo=True,
        verbose=False,
    )
    if program is None:  # what its type allows, and dynamo=True never gives
        raise RuntimeError("export: torch.onnx.export gave no program")
    path = path.with_suffix(".onnx")
    with replacing(path) as partial:
        program.save(partial)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on packages that are not needed, and on its own functions."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
