"""Exact margins in l1 and linf by linear programs (HiGHS), small ones also for large data.

    l1:   w = u - v,  min Σ(u + v)  over u, v ≥ 0.      linf:  min t  over  -t ≤ w ≤ t.

At the solution few examples are on the margin, and few weights are free: in l1 the others are 0, in
linf they are ±t. Of large data the first-order solver guesses which; the program of these alone is
solved, what it violates joins it, and this until the gap on all data is none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog

from .duality import NotSeparableError, Problem, settled
from .exact import Answer
from .first_order import fit_separable

_WHOLE = 100_000  # entries of X up to which the program is solved as it is, in well under a second
_GUESS = 0.02  # gap of the first-order solver, from which the program starts
_EXACT = 1e-10  # gap at which nothing is missing
_JOIN = 200  # examples, or weights, that at least may join in a round
_INFEASIBLE = 2  # status of scipy's linprog


def solve_lp(problem: Problem) -> Answer:
    """A vertex, by the dual simplex method: what is zero is exactly zero."""
    if problem.C is None and problem.X.size > _WHOLE:
        return _by_parts(problem)
    return solve_whole(problem)


def solve_whole(problem: Problem) -> Answer:
    """The program of all examples and weights, with slack where there is a C."""
    G = problem.sign[:, None] * problem.X.astype(np.float64)
    w, _, b, alpha, n_iter = _program(problem, G, problem.sign, None)
    return Answer(w, b, alpha, n_iter)


class _Vertex(NamedTuple):
    w: np.ndarray
    t: float
    b: float
    alpha: np.ndarray
    n_iter: int


def _program(problem: Problem, G: np.ndarray, sign: np.ndarray, rest: np.ndarray | None) -> _Vertex:
    """Of signed rows G [n, d]; ``rest`` [n] is what the weights that are ±t add, for t = 1 (linf)."""
    n, d = G.shape
    is_l1 = problem.norm.name == "l1"
    if is_l1:
        cost, lowest = np.ones(2 * d), np.zeros(2 * d)
        rows = np.hstack([G, -G])
    else:
        cost, lowest = np.r_[np.zeros(d), 1.0], np.r_[np.full(d, -np.inf), 0.0]
        rows = np.hstack([G, np.zeros((n, 1)) if rest is None else rest[:, None]])
    # then the intercept, and a slack per example where C says what it costs
    free, slacks = int(problem.intercept), n if problem.C is not None else 0
    extra = [sparse.csc_array(sign[:, None])] if free else []
    extra += [sparse.identity(n)] if slacks else []
    cost = np.r_[cost, np.zeros(free), np.full(slacks, problem.C or 0.0)]
    lowest = np.r_[lowest, np.full(free, -np.inf), np.zeros(slacks)]
    A, most = -sparse.hstack([sparse.csc_array(rows), *extra], format="csc"), -np.ones(n)
    if not is_l1:
        minus_t, none = np.full((d, 1), -1.0), sparse.csc_array((d, free + slacks))
        box = [sparse.hstack([s * sparse.identity(d), minus_t, none]) for s in (1, -1)]
        A, most = sparse.vstack([A, *box], format="csc"), np.r_[most, np.zeros(2 * d)]
    found = linprog(
        cost, A_ub=A, b_ub=most, bounds=np.c_[lowest, np.full(len(lowest), np.inf)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    )  # fmt: skip
    if found.status == _INFEASIBLE:
        raise NotSeparableError("the linear program has no solution")
    if found.x is None:
        raise RuntimeError(f"HiGHS found no solution: {found.message}")
    x, at = found.x, 2 * d if is_l1 else d + 1
    w = x[:d] - x[d : 2 * d] if is_l1 else x[:d]
    b = float(x[at]) if free else 0.0
    return _Vertex(
        w, 0.0 if is_l1 else float(x[d]), b, -found.ineqlin.marginals[:n], int(found.nit)
    )


def _by_parts(problem: Problem) -> Answer:
    X, sign = problem.X, problem.sign
    is_l1 = problem.norm.name == "l1"
    guess = fit_separable(
        torch.from_numpy(np.require(X, requirements="W")), torch.from_numpy(sign), problem.norm,
        intercept=problem.intercept, tol=_GUESS,
    )  # fmt: skip
    w, alpha = (v.numpy().astype(np.float64) for v in (guess.w, guess.p))
    pull = problem.combined(alpha)  # where ‖·‖* has its slope: sign and size of what w gains
    rows = alpha > 0
    inner = w != 0 if is_l1 else np.abs(w) < (1 - 1e-6) * np.abs(w).max()
    order = np.argsort(-np.abs(pull) if is_l1 else np.abs(pull), kind="stable")
    # the weights that are free, n at most, and those with the least to lose by being so
    columns = inner & (np.cumsum(inner[order])[np.argsort(order)] <= len(sign))
    columns[order[: int(rows.sum())]] = True
    side = np.where(pull >= 0, 1.0, -1.0)
    n_iter = guess.n_iter
    while True:
        part = sign[rows, None] * X[rows].astype(np.float64)
        rest = None if is_l1 else part[:, ~columns] @ side[~columns]
        try:
            found = _program(problem, part[:, columns], sign[rows], rest)
        except NotSeparableError:
            if columns.all():
                raise
            columns[:] = True  # the weights that were guessed do not do: all of them
            continue
        n_iter += found.n_iter
        w = np.where(columns, 0.0, 0.0 if is_l1 else found.t * side)
        w[columns] = found.w
        alpha = np.zeros(len(sign))
        alpha[rows] = found.alpha
        short = 1 - sign * (problem.scores(w) + found.b)
        pull = problem.combined(alpha)
        outside = np.abs(pull) - 1 if is_l1 else -side * pull
        grown = _joined(rows, short, 1e-9), _joined(columns, outside, 0.0 if not is_l1 else 1e-9)
        nobody = (grown[0] == rows).all() and (grown[1] == columns).all()
        if nobody or _gap(problem, w, found.b, alpha) <= _EXACT:
            return Answer(w, found.b, alpha, n_iter)
        rows, columns = grown


def _joined(there: np.ndarray, violation: np.ndarray, allowed: float) -> np.ndarray:
    """With those outside that violate most; as many as half of what is there, at least `_JOIN`."""
    outside = np.flatnonzero(~there & (violation > allowed))
    worst = outside[np.argsort(-violation[outside], kind="stable")]
    joined = there.copy()
    joined[worst[: max(_JOIN, int(there.sum()) // 2)]] = True
    return joined


def _gap(problem: Problem, w: np.ndarray, b: float, alpha: np.ndarray) -> float:
    try:
        return settled(problem, w, b, alpha, 0).gap
    except NotSeparableError:
        return np.inf  # of the rows of the program alone it is


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
