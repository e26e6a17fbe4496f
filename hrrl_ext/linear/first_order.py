"""The first-order solver of the hard problem: any norm, CPU and CUDA, from ten to 100,000 examples.

It is a game between a hyperplane and a distribution over the examples (Eq. 5.5):

    ε* = max_{‖w‖ ≤ 1} min_p Σ p_i y_i w·x_i

With an intercept each class has half of p, and the value is half the distance between the two convex
hulls. What is added to all x changes nothing then, so their mean is taken off, which is most of ‖X‖
for images. Each w gives a lower bound, its margin, and each p an upper one, ‖Σ p_i y_i x_i‖*: the
iteration ends when they are as near as ``tol`` wants, whatever has led to them.

Few examples matter. Of many the game is played on a working set: those that have weight, and those
on which w does worst. What bounds the game on it from above bounds it on all examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..norms import VectorNorm
from .duality import NotSeparableError
from .saddle import Found, solve_saddle

_SMALL = 4000  # examples of which no working set is made
_WORST = 500  # examples at least that a class adds to it
_PATIENCE = 20  # rounds after which nothing leaves it, so that it cannot go round in circles
SINGLE = 1e-4  # gaps down to here are sought in float32
_OVERLAP = 32.0  # rounding errors of the largest ‖x‖*: hulls as near as this are not told apart


@dataclass(frozen=True)
class FirstOrder:
    """w [d], b and the weights p [n] of the examples, on the device of X, and bounds on ε*.

    ``met``: whether the bounds are as near as asked. ``separable`` is False where the hulls overlap as
    far as the dtype can tell.
    """

    w: Tensor
    b: float
    p: Tensor
    lower: float
    upper: float
    n_iter: int
    met: bool
    separable: bool = True


def fit_hard(
    X: Tensor,
    sign: Tensor,
    norm: VectorNorm,
    *,
    intercept: bool = True,
    tol: float = 1e-3,
    max_iter: int = 100_000,
) -> FirstOrder:
    """The largest margin over ‖w‖ ≤ 1, up to a relative gap; X [n, d] float32 or 64, sign ±1 [n].

    float32 resolves a gap of some 1e-5. Nothing is drawn at random.
    """
    game = _Game(X, sign, norm, intercept)
    w, p = game.start()
    if len(X) <= _SMALL:
        found = game.play(torch.arange(len(X), device=X.device), w, p, None, tol, max_iter)
    else:
        found = _on_working_sets(game, w, p, tol, max_iter)
    b, _ = game.margin(X @ found.w)
    return FirstOrder(
        found.w, b, found.p, found.lower, found.upper, found.n_iter, found.within(tol),
        separable=found.lower > 0 or found.upper > game.nothing,
    )  # fmt: skip


def fit_separable(
    X: Tensor, sign: Tensor, norm: VectorNorm, *, tol: float = 1e-3, **settings: Any
) -> FirstOrder:
    """`fit_hard` in float32, where that can tell ``tol``; NotSeparableError where the hulls overlap.

    An overlap that float32 reports may be a margin too small for it, and is looked at in float64.
    """
    for dtype in [torch.float32] * (tol >= SINGLE) + [torch.float64]:
        found = fit_hard(X.to(dtype), sign, norm, tol=tol, **settings)
        if found.separable:
            return found
    raise NotSeparableError("the convex hulls of the classes meet")


def _on_working_sets(game: _Game, w: Tensor, p: Tensor, tol: float, max_iter: int) -> Found:
    best = Found(w, p, -math.inf, math.inf, 0, None)
    rows = torch.zeros(0, dtype=torch.int64, device=w.device)
    for number in range(max_iter):
        scores = game.X @ w
        _, margin = game.margin(scores)
        if margin > best.lower:
            best = best.replace(w=w, lower=margin)
        if best.within(tol) or best.n_iter >= max_iter or best.upper <= game.nothing:
            break
        kept = rows if number >= _PATIENCE else rows[p[rows] > 0]
        rows = torch.cat([kept, game.worst(scores)]).unique()
        gap = min(1.0, 1 - best.lower / best.upper)
        found = game.play(rows, w, p, best.ratio, max(tol / 2, 0.2 * gap), max_iter - best.n_iter)
        w, p = found.w, torch.zeros_like(p).index_copy_(0, rows, found.p)
        if found.upper < best.upper:
            best = best.replace(p=p, upper=found.upper)
        best = best.replace(n_iter=best.n_iter + found.n_iter, ratio=found.ratio)
    return best


class _Game:
    def __init__(self, X: Tensor, sign: Tensor, norm: VectorNorm, intercept: bool) -> None:
        self.X, self.sign, self.norm = X, sign.to(X), norm
        self.positive = sign > 0
        # who shares a distribution; each of them has 1/2, or the only one 1
        self.sides = [self.positive, ~self.positive] if intercept else [sign != 0]
        self.mean = X.mean(0) if intercept else torch.zeros_like(X[0])
        largest = max(float(norm.dual.size(x - self.mean).max()) for x in X.split(_SMALL))
        self.nothing = _OVERLAP * torch.finfo(X.dtype).eps * largest

    def start(self) -> tuple[Tensor, Tensor]:
        """Equal weights, and the best w against them."""
        p = torch.zeros_like(self.sign)
        for side in self.sides:
            p[side] = 1 / (len(self.sides) * side.sum()).to(p)
        return self.norm.steepest((p * self.sign) @ self.X), p

    def margin(self, scores: Tensor) -> tuple[float, float]:
        """The best b, and min y (w·x + b)."""
        if len(self.sides) == 1:
            return 0.0, float((self.sign * scores).min())
        low, high = float(scores[self.positive].min()), float(scores[~self.positive].max())
        return -(low + high) / 2, (low - high) / 2

    def worst(self, scores: Tensor) -> Tensor:
        """Numbers of the examples of least margin, of each side."""
        found, count = [], max(_WORST, self.X.shape[1] // 2)
        for side in self.sides:
            rows = side.nonzero().squeeze(1)
            margin = (self.sign * scores)[rows]
            found.append(rows[margin.topk(min(count, len(rows)), largest=False).indices])
        return torch.cat(found)

    def play(
        self, rows: Tensor, w: Tensor, p: Tensor, ratio: float | None, tol: float, max_iter: int
    ) -> Found:
        """The game on these examples, from w and p [n]; the p that is found is that of the rows."""
        places = [side[rows].nonzero().squeeze(1) for side in self.sides]
        order = torch.cat(places)
        ends = [len(places[0])]
        A = (self.X[rows[order]] - self.mean) * self.sign[rows[order], None]
        share, dual = 1 / len(places), self.norm.dual

        def project(v: Tensor, _: float = 0.0) -> Tensor:
            sides = v.tensor_split(ends) if len(places) == 2 else (v,)
            return torch.cat([ops.project_simplex(side, radius=share) for side in sides])

        def bounds(w: Tensor, _: Tensor, Aw: Tensor, Ap: Tensor) -> tuple[float, float]:
            sides = Aw.tensor_split(ends) if len(places) == 2 else (Aw,)
            margin = float(torch.stack([side.min() for side in sides]).mean())
            size = float(self.norm.size(w))
            return margin / size if margin > 0 else margin, float(dual.size(Ap))

        p = project(p[rows[order]])
        ratio = ratio or float(w.norm() / p.norm()) or 1.0
        found = solve_saddle(
            A, w, p, step_w=lambda v, _: self.norm.project(v), step_p=project, bounds=bounds,
            ratio=ratio, tol=tol, max_iter=max_iter, nothing=self.nothing,
        )  # fmt: skip
        size = float(self.norm.size(found.w)) if found.lower > 0 else 1.0
        back = torch.empty_like(found.p).index_copy_(0, order, found.p)
        return found.replace(w=found.w / size, p=back)
