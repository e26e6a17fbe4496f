"""Features f(x): what a trained network hands to its last linear layer (paper, section 3).

The network is borrowed: it runs in eval mode without gradients, and its hooks, its device and
every module's training flag are as before when the call ends, also by an exception.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import borrowed
from .._pixels import PixelCheck
from .._state_dicts import not_finite
from ..data import ImageSet
from ..data.labelled import as_input, labelled_batches
from ..layers import (
    captured,
    find_classifier,
    find_classifiers,
    find_head,
    find_layer,
    the_classifier,
)
from ..processes import ALONE, Processes
from .feature_files import (
    Features,
    check_suffix,
    load_classes,
    load_features,
    save_features,
    write_batches,
)

__all__ = [
    "Features",
    "extract_features",
    "find_classifier",
    "load_classes",
    "load_features",
    "save_features",
    "stream_features",
]


def extract_features(
    model: nn.Module,
    data: Any,
    *,
    classifier: str | nn.Module | None = None,
    layer: str | nn.Module | None = None,
    pool: bool = True,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Features:
    """f(x) of every example: the input of the classifier, flattened to [N, D] float32 on the CPU.

    data        an image set (`__len__`, and `__getitems__(indices)` giving images [B, 3, H, W] and
                labels [B]), a tuple (images [N, 3, H, W], labels [N]) of tensors, or an iterable of
                batches (images, labels, ...) such as a DataLoader, whose own batch size then holds.
                uint8 images become float / 255; float images are taken as they are, in [0, 1]
    classifier  the layer whose input is the feature, or its name; None: the nn.Linear that the logits
                come from, as the first batch shows, or `find_classifier(model)` where they come from
                another layer
    layer       in its place, the layer whose *output* is the feature, or its name; of a tuple or a
                mapping the first entry counts
    pool        of a layer's output: maps [B, C, H, W] (also [B, C, H, W, T]) become their mean over
                the positions [B, C], tokens [B, T, D] their mean over the tokens [B, D]; False
                flattens both. The input of the classifier is always flattened. What looks like
                [B, S, S, C], as within Swin, whose channels come last, is refused
    device      where the model runs; None: where its parameters are. A model moved for the call
                is moved back

    Rows follow the data, hence the order of a DataLoader that shuffles. Nothing random is drawn
    here: the same batch size, device, threads and cuDNN algorithms give the same bits.

    Raises ValueError for empty data, for images outside [0, 1] where the model normalises, for a feature
    that is not finite, for a layer that the model does not have or does not call exactly once per
    batch, and where logits come from several classifiers and none is named; TypeError for other data.
    """
    batches = list(_feature_batches(model, data, classifier, layer, pool, batch_size, device))
    return Features(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def stream_features(
    path: str | os.PathLike[str],
    model: nn.Module,
    data: Any,
    *,
    classifier: str | nn.Module | None = None,
    layer: str | nn.Module | None = None,
    pool: bool = True,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    processes: Processes = ALONE,
) -> tuple[int, int]:
    """Writes what `extract_features` gives to a file, batch by batch, and returns (N, D).

    For features that do not fit into memory: of them one batch is there at a time (and 8 bytes per
    label). The names of an image set's classes stand beside them, for `load_classes`. path ends in
    .safetensors or .npz; `load_features` reads both. While it is written, the folder needs room for the
    features twice; an error leaves what was there before. processes take a batch in turn; the first
    writes all of them, in order: the file of one process, to the bit.
    """
    check_suffix(path)
    classes = data.classes if isinstance(data, ImageSet) else None
    features = _feature_batches(model, data, classifier, layer, pool, batch_size, device, processes)
    with closing(features):  # whatever happens to the file, the model is given back
        batches, written = processes.in_order(features), (0, 0)
        if processes.main:
            written = write_batches(path, batches, classes)
        for _ in batches:  # of the others
            pass
    shape: tuple[int, int] = processes.gather(written)[0]
    return shape


def _feature_batches(
    model: nn.Module,
    data: Any,
    classifier: str | nn.Module | None,
    layer: str | nn.Module | None,
    pool: bool,
    batch_size: int,
    device: torch.device | str | None,
    processes: Processes = ALONE,
) -> Generator[Features]:
    if batch_size < 1:
        raise ValueError(f"extract_features: batch_size must be at least 1, got {batch_size}")
    if classifier is not None and layer is not None:
        raise ValueError(
            "extract_features: the feature is the input of classifier or the output of layer; "
            "give one of the two"
        )
    if (name := not_finite(model.state_dict())) is not None:
        raise ValueError(
            f"extract_features: {name} of the model holds NaN or infinite values; take weights of before "
            "training went wrong"
        )
    check = PixelCheck(model, "extract_features")
    with borrowed(model, device) as (there, dtype), ExitStack() as hooks:
        features: list[Tensor] | None = None
        if classifier is not None or layer is not None:
            features = hooks.enter_context(_features_of(model, classifier, layer, pool))
        for row, images, target in labelled_batches(
            data, batch_size, "extract_features", processes
        ):
            x = as_input(images, there, dtype, check)
            if features is None:
                classifier = read_classifier(model, x)
                features = hooks.enter_context(_features_of(model, classifier, layer, pool))
            features.clear()
            model(x)
            rows_of_batch = _feature_rows(
                features, len(images), row, "classifier" if layer is None else "layer"
            )
            yield Features(rows_of_batch, target.to("cpu", torch.int64, copy=True))


def read_classifier(
    model: nn.Module,
    x: Tensor,
    where: str = "extract_features",
    otherwise: str = "name the layer whose output, pooled, is the feature with layer=",
) -> nn.Linear:
    """The layer whose input is the feature where none is named, as these images show."""
    way_out = "name the one whose input is the feature with classifier="
    return the_classifier(model, find_classifiers(model, x[:2]), where, way_out, otherwise)


def _features_of(
    model: nn.Module, classifier: str | nn.Module | None, layer: str | nn.Module | None, pool: bool
) -> AbstractContextManager[list[Tensor]]:
    """Copied at once: the layer, or the next batch, may overwrite this memory in place."""

    def copied(x: Tensor) -> Tensor:
        return x.detach().to("cpu", torch.float32, copy=True)

    def output(out: Any) -> Tensor:
        entries = out.values() if isinstance(out, Mapping) else out
        x = next(iter(entries), None) if isinstance(out, Mapping | tuple | list) else out
        if not isinstance(x, Tensor):
            raise TypeError(
                f"extract_features: the output of layer must be a tensor, or a tuple that begins with "
                f"one, got {type(x).__name__}; name a layer within it"
            )
        return copied(_pooled(x.detach()) if pool else x)

    if layer is not None:
        return captured(find_layer(model, layer, "extract_features: layer"), "output", output)
    head = find_head(model, classifier, "extract_features: classifier")
    return captured(head, "input", copied)


def _pooled(x: Tensor) -> Tensor:
    """The mean over positions, or over tokens; in float32, since sums of halves overflow."""
    if x.ndim < 3:
        return x
    if x.ndim == 4 and x.shape[1] == x.shape[2] != x.shape[3]:
        raise ValueError(
            f"extract_features: the output of layer, {list(x.shape)}, looks as if its channels came "
            "last, and maps are pooled as [B, C, H, W]; name a layer after which channels come second "
            "(permute in torchvision's Swin), or take all of it with pool=False"
        )
    return x.float().mean(dim=1 if x.ndim == 3 else tuple(range(2, x.ndim)))


def _feature_rows(features: list[Tensor], batch: int, first_row: int, argument: str) -> Tensor:
    if len(features) != 1:
        raise ValueError(
            f"extract_features: the model called its {argument} {len(features)} times for one batch, "
            f"expected once; name another layer with {argument}=, and pass the model itself "
            "rather than its torch.compile or DataParallel wrapper"
        )
    (x,) = features
    if x.ndim < 2 or len(x) != batch:
        side = "input" if argument == "classifier" else "output"
        raise ValueError(
            f"extract_features: the {side} of the {argument} must be [{batch}, D], one row per "
            f"example, got {list(x.shape)}"
        )
    rows = x.flatten(1)
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        bad = first_row + int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"extract_features: the feature of example {bad} is not finite (NaN or infinite); "
            "check that the weights are finite and the images in [0, 1]"
        )
    return rows
