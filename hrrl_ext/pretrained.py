"""Weights on disk: a model's own folder, and anybody's state dict. Nothing that is read can execute code.

A folder that :func:`save_pretrained` wrote, or ``best/`` of a run, holds

    config.json          what to build: model, classes, image_size (a side, or [height, width]), width
    model.safetensors    weights and buffers
    digests.json         SHA-256 of each file: what is not as it was written is not opened
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn

from ._regular import regular
from ._shapes import entries, expected, having, many, mapping, maybe, record, some, text
from ._state_dicts import found_for, no_agreement, not_finite
from .digests import check_digests, replacing_together
from .layers import is_classifier
from .storage import read_json, require_shape, write_json


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
    part: str = ""
    """where in the file they were: under which key, behind which beginning of their names"""
    beside: list[str] = field(default_factory=list)
    """what else is in the file, that is not of this part: left out"""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded" + (f" from {self.part}" if self.part else "")
        for name in ("missing", "unexpected", "mismatched", "beside"):
            if names := getattr(self, name):
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                text += f"; {len(names)} {_WORDS.get(name, name)} ({shown})"
        return text

    def warn(self, what: str) -> None:
        """Says what of the model was not in the file, and what of the file is not in the model."""
        if self.beside or not self.complete:
            warnings.warn(f"{what}: {self}", stacklevel=3)


_WORDS = {"beside": "beside them left out"}


@runtime_checkable
class HasFiles(Protocol):
    """A model that is more than weights, such as one with a vocabulary."""

    def save_files(self, folder: Path) -> None:
        """Writes what else belongs to it, beside its weights."""
        ...


def load_weights(
    model: nn.Module, source: str | os.PathLike[str], *, part: str | None = None
) -> WeightsReport:
    """Fills ``model`` in place from a state dict on disk, as far as names and shapes agree.

    Args:
        source: a .safetensors file; a file of torch.save, such as a checkpoint of any training; or a
            folder with model.safetensors or pytorch_model.bin.
        part: which of several networks in a file: the key that its state dict is under, such as
            "state_dict_ema", or what its names begin with, such as "encoder_k". If not given, the one
            that fits most of the model's tensors, whatever key it is under and whatever its names begin
            with ("module.", "model.", "backbone.", "module.encoder_q.", ...): of a network and its
            moving average the network, of a student and its teacher the teacher. The report says what
            was taken, and what is beside it.

    No code of a file is run: of what else a checkpoint holds, such as settings, objects are passed over.
    A classifier for another number of classes is not loaded and stands in the report. What is not
    in the file but tied to what is, and counts of batches, are not missing. Raises FileNotFoundError,
    and ValueError where the file cannot be read, where no name agrees, where several networks fit
    equally, where weights are not finite, or a file of :func:`save_pretrained` is not as it wrote it.
    """
    path, own = _weights_file(source), model.state_dict()
    check_digests(path.parent)
    found = found_for(path, model, part)
    common = [name for name in own if name in found.tensors]
    fitting = [name for name in common if found.tensors[name].shape == own[name].shape]
    if not fitting:
        raise ValueError(no_agreement(path, [*found.tensors], [*own], part))
    fit = {name: found.tensors[name] for name in fitting}
    if (bad := not_finite(fit)) is not None:
        raise ValueError(
            f"{path}: {bad} holds NaN or infinite values; take weights of before training went wrong"
        )
    model.load_state_dict(fit, strict=False)
    filled = {_place(own[name]) for name in fitting}  # tied weights have one name in safetensors
    return WeightsReport(
        loaded=fitting,
        missing=[
            name
            for name, value in own.items()
            if name not in found.tensors and _place(value) not in filled and not _constant(name)
        ],
        unexpected=[name for name in found.tensors if name not in own],
        mismatched=[name for name in common if name not in fitting],
        part=str(found.part),
        beside=found.beside,
    )


def _place(value: Tensor) -> tuple[Any, ...]:
    """Where a tensor is in memory; an empty one is nowhere."""
    return (value.data_ptr() or id(value), value.shape, value.stride(), value.dtype)


def _constant(name: str) -> bool:
    """Whether a model has it without being told: its normaliser's; a count that nothing reads."""
    layer, _, last = name.rpartition(".")
    return layer.endswith("normalise") or last == "num_batches_tracked"


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], config: Mapping[str, Any]
) -> None:
    """Writes ``model`` and what it takes to build it again; each file is there whole or not at all.

    ``config`` must have ``model`` (a name that :func:`hrrl_ext.models.build_model` knows, or None),
    ``classes`` (their names), ``image_size`` (the side of a square, or [height, width]) and ``width``;
    and ``channels``, where they are not 3.
    """
    missing = [name for name in ("model", "classes", "image_size", "width") if name not in config]
    if missing:
        raise ValueError(f"save_pretrained: config lacks {', '.join(missing)}")
    with replacing_together(Path(folder)) as partial:
        save_weights(model, str(partial / "model.safetensors"))
        if isinstance(model, HasFiles):
            model.save_files(partial)
        write_json(partial / "config.json", config)


