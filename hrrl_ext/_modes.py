"""Borrowing a model to look at what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn


@contextmanager
def in_mode(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Every module is in this mode within; each one's own training flag is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode == "train")
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
