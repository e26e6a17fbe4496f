"""State dicts as they lie on disk, whatever their names begin with. No code of a file is run."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ._reading import load_state, reading

_DEPTH = 4  # of state dicts within a checkpoint
# Of torch.compile, FSDP and activation checkpointing, wherever they stand in a name.
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The places of torchvision's ResNet as nn.Sequential(*children), which lightly's examples train.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Of two networks that fit equally the one that is trained, and not what follows it; but DINO's teacher.
_FOLLOWERS = (
    *("ema", "momentum", "encoder_k", "target", "student"),
    *("backbone_momentum", "momentum_backbone", "momentum_encoder", "state_dict_ema", "model_ema"),
    *("ema_model", "ema_state_dict", "ema_net", "net_ema", "target_encoder", "target_network"),
)
_STEPS = "num_batches_tracked"
_COUNTERS = {"n_averaged"}  # of torch.optim.swa_utils, beside the network that it averages


def not_finite(values: Mapping[str, Any]) -> str | None:
    """The name of the first tensor of a state dict that holds NaN or an infinity; a buffer of 0 and -inf
    alone is a mask."""
    floats = {n: t for n, t in values.items() if isinstance(t, Tensor) and t.is_floating_point()}
    if not floats:
        return None
    device = next(iter(floats.values())).device
    good = torch.stack([t.isfinite().all().to(device) for t in floats.values()]).tolist()
    for (name, t), is_finite in zip(floats.items(), good, strict=True):
        learned = name.rpartition(".")[2].startswith(("weight", "bias", "running_"))
        if not is_finite and (learned or not ((t == 0) | (t == -torch.inf)).all()):
            return name
    return None


class Part(NamedTuple):
    """Where in a file one network is."""

    key: str
    """of the state dict, "" where the file is one"""
    prefix: str
    """what its names begin with"""
    by_place: bool = False
    """whether they are places of torchvision's ResNet"""

    def __str__(self) -> str:
        parts = [repr(self.key)] if self.key else []
        return ", ".join(parts + [f"names behind {self.prefix!r}"] * bool(self.prefix))


class Found(NamedTuple):
    """The tensors of a file under the names that a model has for them."""

    tensors: dict[str, Tensor]
    part: Part
    beside: list[str]
    """what else is there: names that do not begin as the network's, and other networks of its kind"""


def found_for(path: Path, model: nn.Module, part: str | None) -> Found:
    """What a file has for ``model``: of all its networks the one that fits most tensors.

    ``part`` says which, where it holds several. ValueError: nothing fits, or several equally.
    """
    states, unread = _state_dicts(path)
    own, base = model.state_dict(), _common_prefix([name for name, _ in model.named_parameters()])
    if not any(name.split(".")[0] in _WRAPPED for name in own):
        states = {key: _without_wrappers(state) for key, state in states.items()}
    wanted = {name.removeprefix(base): value.shape for name, value in own.items()}
    named, fitting = Counter[Part](), Counter[Part]()
    for key, state in states.items():
        for candidate, fits in _places(key, state, wanted):
            if part is None or _is_called(part, candidate):
                named[candidate] += 1
                fitting[candidate] += fits
    # A few names that happen to agree somewhere in a file are not yet a network of this kind.
    least = sum(not name.endswith(_STEPS) for name in own) / 2
    scores = {p: (fitting[p], n) for p, n in named.items() if not p.prefix or n >= least}
    if not scores:
        raise ValueError(_nothing_named(path, own, states, unread, part))
    best, others = _best(path, scores)
    tensors, beside = _named(states[best.key], best, base)
    return Found(tensors, best, beside + [str(p) for p in others])


def no_agreement(path: Path, has: Sequence[str], model: Sequence[str], part: str | None) -> str:
    within = "" if part is None else f" in part {part!r}"
    return (
        f"{path}: no name and shape agrees with the model{within}; it has {_few(has)}, the model "
        f"{_few(model)}"
    )


def _places(
    key: str, state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]
) -> Iterator[tuple[Part, bool]]:
    """Of every tensor the parts in which its name is one of the model's, and whether its shape is too."""
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[-1] == _STEPS:  # which fits every batch normalisation
            continue
        for i in range(len(parts)):
            rest, prefix = ".".join(parts[i:]), "".join(f"{part}." for part in parts[:i])
            if rest in wanted:
                yield Part(key, prefix), wanted[rest] == tensor.shape
            elif (placed := _placed(rest)) in wanted:
                yield Part(key, prefix, by_place=True), wanted[placed] == tensor.shape


