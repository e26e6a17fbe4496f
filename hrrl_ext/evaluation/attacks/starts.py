"""Where an attack begins, and the random numbers of each example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...norms import Ball, Norm
from .threats import find_norm


def random_start(
    x: Tensor,
    eps: float,
    *,
    norm: str | Norm = "linf",
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Images [N, 3, H, W] half way out in the balls of radius eps around x, along normal noise.

    A steepest step of length eps/2: for l2 and Fourier-linf in a random direction, for linf ±eps/2 in
    every pixel, for l1 in some random pixels. (From the boundary itself PGD would spend most of its
    steps on crossing the ball.) Example i's noise comes from (seed, index[i]) alone, hence from no
    other example and no batch; index is 0..N-1 by default. It is drawn on the CPU, and the global
    random state is not touched.
    """
    if len(x) == 0:
        return x
    ball = Ball.around(x.detach(), eps, find_norm(norm))
    noise = [rng.standard_normal(x.shape[1:]) for rng in example_rngs(seed, len(x), index)]
    direction = torch.from_numpy(np.stack(noise)).to(ball.base)
    return ball.image(ball.move(torch.zeros_like(ball.base), direction, eps / 2))


def example_rngs(
    seed: int, count: int, index: Sequence[int] | Tensor | None
) -> Iterator[np.random.Generator]:
    """A generator for each of ``count`` examples, from (seed, its index)."""
    if isinstance(index, Tensor):
        index = index.tolist()  # at once: on a GPU each element would be waited for
    indices = range(count) if index is None else index
    if len(indices) != count:
        raise ValueError(f"index must have one entry per example, {count}, got {len(indices)}")
    return (np.random.default_rng((seed, i)) for i in indices)
