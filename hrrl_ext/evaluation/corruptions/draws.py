"""Random numbers of which each image has its own stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Draws:
    """Draws [B, ...] whose row i depends on (seed, kind, severity, index[i]) alone, not on the batch.

    They are drawn on the CPU, by a generator for each image, and moved: every device gets the same
    numbers.
    """

    def __init__(
        self, seed: int, kind: str, severity: int, index: Sequence[int], device: torch.device
    ) -> None:
        digest = hashlib.sha256(f"{seed} {kind} {severity}".encode()).digest()
        base = int.from_bytes(digest[:4], "little")
        # Of a seed, torch's generator on the CPU uses 32 bits; images of one set never share theirs.
        self._generators = [torch.Generator().manual_seed((base + i) % 2**32) for i in index]
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape] float32, mean 0 and standard deviation 1."""
        return self._filled(shape, lambda row, generator: row.normal_(generator=generator))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[B, *shape] float32 in [low, high)."""
        return self._filled(
            shape, lambda row, generator: row.uniform_(low, high, generator=generator)
        )

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """[B, *shape] int64 in low..high-1."""
        return self._filled(
            shape,
            lambda row, generator: row.random_(low, high, generator=generator),
            torch.int64,
        )

    def poisson(self, rate: Tensor) -> Tensor:
        """[B, ...] float32 counts of these rates [B, ...]."""
        rows = zip(rate.cpu(), self._generators, strict=True)
        return torch.stack([torch.poisson(row, generator) for row, generator in rows]).to(rate)

    def _filled(
        self,
        shape: tuple[int, ...],
        fill: Callable[[Tensor, torch.Generator], Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        out = torch.empty(len(self._generators), *shape, dtype=dtype)
        for row, generator in zip(out, self._generators, strict=True):
            fill(row, generator)
        return out.to(self._device)
