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
