"""Which solver, and its answer with the gap that the data say it has."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from ..spec import not_known
from .cone import solve_socp
from .duality import NotSeparableError, Problem, Solution, settled
from .exact import Answer, solve_lp, solve_nnls
from .first_order import fit_hard, fit_soft

Solver = Literal["auto", "lp", "nnls", "socp", "first-order"]

_NORMS_OF: dict[str, tuple[str, ...]] = {
    "lp": ("l1", "linf"),
    "nnls": ("l2",),
    "socp": ("l2", "fourier-l1"),
    "first-order": ("l1", "l2", "linf", "fourier-l1"),
}
_EXACT: dict[str, Callable[[Problem], Answer]] = {
    "lp": solve_lp,
    "nnls": solve_nnls,
    "socp": solve_socp,
}
_LARGEST = {"lp": 500_000, "nnls": 5_000_000, "socp": 200_000}
"""Entries of X up to which each takes seconds, not minutes (docs/linear.md)."""
_GAP = 1e-3  # of the first-order solver, where no tol is given
_SINGLE = 1e-4  # gaps down to here are sought in float32


def choose(problem: Problem, solver: str) -> str:
    """The solver by name, "auto" resolved; ValueError where it cannot solve the problem."""
    norm, soft = problem.norm.name, problem.C is not None
    if solver == "auto":
        exact = "nnls" if norm == "l2" and not soft else "socp"
        exact = "lp" if norm in _NORMS_OF["lp"] else exact
        there = exact != "socp" or importlib.util.find_spec("clarabel") is not None
        return exact if there and problem.X.size <= _LARGEST[exact] else "first-order"
    if solver not in _NORMS_OF:
        raise ValueError(f"MaxMarginClassifier: solver {not_known(solver, ['auto', *_NORMS_OF])}")
    if norm not in _NORMS_OF[solver]:
        able = [name for name, norms in _NORMS_OF.items() if norm in norms]
        raise ValueError(
            f"MaxMarginClassifier: solver {solver!r} solves norm {' and '.join(_NORMS_OF[solver])}, "
            f"got norm={norm!r}; use {' or '.join(map(repr, able))}, or 'auto'"
        )
    if solver == "nnls" and soft:
        raise ValueError(
            "MaxMarginClassifier: solver 'nnls' has no slack, got C; use 'socp', 'first-order' or 'auto'"
        )
    return solver


def solve(
    problem: Problem,
    solver: str,
    *,
    tol: float | None = None,
    max_iter: int = 100_000,
    device: torch.device | str = "cpu",
) -> Solution:
    """NotSeparableError where a hard problem has no solution; ConvergenceWarning at max_iter."""
    solver = choose(problem, solver)
    if solver != "first-order":
        return settled(problem, *_EXACT[solver](problem))
    tol = _GAP if tol is None else tol
    dtype = torch.float32 if tol >= _SINGLE else torch.float64
    X = torch.from_numpy(np.require(problem.X, requirements="W")).to(device, dtype)
    sign = torch.from_numpy(problem.sign).to(device)
    if problem.C is None:
        found = fit_hard(
            X, sign, problem.norm, intercept=problem.intercept, tol=tol, max_iter=max_iter
        )
        if not found.separable:
            raise NotSeparableError("the convex hulls of the classes meet")
        if not found.lower > 0:
            raise NotSeparableError(
                f"in {found.n_iter} iterations no separating hyperplane was found, though there may be "
                f"one with a margin of up to {found.upper:.3g}; raise max_iter"
            )
    else:
        found = fit_soft(
            X,
            sign,
            problem.norm,
            problem.C,
            intercept=problem.intercept,
            tol=tol,
            max_iter=max_iter,
        )
    w, alpha = (v.cpu().numpy().astype(np.float64) for v in (found.w, found.p))
    solution = settled(problem, w, found.b, alpha, found.n_iter)
    if not found.met:
        warnings.warn(
            f"MaxMarginClassifier: after {found.n_iter} iterations the gap is {solution.gap:.2g}, "
            f"wanted {tol:.2g}; raise max_iter or tol. The radius is that of the classifier found",
            ConvergenceWarning,
            stacklevel=4,
        )
    return solution
