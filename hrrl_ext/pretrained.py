"""Weights on disk: a model's own folder, and anybody's state dict. Nothing that is read can execute code.

A folder that :func:`save_pretrained` wrote, or ``best/`` of a run, holds

    config.json          what to build: model, classes, image_size (a side, or [height, width]), width
    model.safetensors    weights and buffers
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn

from .storage import read_json, replacing, why_unreadable, write_json

_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put it
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# The network that is kept, in checkpoints of pretraining: ours, lightly's and solo-learn's; MoCo's.
_PARTS = ("backbone.", "encoder_q.")
# The places of torchvision's ResNet as nn.Sequential(*children), which lightly's examples train.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class WeightsReport:
    """What :func:`load_weights` did with every name."""

    loaded: list[str]
    missing: list[str]
    """of the model, not in the file: left as they were"""
    unexpected: list[str]
    """in the file, not in the model: left out"""
    mismatched: list[str]
    """in both, with another shape: left as they were"""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        for name in ("missing", "unexpected", "mismatched"):
            if names := getattr(self, name):
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                text += f"; {len(names)} {name} ({shown})"
        return text


@runtime_checkable
class HasFiles(Protocol):
    """A model that is more than weights, such as one with a vocabulary."""

    def save_files(self, folder: Path) -> None:
        """Writes what else belongs to it, beside its weights."""
        ...


def load_weights(model: nn.Module, source: str | os.PathLike[str]) -> WeightsReport:
    """Fills ``model`` in place from a state dict on disk, as far as names and shapes agree.

    Args:
        source: a .safetensors file; a file of torch.save that holds a state dict (also under
            "state_dict" or "model", also with the prefix "module."); or a folder with
            model.safetensors. Of checkpoints of MoCo ("encoder_q."), lightly, solo-learn and
            :class:`hrrl_ext.URRLTrainer` ("backbone.") it is the network that they are for: heads, key
            encoders and queues are left out, and not told.

    A classifier for another number of classes is not loaded and stands in the report. Raises
    FileNotFoundError, and ValueError where the file cannot be read or no name agrees.
    """
    path = _weights_file(source)
    found, own = _found(path, model), model.state_dict()
    common = [name for name in own if name in found]
    fitting = [name for name in common if found[name].shape == own[name].shape]
    if not fitting:
        raise ValueError(
            f"{path}: no name and shape agrees with the model; it has {_few(found)}, "
            f"the model {_few(own)}"
        )
    model.load_state_dict({name: found[name] for name in fitting}, strict=False)
    constants = {name for name in own if name.rpartition(".")[0].endswith("normalise")}
    return WeightsReport(
        loaded=fitting,
        missing=[name for name in own if name not in found and name not in constants],
        unexpected=[name for name in found if name not in own],
        mismatched=[name for name in common if found[name].shape != own[name].shape],
    )


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], config: Mapping[str, Any]
) -> None:
    """Writes ``model`` and what it takes to build it again; each file is there whole or not at all.

    ``config`` must have ``model`` (a name that :func:`hrrl_ext.models.build_model` knows, or None),
    ``classes`` (their names), ``image_size`` (the side of a square, or [height, width]) and ``width``.
    """
    missing = [name for name in ("model", "classes", "image_size", "width") if name not in config]
    if missing:
        raise ValueError(f"save_pretrained: config lacks {', '.join(missing)}")
    folder = Path(folder)
    with replacing(folder / "model.safetensors") as path:
        save_weights(model, str(path))
    if isinstance(model, HasFiles):
        model.save_files(folder)
    write_json(folder / "config.json", config)


def from_pretrained(folder: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The model that :func:`save_pretrained` wrote, in eval mode on the CPU.

    A model of your own class has no name to be built by: pass a fresh one as ``model``. Every tensor
    must be there and fit.
    """
    folder = Path(folder)
    model = build_from(read_config(folder), folder) if model is None else model
    report = load_weights(model, folder)
    if not report.complete:
        raise ValueError(f"{folder} does not fit the model: {report}")
    return model.eval()


def from_weights(
    name: str,
    source: str | os.PathLike[str],
    *,
    image_size: int | Sequence[int],
    width: int = 64,
    num_classes: int | None = None,
) -> nn.Module:
    """A network that :func:`hrrl_ext.models.build_model` knows, with a bare state dict, in eval mode.

    ``source`` is what :func:`load_weights` takes. The network has as many classes as the weights; weights
    without a last layer leave it as it was drawn, unless ``num_classes`` says how many it must have, as
    where its logits are to be used. ValueError where that is not so, or any other tensor is missing, left
    over or of another shape: that is a state dict of another architecture.
    """
    from .models import build_model

    path = _weights_file(source)
    one = build_model(name, num_classes=1, image_size=image_size, width=width)
    head = [layer for layer, module in one.named_modules() if isinstance(module, nn.Linear)][-1]
    rows = [len(t) for n, t in _found(path, one).items() if n == f"{head}.weight"]
    model = build_model(
        name, num_classes=rows[0] if rows else 1, image_size=image_size, width=width
    )
    report = load_weights(model, path)
    names = [*report.missing, *report.unexpected, *report.mismatched]
    if [n for n in names if num_classes is not None or not n.startswith(f"{head}.")]:
        what = name if ":" in name else f"{name} of width {width}"
        raise ValueError(f"{path} is no state dict of {what}: {report}")
    if num_classes is not None and rows != [num_classes]:
        raise ValueError(
            f"{path} has {rows[0]} classes, expected {num_classes}; give data of the classes that the "
            "weights were trained on, or the names of all of them, in their order"
        )
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no model and no run: there is no {path.name} in it"
        )
    return read_json(path)


def classes_of(source: str | os.PathLike[str]) -> list[str] | None:
    """Their names, where ``source`` is a folder of :func:`save_pretrained` or the weights in it; None for
    weights alone."""
    path = Path(source)
    folder = path.parent if path.name == "model.safetensors" else path
    return read_config(folder).get("classes") if (folder / "config.json").is_file() else None


def build_from(config: Mapping[str, Any], where: Path) -> nn.Module:
    """A fresh model of a configuration."""
    from .models import build_model

    if config.get("model") is None:
        raise ValueError(f"{where} is of a module of your own; pass one of its kind as model=")
    return build_model(
        config["model"],
        num_classes=len(config["classes"]),
        image_size=config["image_size"],
        width=config["width"],
    )


def _weights_file(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return path


def _found(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file under the names that ``model`` has for them."""
    found = _without_wrappers(_state_dict(path))
    parts = [_behind(part, found) for part in _PARTS]
    named = [found, *parts, *({_child(n): v for n, v in part.items()} for part in parts)]
    # A network behind our normaliser (models.py) has its names behind "network.".
    named += [{f"network.{name}": value for name, value in names.items()} for names in named]
    return max(named, key=lambda names: len(names.keys() & model.state_dict().keys()))


def _behind(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}


def _child(name: str) -> str:
    number, _, rest = name.partition(".")
    return f"{_CHILDREN.get(number, number)}.{rest}"


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {why_unreadable(error)}") from error
    for name in _NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            value = value[name]
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} must hold a state dict, got {type(value).__name__}")
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            return _without_wrappers({name[len(prefix) :]: v for name, v in state.items()})
    return state


def _few(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(list(names)[:3]) or "none"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names and values of parameters and buffers, so of what a model computes."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
