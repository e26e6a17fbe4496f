"""The problem, and what any solver's answer is worth: both sides of it, computed from the data alone.

    hard    min_{w,b} ‖w‖               s.t.  y_i (w·x_i + b) ≥ 1                    (Eq. 5.6)
            max_α Σ α_i                 s.t.  α ≥ 0,  ‖Σ α_i y_i x_i‖* ≤ 1,  Σ α_i y_i = 0
    soft    min_{w,b} ‖w‖ + C Σ max(0, 1 - y_i (w·x_i + b)),  and the same dual with  α ≤ C   (Eq. B.2)

The two sides are equal at the solution, where ε* = 1/‖w‖ = 1/Σα. Without an intercept b is 0 and
Σ α_i y_i is free. An α of the hard problem is also the soft one's as soon as C ≥ max α: the solution of
the soft problem is then exactly the maximally robust classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..norms import VectorNorm

ROUNDING = 1e-12  # relative, of what a soft problem costs
_ROWS = 8192  # of X that are widened to float64 at once


@dataclass(frozen=True)
class Problem:
    """X [n, d] in float32 or float64, sign [n] of ±1, both there; C None: the hard problem."""

    X: np.ndarray
    sign: np.ndarray
    norm: VectorNorm
    intercept: bool = True
    C: float | None = None

    def scores(self, w: np.ndarray) -> np.ndarray:
        """w·x_i [n] in float64."""
        return np.concatenate([rows @ w for rows in self._wide()])

    def combined(self, alpha: np.ndarray) -> np.ndarray:
        """Σ α_i y_i x_i [d] in float64."""
        weight = alpha * self.sign
        parts = zip(self._wide(), range(0, len(weight), _ROWS), strict=True)
        return sum(
            (weight[at : at + _ROWS] @ rows for rows, at in parts), np.zeros(self.X.shape[1])
        )

    def _wide(self) -> Iterator[np.ndarray]:
        for at in range(0, len(self.X), _ROWS):
            yield self.X[at : at + _ROWS].astype(np.float64, copy=False)


@dataclass(frozen=True)
class Solution:
    """w [d], b, and multipliers alpha [n] ≥ 0, feasible in the problem and in its dual."""

    w: np.ndarray
    b: float
    alpha: np.ndarray
    primal: float
    dual: float
    n_iter: int

    @property
    def gap(self) -> float:
        """(primal - dual) / primal: at most so much is missing to the optimum."""
        return (self.primal - self.dual) / self.primal if self.primal else 0.0


class NotSeparableError(ValueError):
    """No hyperplane has the classes on its two sides."""


def settled(problem: Problem, w: np.ndarray, b: float, alpha: np.ndarray, n_iter: int) -> Solution:
    """A solver's answer as a `Solution`; NotSeparableError where a hard w does not separate."""
    scores = problem.scores(w)
    if problem.C is None:
        if problem.intercept:
            b, margin = best_intercept(scores, problem.sign)
        else:
            b, margin = 0.0, float((problem.sign * scores).min())
        if not margin > 0:
            raise NotSeparableError("the classes are not separated")
        w, b = w / margin, b / margin
        primal = size(problem.norm, w)
    else:
        margins = problem.sign * (scores + b)
        length, slack = size(problem.norm, w), float(np.maximum(0, 1 - margins).sum())
        primal = length + problem.C * slack
        if (least := float(margins.min())) > 0 and length / least < primal:  # better without slack
            w, b, primal = w / least, b / least, length / least
        b_alone, nothing = _without_weights(problem)
        if nothing <= primal * (1 + ROUNDING):  # an interior point is never quite at w = 0
            w, b, primal = np.zeros_like(w), b_alone, nothing
    alpha = _feasible(problem, np.asarray(alpha, dtype=np.float64))
    return Solution(w, float(b), alpha, primal, float(alpha.sum()), n_iter)


def size(norm: VectorNorm, w: np.ndarray) -> float:
    return float(norm.size(torch.from_numpy(w)))


def best_intercept(scores: np.ndarray, sign: np.ndarray) -> tuple[float, float]:
    """The b halfway between the classes, and the margin it leaves: below 0 where they overlap."""
    low, high = float(scores[sign > 0].min()), float(scores[sign < 0].max())
    return -(low + high) / 2, (low - high) / 2


def _without_weights(problem: Problem) -> tuple[float, float]:
    """The best b for w = 0, and what all slack costs then."""
    counts = [int((problem.sign == s).sum()) for s in (1, -1)]
    if not problem.intercept:
        return 0.0, float(problem.C or 0) * sum(counts)
    return float(np.sign(counts[0] - counts[1])), float(problem.C or 0) * 2 * min(counts)


def _feasible(problem: Problem, alpha: np.ndarray) -> np.ndarray:
    """The multiple of it that is largest in the dual's set, its classes first brought to one sum."""
    alpha = np.maximum(alpha, 0)
    if problem.intercept:
        sides = [problem.sign > 0, problem.sign < 0]
        sums = [float(alpha[side].sum()) for side in sides]
        if min(sums) <= 0:
            return np.zeros_like(alpha)
        for side, total in zip(sides, sums, strict=True):
            alpha[side] *= min(sums) / total
    length = size(problem.norm.dual, problem.combined(alpha))
    largest = float(alpha.max(initial=0.0))
    limits = [1 / length] if length > 0 else []
    if problem.C is not None and largest > 0:
        limits.append(problem.C / largest)
    return alpha * min(limits, default=0.0)
