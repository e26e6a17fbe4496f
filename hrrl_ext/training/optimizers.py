"""Optimisers by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..spec import not_known
from .config import TrainingConfig

_BY_NAME: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def build_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """What ``config`` names, on all parameters of ``model``.

    ValueError: a name or an option that is not known, or an optimiser whose step needs a closure.
    """
    kind = _kind(config.optimizer)
    known = inspect.signature(kind).parameters
    options = {"lr": config.lr}
    if "weight_decay" in known:
        options["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise ValueError(
            f"optimizer {config.optimizer} takes no weight_decay, got {config.weight_decay}; give 0"
        )
    if kind is SGD:
        options["momentum"] = config.momentum
    given = dict(config.optimizer_options or {})
    left = [name for name in known if name != "params" and name not in options]
    for name in given:
        if name not in left:
            raise ValueError(
                f"optimizer_options: {config.optimizer}'s option {not_known(name, left)}; lr, "
                "weight_decay and the momentum of sgd are settings of the run"
            )
    return kind(_groups(model, config.decay_norms_and_biases), **options | given)


def _kind(name: str) -> type[Optimizer]:
    if "." not in name:
        if name not in _BY_NAME:
            raise ValueError(
                f"optimizer: {not_known(name, _BY_NAME)}, or the dotted name of a class, such as "
                "torch.optim.NAdam"
            )
        return _BY_NAME[name]
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"optimizer: there is no {name} ({error})") from error
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ValueError(f"optimizer: {name} is no torch.optim.Optimizer")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer: a step of {name} evaluates the loss several times, which this loop does not do"
        )
    return kind


def _groups(model: nn.Module, decay_all: bool) -> Iterable[Any]:
    """Scales of norms and biases have one dimension, or none."""
    if decay_all:
        return model.parameters()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
