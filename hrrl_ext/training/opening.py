"""What a trainer opens before any work: the folder of its run, a network, weights to begin with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from .._arrays import labels_digest
from .._modes import in_mode
from .._pixels import PixelCheck, warn_unnormalised
from ..data import ImageSet
from ..data.classes import with_classes
from ..data.image_sets import as_float
from ..data.resize import size_of
from ..data.same import same_images
from ..data.unreadable import OnError, Reading
from ..layers import logits_of
from ..models import build_model, takes_channels
from ..pretrained import classes_of, load_weights
from ..processes import Processes
from .loggers import Loggers, check_loggers
from .run_folder import RunFolder


def open_run(
    out: str | os.PathLike[str] | None, resume: bool, loggers: Loggers, processes: Processes
) -> RunFolder | None:
    """The folder of a run that begins, or is continued, for these processes alone; None saves nothing."""
    check_loggers(loggers, out)
    if out is None:
        if resume:
            raise ValueError("resume=True needs out, the folder of the run to continue")
        return None
    run = RunFolder(out)
    run.take_for(processes)
    if not resume:
        run.require_free()  # before any work; and again, before the first step
    return run


def open_reading(
    on_error: OnError, resumed: RunFolder | None, num_workers: int, processes: Processes
) -> Reading:
    """What to do about images that cannot be read; a run that goes on does as it did."""
    before = None if resumed is None else resumed.left_out
    return Reading(on_error, before=before, num_workers=num_workers, processes=processes)


def build_network(model: str | nn.Module, images: ImageSet, width: int, seed: int) -> nn.Module:
    """For the classes and the size of these images; by ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(
            model,
            num_classes=images.num_classes,
            image_size=size_of(images.image_shape),
            width=width,
            channels=images.image_shape[0],
        )


def as_begun(
    images: ImageSet, run: RunFolder | None, init: str | os.PathLike[str] | None = None
) -> ImageSet:
    """``images``, whose classes are counted as in the run that goes on, or in what a new one begins with.

    Where these have another number of classes, the images as they are: then the run is refused, and of
    ``init`` the last layer stays out.
    """
    known, of = None, ""
    if init is not None:
        known, of = classes_of(init), f"init {os.fspath(init)}"
    elif run is not None and run.taken:
        known, of = run.config().get("classes"), str(run.path)
    if known is None or len(known) != images.num_classes:
        return images
    return with_classes(images, known, of=of)


def check_init(init: str | os.PathLike[str] | None, part: str | None, resume: bool) -> None:
    """What goes together of the weights that a run begins with, and which of a file's they are."""
    if init is not None and resume:
        raise ValueError("init begins a new run and resume continues one; give one of the two")
    if init is None and part is not None:
        raise ValueError(
            f"init_part={part!r} says which weights of init; give init, a file of several"
        )


def begin_from(
    init: str | os.PathLike[str] | None, part: str | None, model: nn.Module, *, resume: bool
) -> None:
    """Fills the model with weights, where there are any, and says what of them it could not take."""
    check_init(init, part, resume)
    if init is None:
        return
    fill(model, init, part)
    warn_unnormalised(model, f"init {os.fspath(init)}")


def fill(model: nn.Module, init: str | os.PathLike[str], part: str | None) -> None:
    """With weights; of the folder of a run those of its newest checkpoint, and of its networks the one
    that it is opened as."""
    run, weights = RunFolder(init), init
    if (newest := run.checkpoints[-1:]) and not (run.path / "model.safetensors").is_file():
        weights = newest[0]
        part = run.config().get("part") if part is None else part
    load_weights(model, weights, part=part).warn(f"init {os.fspath(init)}")


def place(model: nn.Module, device: torch.device, processes: Processes) -> None:
    """Moves the model to its device, and gives every process the weights and buffers of the first:
    before anything is made of them, such as copies, or features that stay."""
    model.to(device)
    processes.agree(t.detach() for t in (*model.parameters(), *model.buffers()))


def described(model_name: str | None, images: ImageSet, width: int) -> dict[str, Any]:
    """What is needed to open the network of a run again, and what it was trained on."""
    channels = images.image_shape[0]
    return {
        "model": model_name,
        "image_size": size_of(images.image_shape),
        **({} if channels == 3 else {"channels": channels}),
        "width": width,
        "data": images.name,
        "examples": len(images),
        "classes": list(images.classes),
    }


def as_measured(validation: ImageSet, images: ImageSet) -> ImageSet:
    """The validation set as a model of ``images`` takes it: its classes counted by name, in their size.

    ValueError for other classes or another number of channels. Warns where it is resized, and where it is
    the training set.
    """
    validation = with_classes(validation, images.classes, of="data", data="validation")
    (channels, *there), (known, *size) = validation.image_shape, images.image_shape
    if channels != known:
        raise ValueError(
            f"validation: {validation.name} has images of {channels} channels, and data of {known}; give "
            f"images of {known}"
        )
    if there != size:
        warnings.warn(
            f"validation: images of {there[0]} x {there[1]} pixels are resized to {size[0]} x {size[1]}, "
            "the size of data; image_size takes another for both",
            stacklevel=2,
        )
        validation = validation.resized((size[0], size[1]))
    if same_images(validation, images):
        warnings.warn(
            f"validation: {validation.name} is the same images as data, so accuracy is that of training; "
            "give others, or a source with splits of its own (train and val or test)",
            stacklevel=2,
        )
    return validation


class Named(Protocol):
    """Images, or pairs."""

    name: str

    def __len__(self) -> int: ...


def measured_on(validation: Named | None, *labels: Tensor | Sequence[str]) -> dict[str, Any]:
    """What accuracies of a run are of, for its description; ``labels`` are of the validation set."""
    if validation is None:
        return {"validation": None}
    return {
        "validation": validation.name,
        "validation_examples": len(validation),
        "validation_labels": labels_digest(*labels),
    }


@contextmanager
def told_channels(model: nn.Module, images: ImageSet) -> Iterator[None]:
    """Says of a pass that fails whether it is for the channels of the images."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        takes, channels = takes_channels(model), images.image_shape[0]
        if takes is None or takes == channels:
            raise
        grey = takes == 1 and channels == 3
        raise ValueError(
            f"data: the model takes images of {takes} channels, and {images.name} has {channels}: "
            f"{list(images.image_shape)}. Give "
            + (
                "grey images as arrays [N, 1, H, W], or a model that begins with taking x[:, :1]"
                if grey
                else f"images of {takes}, or a model for {channels}; one by name is built for the images"
            )
        ) from error


def check_model(model: nn.Module, images: ImageSet) -> None:
    """A forward pass as in training, and one as in evaluation, so that a misfit shows before any work."""
    PixelCheck(model, "data", trained=True)(images[0][0][None])
    modes: tuple[Literal["train", "eval"], ...] = ("train", "eval")
    for mode in modes:
        with told_channels(model, images), trial(model, images, mode) as x, torch.no_grad():
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
