"""The exact margin in l2, as a least-distance problem (Lawson and Hanson)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import lstsq, qr
from scipy.optimize import nnls

from .duality import NotSeparableError, Problem

_FREE = 1e6  # how much cheaper the intercept is than w, in the least-distance problem


class Answer(NamedTuple):
    """w, b and multipliers alpha as a solver left them; `duality.settled` says what they are worth."""

    w: np.ndarray
    b: float
    alpha: np.ndarray
    n_iter: int


def solve_nnls(problem: Problem) -> Answer:
    """min_{u ≥ 0} ‖Σ u_i y_i (x_i, M)‖² + (1 - Σ u_i)², of which u has the direction of alpha.

    That is the hard problem with b/M in the norm: M is so large that rounding hides it, and the system
    of those examples that carry weight, solved once more without M, removes the rest.
    """
    X, sign = problem.X.astype(np.float64), problem.sign
    n, d = X.shape
    X = X - X.mean(0) if problem.intercept else X
    scale = float(np.sqrt((X * X).sum(1).mean())) or 1.0
    rows = (sign[:, None] * X / scale).T
    if d > n:  # distances are those of the triangular factor, of n rows
        rows = qr(rows, mode="r")[0][:n]
    parts = [rows, _FREE * sign[None]] if problem.intercept else [rows]
    E = np.vstack([*parts, np.ones((1, n))])
    f = np.r_[np.zeros(len(E) - 1), 1.0]
    u, _ = nnls(E, f, maxiter=max(3 * n, 1000))
    left = 1.0 - float(u.sum())  # the last entry of the residual, which is 0 where the hulls meet
    if not left > 1e-12:
        raise NotSeparableError("the convex hulls of the classes meet")
    carrying = np.flatnonzero(u > 0)
    alpha = np.zeros(n)
    alpha[carrying] = _on_the_margin(rows[:, carrying], sign[carrying], problem.intercept)
    if alpha.min() < -1e-9 * alpha.max() or not np.isfinite(alpha).all():
        alpha = u
    w = problem.combined(np.maximum(alpha, 0))
    return Answer(w, 0.0, alpha, len(carrying))


def _on_the_margin(rows: np.ndarray, sign: np.ndarray, intercept: bool) -> np.ndarray:
    """alpha with y_i (Σ alpha_j y_j x_j·x_i + b) = 1 for all of these, and Σ alpha y = 0."""
    gram = rows.T @ rows
    if not intercept:
        return lstsq(gram, np.ones(len(sign)))[0]
    system = np.block([[gram, sign[:, None]], [sign[None], np.zeros((1, 1))]])
    return lstsq(system, np.r_[np.ones(len(sign)), 0.0])[0][:-1]
