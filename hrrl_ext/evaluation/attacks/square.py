"""Square attack: random search with square patches, which asks the model for logits alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...norms import Ball
from .gradient import Best
from .starts import example_rngs
from .victim import attackable, borrowed

_FIRST_SHARE = 0.8  # p: share of the image that the first squares cover
_HALVED_AFTER = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10 000 queries
_LEAST_SIDE = {"linf": 1, "l2": 3}
_TILES = 5  # along the shorter side, in the first perturbation of l2
_COMPACT_EVERY = 10  # queries, after which the examples that are done leave the batch


def square(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: str = "linf",
    queries: int = 1000,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Square attack (Andriushchenko et al. 2020), untargeted, on the margin z_y - max_{j ≠ y} z_j.

    Each query changes the perturbation in a random square and keeps what lowers the margin. The side
    is round(√(p H W)); p is 0.8 at first and halves after 0.1, 0.5, 2, 10, 20, 40, 60 and 80 % of the
    queries. It takes no gradients: one stronger than PGD means that the gradients mislead.

    linf  every δ is ±eps: vertical stripes at first, then squares of one random sign per channel
    l2    a window is emptied, and its part of the radius, with what was unused, goes to another one,
          half of it up and half down, peaked in the two middles

    queries  how many images an example may try; it stops at the first that fools the model
    seed     the draws of example i come from (seed, index[i]) alone, hence from no other example and
             no batch; index is 0..N-1 by default

    An example that the model gets wrong is returned as it is, else the image of lowest margin. The
    other arguments, determinism and errors are those of `pgd`; ValueError also for other norms.
    """
    if norm not in _LEAST_SIDE:
        raise ValueError(f"square: norm must be linf or l2, got {norm!r}; use apgd for the others")
    if queries < 1:
        raise ValueError(f"square: queries must be at least 1, got {queries}")
    ball = attackable("square", x, target, eps, norm)
    if eps == 0 or len(x) == 0:
        return x
    start, propose = (_stripes, _patch) if norm == "linf" else (_tiles, _move_mass)
    out = ball.x.clone()
    with borrowed("square", model, x.device) as victim:
        rows = (~victim.fooled(ball.x, target)).nonzero().flatten()
        if len(rows) == 0:
            return out
        noise, draws = _draws(ball, queries, seed, index)
        ball, target, draws = ball[rows], target[rows], draws[rows]
        z = ball.image(ball.project(start(ball, noise[rows])))
        best = Best.of(ball.x).or_better(z, victim.look(z, target, "margin", gradient=False))
        for query in range(1, queries):
            if query % _COMPACT_EVERY == 1 and bool(best.fooled.any()):
                out[rows] = best.image
                left = (~best.fooled).nonzero().flatten()
                if len(left) == 0:
                    return out
                rows, target, draws = rows[left], target[left], draws[left]
                ball, best = ball[left], best[left]
            side = _side(query / queries, ball.x.shape[2:], _LEAST_SIDE[norm])
            delta = propose(ball, ball.delta(best.image), draws[:, query], side)
            z = ball.image(ball.project(delta))
            best = best.or_better(z, victim.look(z, target, "margin", gradient=False))
        out[rows] = best.image
    return out


