"""Exact solvers: linear programs (l1, linf), a least-distance problem (l2), a cone program (any of these
and Fourier-l1). Each returns w, b and the multipliers alpha, as the solver left them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import lstsq, qr
from scipy.optimize import linprog, nnls

from .duality import NotSeparableError, Problem

_FREE = 1e6  # how much cheaper the intercept is than w, in the least-distance problem
_INFEASIBLE = 2  # status of scipy's linprog


class Answer(NamedTuple):
    w: np.ndarray
    b: float
    alpha: np.ndarray
    n_iter: int


# --- l1, linf: linear programs


def solve_lp(problem: Problem) -> Answer:
    """By HiGHS, dual simplex: a vertex, so that what is zero is exactly zero.

    l1:   w = u - v,  min Σ(u + v)  over u, v ≥ 0.      linf:  min t  over  -t ≤ w ≤ t.
    """
    X, sign = problem.X.astype(np.float64, copy=False), problem.sign
    n, d = X.shape
    G = sign[:, None] * X
    if problem.norm.name == "l1":
        cost, lowest = np.ones(2 * d), np.zeros(2 * d)
        rows = sparse.csc_array(np.hstack([G, -G]))
    else:
        cost, lowest = np.r_[np.zeros(d), 1.0], np.full(d + 1, -np.inf)
        rows = sparse.csc_array(np.hstack([G, np.zeros((n, 1))]))
    # then the intercept, and a slack per example where C says what it costs
    extra = [sign[:, None]] if problem.intercept else []
    extra += [sparse.identity(n)] if problem.C is not None else []
    more = sum(block.shape[1] for block in extra)
    slacks = more - problem.intercept
    cost = np.r_[cost, np.zeros(more - slacks), np.full(slacks, problem.C or 0.0)]
    lowest = np.r_[lowest, np.full(more - slacks, -np.inf), np.zeros(slacks)]
    A, least = -sparse.hstack([rows, *extra], format="csc"), -np.ones(n)
    if problem.norm.name == "linf":
        box = sparse.hstack(
            [sparse.identity(d), np.full((d, 1), -1.0), sparse.csc_array((d, more))]
        )
        mirrored = box * np.r_[np.full(d, -1.0), np.ones(1 + more)]
        A, least = sparse.vstack([A, box, mirrored], format="csc"), np.r_[least, np.zeros(2 * d)]
    found = linprog(
        cost, A_ub=A, b_ub=least, bounds=np.c_[lowest, np.full(len(lowest), np.inf)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    )  # fmt: skip
    if found.status == _INFEASIBLE:
        raise NotSeparableError("the linear program has no solution")
    if found.x is None:
        raise RuntimeError(f"HiGHS found no solution: {found.message}")
    w = found.x[:d] - found.x[d : 2 * d] if problem.norm.name == "l1" else found.x[:d]
    b = float(found.x[len(cost) - more]) if problem.intercept else 0.0
    return Answer(w, b, -found.ineqlin.marginals[:n], int(found.nit))


def least_slack(problem: Problem) -> float:
    """min Σ max(0, 1 - y_i (w·x_i + b)) over all w and b, whatever their norm."""
    n, d = problem.X.shape
    columns = [problem.sign[:, None] * problem.X.astype(np.float64)]
    columns += [problem.sign[:, None]] if problem.intercept else []
    free = d + problem.intercept
    found = linprog(
        np.r_[np.zeros(free), np.ones(n)],
        A_ub=-sparse.hstack([sparse.csc_array(np.hstack(columns)), sparse.identity(n)]),
        b_ub=-np.ones(n),
        bounds=[(None, None)] * free + [(0, None)] * n,
        method="highs",
    )
    return float(found.fun)


# --- l2: the least-distance problem of Lawson and Hanson


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
