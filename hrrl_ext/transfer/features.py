"""Features f(x): what a trained network hands to its last linear layer (paper, section 3).

The network is borrowed: it runs in eval mode without gradients, and its hooks, its device and
every module's training flag are as before when the call ends, also by an exception.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .._files import replacing
from .._modes import borrowed
from ..data.labelled import as_input, labelled_batches

__all__ = ["Features", "extract_features", "find_classifier", "load_features", "save_features"]


class Features(NamedTuple):
    """features [N, D] float32 and labels [N] int64, both on the CPU, row i of one example."""

    features: Tensor
    labels: Tensor


def find_classifier(model: nn.Module) -> nn.Linear:
    """The last nn.Linear in module order, whose input is f(x). ValueError: the model has none."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"find_classifier: {type(model).__name__} has no nn.Linear; name the layer whose input "
            "is the feature: extract_features(..., classifier='name of the layer')"
        )
    return linear[-1]


def extract_features(
    model: nn.Module,
    data: Any,
    *,
    classifier: str | nn.Module | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Features:
    """f(x) of every example: the input of the classifier, flattened to [N, D] float32 on the CPU.

    data        an image set (`__len__`, and `__getitems__(indices)` giving images [B, 3, H, W] and
                labels [B]), a tuple (images [N, 3, H, W], labels [N]) of tensors, or an iterable of
                batches (images, labels, ...) such as a DataLoader, whose own batch size then holds.
                uint8 images become float / 255; float images are taken as they are, in [0, 1]
    classifier  the layer whose input is the feature, or its name; None: `find_classifier(model)`
    device      where the model runs; None: where its parameters are. A model moved for the call
                is moved back

    Rows follow the data, hence the order of a DataLoader that shuffles. Nothing random is drawn
    here: the same batch size, device, threads and cuDNN algorithms give the same bits.

    Raises ValueError for empty data, for a feature that is not finite, and for a classifier that
    the model does not have or does not call exactly once per batch; TypeError for other data.
    """
    layer = _resolve_classifier(model, classifier)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    rows = 0
    with borrowed(model, device) as (there, dtype), _inputs_of(layer) as inputs:
        for images, target in labelled_batches(data, batch_size, "extract_features"):
            inputs.clear()
            model(as_input(images, there, dtype))
            features.append(_feature_rows(inputs, len(images), rows))  # [B, D]
            labels.append(target.to("cpu", torch.int64, copy=True))
            rows += len(images)
    return Features(torch.cat(features), torch.cat(labels))


def save_features(path: str | os.PathLike[str], features: Features) -> None:
    """Write one .safetensors file with the tensors `features` and `labels`; folders are created.

    The file appears whole or not at all: it is written beside its place, then renamed.
    """
    _check_features(features, "save_features")
    tensors = {name: x.contiguous() for name, x in features._asdict().items()}
    with replacing(path) as partial:
        # Not save_file: the files it creates are readable by their owner alone, whatever the umask.
        partial.write_bytes(save(tensors))


def load_features(path: str | os.PathLike[str]) -> Features:
    """What `save_features` wrote, on the CPU, bit for bit.

    Raises FileNotFoundError if there is no such file, ValueError if it holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_features: no file {path}; save_features writes one")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"load_features: {path} is not a safetensors file: {error}") from error
    if missing := {"features", "labels"} - tensors.keys():
        raise ValueError(
            f"load_features: {path} lacks {sorted(missing)}, it holds {sorted(tensors)}; "
            "expected features [N, D] and labels [N]"
        )
    loaded = Features(tensors["features"], tensors["labels"])
    _check_features(loaded, f"load_features: {path}")
    return loaded


def _check_features(features: Features, where: str) -> None:
    x, labels = features
    if x.ndim != 2 or x.dtype != torch.float32:
        raise ValueError(f"{where}: features must be [N, D] float32, got {list(x.shape)} {x.dtype}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{where}: labels must be [{len(x)}] int64, one per row of features, "
            f"got {list(labels.shape)} {labels.dtype}"
        )


def _resolve_classifier(model: nn.Module, classifier: str | nn.Module | None) -> nn.Module:
    if classifier is None:
        return find_classifier(model)
    if isinstance(classifier, str):
        named: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if name}
        if classifier not in named:
            near = difflib.get_close_matches(classifier, named, n=3, cutoff=0.0)
            raise ValueError(
                f"extract_features: {type(model).__name__} has no layer {classifier!r}; "
                f"the nearest names are {', '.join(map(repr, near))}"
            )
        return named[classifier]
    if not isinstance(classifier, nn.Module):
        raise TypeError(
            "extract_features: classifier must be a layer of the model, its name or None, "
            f"got {type(classifier).__name__}"
        )
    if not any(module is classifier for module in model.modules()):
        raise ValueError(
            f"extract_features: classifier ({type(classifier).__name__}) is not a layer of the "
            f"model ({type(model).__name__})"
        )
    return classifier


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that collects a copy of the layer's input, call by call, until the context ends."""
    inputs: list[Tensor] = []

    def collect(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = (*args, *kwargs.values())[0]
        # Copied at once: the layer, or the next batch, may overwrite this memory in place.
        inputs.append(x.detach().to("cpu", torch.float32, copy=True))

    handle = layer.register_forward_pre_hook(collect, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def _feature_rows(inputs: list[Tensor], batch: int, first_row: int) -> Tensor:
    if len(inputs) != 1:
        raise ValueError(
            f"extract_features: the model called its classifier {len(inputs)} times for one batch, "
            "expected once; name another layer with classifier=, and pass the model itself "
            "rather than its torch.compile or DataParallel wrapper"
        )
    (x,) = inputs
    if x.ndim < 2 or len(x) != batch:
        raise ValueError(
            f"extract_features: the input of the classifier must be [{batch}, D], one row per "
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