def _draws(
    ball: Ball, queries: int, seed: int, index: Sequence[int] | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Uniform numbers: [N, C, H, W] for the start, and [N, queries, 5 + C] for the proposals."""
    shape = ball.x.shape[1:]
    noise, draws = [], []
    for rng in example_rngs(seed, len(ball.x), index):
        noise.append(rng.random(shape, dtype=np.float32))
        draws.append(rng.random((queries, 5 + shape[0]), dtype=np.float32))
    return (
        torch.from_numpy(np.stack(noise)).to(ball.base),
        torch.from_numpy(np.stack(draws)).to(ball.base),
    )


def _side(done: float, shape: torch.Size, least: int) -> int:
    """Of the square after this part of the queries."""
    halvings = sum(10_000 * done > after for after in _HALVED_AFTER)
    area = _FIRST_SHARE / 2**halvings * shape.numel()
    return min(max(round(area**0.5), least), *shape)


def _place(u: Tensor, length: int, side: int) -> Tensor:
    """First row or column of a square that fits, from u in [0, 1)."""
    last = length - side
    return (u * (last + 1)).long().clamp(max=last)


# linf


def _stripes(ball: Ball, noise: Tensor) -> Tensor:
    return (ball.eps * _signs(noise[:, :, :1])).expand_as(noise)


def _patch(ball: Ball, delta: Tensor, u: Tensor, side: int) -> Tensor:
    def within(size: int, u: Tensor) -> Tensor:
        first = _place(u, size, side)[:, None]
        position = torch.arange(size, device=u.device)
        return (position >= first) & (position < first + side)  # [N, size]

    height, width = delta.shape[2:]
    patch = within(height, u[:, 0])[:, None, :, None] & within(width, u[:, 1])[:, None, None]
    return torch.where(patch, ball.eps * _signs(u[:, 5:, None, None]), delta)


# l2


def _tiles(ball: Ball, noise: Tensor) -> Tensor:
    """A grid of small patterns of random signs, on the sphere of radius eps."""
    height, width = noise.shape[2:]
    side = max(min(height, width) // _TILES, 1)
    rows, columns = height // side, width // side
    pattern = _pattern(side, noise).repeat(rows, columns)
    signs = _signs(noise[:, :, :rows, :columns])
    signs = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
    delta = torch.zeros_like(noise)
    delta[:, :, : rows * side, : columns * side] = pattern * signs
    return ball.eps * delta / ball.norm.size(delta).view(-1, 1, 1, 1)


def _move_mass(ball: Ball, delta: Tensor, u: Tensor, side: int) -> Tensor:
    """Empties one window and puts its part of eps, and what was unused, into another."""
    height, width = delta.shape[2:]
    flat = delta.flatten(2)  # [N, C, HW]
    inside = torch.arange(side, device=delta.device)
    offsets = (inside[:, None] * width + inside).flatten()

    def window(u: Tensor) -> Tensor:  # [N, C, side²] indices into flat
        first = _place(u[:, 0], height, side) * width + _place(u[:, 1], width, side)
        return (first[:, None] + offsets)[:, None].expand(-1, delta.shape[1], -1)

    here, emptied = window(u), window(u[:, 2:])
    without = flat.scatter(2, emptied, 0.0).scatter(2, here, 0.0)
    squares = flat.square().sum(2)
    unused = (ball.eps**2 - squares.sum(1, keepdim=True)).clamp(min=0) / delta.shape[1]
    radius = (squares - without.square().sum(2) + unused).clamp(min=0).sqrt()  # [N, C]
    pattern = _pattern(side, delta)
    upright = (u[:, 4] < 0.5)[:, None, None]
    pattern = _unit(torch.where(upright, pattern, pattern.T).flatten(1))[:, None]
    mixed = _unit(_signs(u[:, 5:, None]) * pattern + _unit(flat.gather(2, here)))
    return without.scatter(2, here, mixed * radius[..., None]).view_as(delta)


def _pattern(side: int, like: Tensor) -> Tensor:
    """[side, side]: a pyramid up in the first rows, one down in the others."""
    return torch.cat([_pyramid(side // 2, side, like), -_pyramid(side - side // 2, side, like)])


def _pyramid(height: int, width: int, like: Tensor) -> Tensor:
    """Σ_{c ≥ m} 1/(c+1)² at Chebyshev distance m of the middle: what nested squares add up to."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    weight = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).square()
    return weight.flip(0).cumsum(0).flip(0)[distance].to(like)


def _unit(v: Tensor) -> Tensor:
    """v / ‖v‖ over the last axis, 0 for 0."""
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.where(norm > 0, v / norm, 0.0)


def _signs(u: Tensor) -> Tensor:
    """±1 from u in [0, 1)."""
    return torch.where(u < 0.5, -1.0, 1.0).to(u)
