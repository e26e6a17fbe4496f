"""Random streams of one's own: nothing here reads or changes a global random state."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Words = npt.NDArray[np.uint64]


def random_stream(seed: int, *purpose: int | str) -> torch.Generator:
    """A generator for one purpose; hashed, so that neighbouring seeds do not overlap."""
    seed_bits = _hashed(seed, *purpose) % 2**32  # torch's CPU generator uses 32 bits
    return torch.Generator().manual_seed(seed_bits)


def _hashed(*purpose: int | str) -> int:
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


class Draws:
    """Random numbers for each of B images, which depend on its key and on nothing beside it.

    A number is a hash of the key and of how many were drawn before (SplitMix64): no state is kept for an
    image, and all images have theirs in one call, on the CPU.

    ::

        draws = Draws.of_images(index, seed, epoch)      # index [B]
        angle = draws.named("rotation").uniform(-30, 30) # [B] float64; other names change nothing here
    """

    def __init__(self, key: _Words) -> None:
        self._key = key
        self._taken = 0

    @classmethod
    def of_images(cls, index: Tensor, seed: int, *purpose: int | str) -> Draws:
        """index [B] integers: the number of each image in its set."""
        number = index.cpu().numpy().astype(np.uint64)
        return cls(_mixed(_mixed(number) ^ np.uint64(_hashed(seed, *purpose))))

    @classmethod
    def of_generator(cls, count: int, generator: torch.Generator | None) -> Draws:
        """A key for each of so many images from a generator, or torch's global one."""
        key = torch.randint(2**63 - 1, (count,), generator=generator)
        return cls(key.numpy().astype(np.uint64))

    def __len__(self) -> int:
        return len(self._key)

    def __getitem__(self, images: slice) -> Draws:
        return Draws(self._key[images])

    def named(self, purpose: str) -> Draws:
        """Draws of their own, whatever has been and will be drawn here."""
        return Draws(_mixed(self._key ^ np.uint64(_hashed(purpose))))

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Tensor:
        """[B, *shape] float64, low <= u < high"""
        return torch.from_numpy(low + self._uniform(shape) * (high - low))

    def whole(self, stop: int, shape: tuple[int, ...] = ()) -> Tensor:
        """[B, *shape] int64, 0 .. stop - 1, to one in 2^53 / stop equally often"""
        return torch.from_numpy((self._uniform(shape) * stop).astype(np.int64))

    def chance(self, p: float, shape: tuple[int, ...] = ()) -> Tensor:
        """[B, *shape] bool, true with probability p"""
        return torch.from_numpy(self._uniform(shape) < p)

    def gamma(self, alpha: float, shape: tuple[int, ...] = ()) -> Tensor:
        """[B, *shape] float64, above 0: Gamma(alpha, 1), by Marsaglia and Tsang's rejection."""
        if alpha == 1:
            return torch.from_numpy(-np.log1p(-self._uniform(shape)))
        # Of a stream apart, since it takes more of it where an image of the batch is refused.
        apart = self.named(f"gamma {self._taken}")
        self._taken += 1
        boost = apart._uniform(shape) if alpha < 1 else None
        d = (alpha + 1 if alpha < 1 else alpha) - 1 / 3
        result = np.full((len(self), *shape), np.nan)
        while np.isnan(result).any():
            radius = np.sqrt(-2 * np.log1p(-apart._uniform(shape)))
            x = radius * np.cos(2 * math.pi * apart._uniform(shape))
            v = (1 + x / math.sqrt(9 * d)) ** 3
            with np.errstate(invalid="ignore", divide="ignore"):
                kept = np.log1p(-apart._uniform(shape)) < x * x / 2 + d * (1 - v + np.log(v))
            result = np.where(np.isnan(result) & (v > 0) & kept, d * v, result)
        if boost is not None:
            result *= (1 - boost) ** (1 / alpha)
        return torch.from_numpy(np.maximum(result, np.finfo(np.float64).tiny))

    def _uniform(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        count = math.prod(shape)
        place = np.arange(self._taken + 1, self._taken + count + 1, dtype=np.uint64) * _GOLDEN
        self._taken += count
        words = _mixed(self._key[:, None] + place) >> np.uint64(11)
        uniform: npt.NDArray[np.float64] = (words.astype(np.float64) * 2.0**-53).reshape(
            len(self), *shape
        )
        return uniform


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(word: _Words) -> _Words:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): each bit depends on each."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = word ^ (word >> np.uint64(31))
    return mixed
