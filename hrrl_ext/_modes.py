"""Borrowing a model to look at what it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn


def to_train(model: nn.Module, held: Iterable[nn.Module] = ()) -> None:
    """Train mode, but not of what is frozen: modules whose parameters all are, and those ``held``.

    For running statistics and dropout are part of what a layer computes.
    """
    model.train()
    for module in held:
        module.training = False
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


@contextmanager
def in_mode(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Every module is in this mode within; each one's own training flag is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if mode == "train":
        to_train(model)
    else:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients within."""
    with in_mode(model, "eval"), torch.no_grad():
        yield


@contextmanager
def borrowed(
    model: nn.Module, device: torch.device | str | None
) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Eval mode on the device, no gradients; yields the device and dtype to feed.

    None is where the parameters are; a model that was moved is moved back.
    """
    weights = [*model.parameters(), *model.buffers()]
    home = weights[0].device if weights else torch.device("cpu")
    there = home if device is None else torch.device(device)
    dtype = next((w.dtype for w in weights if w.is_floating_point()), torch.float32)
    try:
        if there != home:
            model.to(there)
        with evaluating(model):
            yield there, dtype
    finally:
        if there != home:
            model.to(home)
