"""What a network draws while it trains, such as the masks of dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..perturbation import frozen_statistics


@contextmanager
def without_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Passes as in training, with the statistics of the batch and with dropout, without a gradient:
    neither running statistics nor the random state are others afterwards."""
    cuda = [device] if device.type == "cuda" else []
    with frozen_statistics(model, "batch"), torch.random.fork_rng(cuda), torch.no_grad():
        yield


class Draws:
    """A random state of a loop's own, by the seed and the steps alone: torch's global one within
    :meth:`taken`, and as it was before afterwards."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._within = False
        with torch.random.fork_rng(self._cuda):
            torch.manual_seed(seed)
            self._kept = self._global()

    @contextmanager
    def taken(self) -> Iterator[None]:
        with torch.random.fork_rng(self._cuda):
            self._set(*self._kept)
            self._within = True
            try:
                yield
            finally:
                self._within, self._kept = False, self._global()

    @property
    def state(self) -> tuple[Tensor, Tensor | None]:
        """Of the CPU, and of the GPU where the loop is on one."""
        return self._global() if self._within else self._kept

    @state.setter
    def state(self, state: tuple[Tensor, Tensor | None]) -> None:
        host, cuda = state
        self._kept = host, self._kept[1] if cuda is None else cuda

    def _global(self) -> tuple[Tensor, Tensor | None]:
        cuda = torch.cuda.get_rng_state(self._cuda[0]) if self._cuda else None
        return torch.get_rng_state(), cuda

    def _set(self, host: Tensor, cuda: Tensor | None) -> None:
        torch.set_rng_state(host)
        if self._cuda and cuda is not None:
            torch.cuda.set_rng_state(cuda, self._cuda[0])