def from_pretrained(folder: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The model that :func:`save_pretrained` wrote, in eval mode on the CPU.

    A model of your own class has no name to be built by: pass a fresh one as ``model``. Every tensor
    must be there and fit.
    """
    folder = Path(folder)
    check_digests(folder)  # config.json says what is built
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
    part: str | None = None,
) -> nn.Module:
    """A network that :func:`hrrl_ext.models.build_model` knows, with a bare state dict, in eval mode.

    ``source`` and ``part`` are what :func:`load_weights` takes; a warning says what else is in the file.
    The network has as many classes as the weights; weights without a last layer leave it as it was drawn,
    unless ``num_classes`` says how many it must have, as where its logits are to be used. ValueError
    where that is not so, or any other tensor is missing, left over or of another shape: that is a state
    dict of another architecture.
    """
    from .models import build_model

    path = _weights_file(source)
    one = build_model(name, num_classes=1, image_size=image_size, width=width)
    last = [layer for layer, module in one.named_modules() if isinstance(module, nn.Linear)]
    head = (last or [layer for layer, module in one.named_modules() if is_classifier(module)])[-1]
    tensors = found_for(path, one, part).tensors
    rows = [len(t) for n, t in tensors.items() if n == f"{head}.weight"]
    model = build_model(
        name, num_classes=rows[0] if rows else 1, image_size=image_size, width=width
    )
    report = load_weights(model, path, part=part)
    names = [*report.missing, *report.unexpected, *report.mismatched]
    if [n for n in names if num_classes is not None or not n.startswith(f"{head}.")]:
        what = name if ":" in name else f"{name} of width {width}"
        raise ValueError(f"{path} is no state dict of {what}: {report}")
    if num_classes is not None and rows != [num_classes]:
        raise ValueError(
            f"{path} has {rows[0]} classes, expected {num_classes}; give data of the classes that the "
            "weights were trained on, or the names of all of them, in their order"
        )
    if report.beside:
        report.warn(str(path))
    return model.eval()


def _size(value: Any, where: str) -> None:
    if not isinstance(value, list):
        some(value, where)
    elif len(value) == 2:
        many(some)(value, where)
    else:
        raise expected("a side, or [height, width]", value, where)


_CONFIG = having(
    model=maybe(text),
    classes=many(text),
    image_size=maybe(_size),
    width=maybe(some),
    channels=some,
    part=text,
    left_out=mapping(many(text)),
    training=entries,
    joint=record(text=maybe(record(name=text))),
)
"""Of a config.json: a model's, with what a run's has besides. A recipe of one's own need not have all."""


_BUILT = record(model=text, classes=many(text), image_size=_size, width=some)


def read_config(folder: Path, *needed: str) -> dict[str, Any]:
    """FileNotFoundError without it. ValueError, naming file and field: an entry is of a wrong type, or
    one that is ``needed`` is not there."""
    path = folder / "config.json"
    if not regular(path).is_file():
        raise FileNotFoundError(
            f"{folder} holds no model and no run: there is no {path.name} in it"
        )
    config = read_json(path, _CONFIG)
    for name in needed:
        if name not in config:
            raise ValueError(f"{path} is not as it was written: {name} is missing")
    return config


def described_in(source: str | os.PathLike[str]) -> Path:
    """The folder that says what these weights are of: of a checkpoint, that of its run."""
    path = Path(source)
    folder = path.parent if path.name == "model.safetensors" else path
    at = folder.absolute()
    of_run = at.parent.name == "checkpoints" and at.name.startswith("step-")
    return at.parent.parent if of_run else folder


def classes_of(source: str | os.PathLike[str]) -> list[str] | None:
    """Their names, where ``source`` is a folder of :func:`save_pretrained`, a checkpoint of a run, or the
    weights in either; None for weights alone."""
    folder = described_in(source)
    return read_config(folder).get("classes") if (folder / "config.json").is_file() else None


def build_from(config: Mapping[str, Any], where: Path) -> nn.Module:
    """A fresh model of a configuration."""
    from .models import build_model

    if config.get("model") is None:
        raise ValueError(f"{where} is of a module of your own; pass one of its kind as model=")
    require_shape(config, _BUILT, where / "config.json")
    try:
        return build_model(
            config["model"],
            num_classes=len(config["classes"]),
            image_size=config["image_size"],
            width=config["width"],
            channels=config.get("channels", 3),
        )
    except ValueError as error:
        raise ValueError(f"{where / 'config.json'}: {error}") from error


def _weights_file(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        path = next((file for file in files if file.is_file()), files[0])
    if not regular(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return path


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names and values of parameters and buffers, so of what a model computes."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
