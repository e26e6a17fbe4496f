"""What a trainer opens before any work: the folder of its run, a network, weights to begin with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._modes import in_mode
from ..data import ImageSet
from ..data.classes import require_same_classes
from ..data.image_sets import as_float
from ..layers import logits_of
from ..models import build_model
from ..pretrained import classes_of, load_weights
from .run_folder import RunFolder
from .scalars import require_tensorboard


def open_run(
    out: str | os.PathLike[str] | None, resume: bool, tensorboard: bool
) -> RunFolder | None:
    """The folder of a run that begins, or is continued; None saves nothing."""
    if out is None:
        if resume:
            raise ValueError("resume=True needs out, the folder of the run to continue")
        if tensorboard:
            raise ValueError("tensorboard=True needs out, the folder that it writes to")
        return None
    if tensorboard:
        require_tensorboard()
    run = RunFolder(out)
    if not resume:
        run.require_free()  # before any work; and again, where the loop takes it
    return run


def build_network(model: str | nn.Module, images: ImageSet, width: int, seed: int) -> nn.Module:
    """For the classes and the size of these images; by ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(
            model, num_classes=images.num_classes, image_size=images.image_shape[-1], width=width
        )


def begin_from(
    init: str | os.PathLike[str], model: nn.Module, images: ImageSet, *, resume: bool
) -> None:
    """Fills the model with weights, and says what of them it could not take."""
    if resume:
        raise ValueError("init begins a new run and resume continues one; give one of the two")
    classes = classes_of(init)
    if classes is not None and len(classes) == images.num_classes:  # else the last layer stays out
        require_same_classes(classes, images.classes, of=f"init {os.fspath(init)}")
    if not (report := load_weights(model, init)).complete:
        warnings.warn(f"init {os.fspath(init)}: {report}", stacklevel=3)


def described(model_name: str | None, images: ImageSet, width: int) -> dict[str, Any]:
    """What is needed to open the network of a run again, and what it was trained on."""
    return {
        "model": model_name,
        "image_size": images.image_shape[-1],
        "width": width,
        "data": images.name,
        "examples": len(images),
        "classes": list(images.classes),
    }


def check_model(model: nn.Module, images: ImageSet) -> None:
    """A forward pass as in training, and one as in evaluation, so that a misfit shows before any work."""
    for mode in ("train", "eval"):
        with trial(model, images, mode) as x, torch.no_grad():
            output = model(x)
        logits = logits_of(output)
        if logits.shape != (len(x), images.num_classes):
            raise ValueError(
                f"model must give logits [B, {images.num_classes}], one per class of the data, "
                f"got {list(logits.shape)} for {len(x)} images in {mode} mode"
            )


@contextmanager
def trial(model: nn.Module, images: ImageSet, mode: Literal["train", "eval"]) -> Iterator[Tensor]:
    """Two images [2, 3, H, W] of the data, for a pass in that mode that leaves no trace in ``model``.

    Neither running statistics nor the random state are others afterwards. ValueError with the model's
    own words where the pass fails.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = as_float(images[0][0].to(device)).repeat(2, 1, 1, 1)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), in_mode(model, mode):
            yield x
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} fails on images {list(x.shape[1:])} in {mode} mode: {error}; give "
            "a model for images of this size, or the size it is for by image_size"
        ) from error
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