def _best(path: Path, scores: Mapping[Part, tuple[int, int]]) -> tuple[Part, list[Part]]:
    """The part of most tensors, and others of as many. One that follows another goes behind it, and one
    whose names need no change before."""
    most = max(scores.values())
    parts = [part for part, score in scores.items() if score == most]
    leading = [part for part in parts if not _follows(part)] or parts
    for some in (leading, [part for part in leading if not part.prefix]):
        if len(some) == 1:
            return some[0], [part for part in parts if part != some[0]]
    names, example = "; ".join(sorted(map(str, leading))), min(leading)
    raise ValueError(
        f"{path} holds several networks that fit the model equally ({names}); say which with "
        f"load_weights(model, {str(path)!r}, part={example.prefix or example.key!r}), or on the command "
        "line with --part or --init_part"
    )


def _follows(part: Part) -> bool:
    return any(name in _FOLLOWERS for name in (part.key + "." + part.prefix).split("."))


def _is_called(name: str, part: Part) -> bool:
    name = name.rstrip(".")
    whole = f"{part.key}.{part.prefix}".strip(".")
    return name in (part.key, part.prefix.rstrip("."), whole)


def _named(
    state: Mapping[str, Tensor], part: Part, base: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Under the model's names, and the names that are left out."""
    prefix = part.prefix
    if base and prefix.endswith(base):  # written from a model of this kind, normaliser and all
        prefix, base = prefix.removesuffix(base), ""
    tensors = {name: value for name, value in state.items() if name.startswith(prefix)}
    beside = [name for name in state if name not in tensors and name not in _COUNTERS]
    named = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if part.by_place:
        named = {_placed(name): value for name, value in named.items()}
    return {base + name: value for name, value in named.items()}, beside


def _placed(name: str) -> str:
    place, dot, rest = name.partition(".")
    return _CHILDREN.get(place, place) + dot + rest


def _nothing_named(
    path: Path,
    own: Mapping[str, Tensor],
    states: Mapping[str, Mapping[str, Tensor]],
    unread: Sequence[str],
    part: str | None,
) -> str:
    if unread and not states:
        return _refused(path, unread)
    return no_agreement(path, [name for state in states.values() for name in state], [*own], part)


def _common_prefix(names: Sequence[str]) -> str:
    """What a network is called within a wrapper: all its parameters' names begin so."""
    prefix = os.path.commonprefix([*names]).rpartition(".")[0]  # noqa: RUF071  (cut at a dot)
    if prefix and all("." not in name[len(prefix) + 1 :] for name in names):  # a layer, no network
        prefix = prefix.rpartition(".")[0]
    return f"{prefix}." if prefix else ""


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {".".join(p for p in n.split(".") if p not in _WRAPPED): v for n, v in state.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) or "none"


# --- files


class _Unread:
    """In place of an object that only its class could make: nothing of it is looked at."""

    def __new__(cls, *_: Any, **__: Any) -> _Unread:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _state_dicts(path: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The tensors of every mapping in a file, by the keys that lead there; and the classes of which it
    holds objects, which were not read."""
    if path.suffix == ".safetensors":
        with reading(f"{path} cannot be read"):
            return {"": load_file(path)}, []
    value, unread = _loaded(path)
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise ValueError(
            _refused(path, unread) if unread else f"{path} must hold a state dict, got {kind}"
        )
    return dict(_within(value, "", _DEPTH)), unread


def _loaded(path: Path) -> tuple[Any, list[str]]:
    """torch.load without running code of the file's: what other classes would make is left unread."""
    names: list[str] = []
    with suppress(Exception):  # written before torch 1.6; or damaged, which is told below
        names = sorted(get_unsafe_globals_in_checkpoint(str(path)))
    # A class of its own for each name: torch's reader calls it, and nothing of the file.
    stand_ins: list[Any] = [(type(name, (_Unread,), {}), name) for name in names]
    try:
        with reading(f"{path} cannot be read"), safe_globals(stand_ins):
            return load_state(path), names
    except ValueError as error:
        if names and isinstance(error.__cause__, pickle.UnpicklingError):
            raise ValueError(_refused(path, names)) from error.__cause__
        raise


def _refused(path: Path, unread: Sequence[str]) -> str:
    return (
        f"{path} cannot be read: it holds objects that only code could make ({_few(unread)}"
        + (", ..." if len(unread) > 3 else "")
        + "), and no state dict beside them. Where the file can be trusted, load it with what made it, "
        "torch.load(..., weights_only=False), and save model.state_dict() alone"
    )


def _within(
    value: Mapping[Any, Any], where: str, depth: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = {n: t for n, t in value.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if tensors:
        yield where, tensors
    for name, inner in value.items():
        if depth and isinstance(name, str) and isinstance(inner, Mapping):
            yield from _within(inner, f"{where}.{name}".lstrip("."), depth - 1)
