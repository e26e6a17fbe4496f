"""What the tests of the kinds share."""

from __future__ import annotations

import torch
from torch import Tensor


class Given:
    """Draws that a test has chosen: each call returns the next."""

    def __init__(self, *values: Tensor | float) -> None:
        self._values = iter(values)

    def _next(self, *_: float) -> Tensor:
        return torch.as_tensor(next(self._values))

    normal = uniform = integers = _next


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
