"""Which solver, and its answer with the gap that the data say it has."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ..spec import not_known
from .cone import solve_socp
from .duality import ROUNDING, NotSeparableError, Problem, Solution, settled
from .exact import Answer, solve_nnls
from .first_order import SINGLE, fit_separable
from .programs import solve_lp
from .proximal import fit_proximal
from .steepest import LinearFit, fit_steepest

Solver = Literal["auto", "lp", "nnls", "socp", "first-order", "steepest", "prox"]

NORMS = ("l1", "l2", "linf", "fourier-l1")
_NORMS_OF: dict[str, tuple[str, ...]] = {
    "lp": ("l1", "linf"),
    "nnls": ("l2",),
    "socp": ("l2", "fourier-l1"),
    "first-order": NORMS,
    "steepest": NORMS,
    "prox": NORMS,
}
WITHOUT_SLACK = ("nnls", "steepest")
_EXACT: dict[str, Callable[[Problem], Answer]] = {
    "lp": solve_lp,
    "nnls": solve_nnls,
    "socp": solve_socp,
}
_LARGEST = {"nnls": 5_000_000, "socp": 200_000, "soft lp": 200_000}
_NARROW = 600
"""Entries of X, and for a hard "lp" its lesser side, up to which each takes seconds, not minutes."""
_GAP = 1e-3  # of the first-order solver, where no tol is given
_SMALLEST = 1e-9  # lam that is tried, in units of the largest


def choose(problem: Problem, solver: str) -> str:
    """The solver by name, "auto" resolved; ValueError where it cannot solve the problem."""
    norm, soft = problem.norm.name, problem.C is not None
    if solver == "auto":
        exact = "nnls" if norm == "l2" and not soft else "socp"
        exact = "lp" if norm in _NORMS_OF["lp"] else exact
        return exact if _is_quick(problem, exact) else "first-order"
    if solver not in _NORMS_OF:
        raise ValueError(f"MaxMarginClassifier: solver {not_known(solver, ['auto', *_NORMS_OF])}")
    if norm not in _NORMS_OF[solver]:
        able = [name for name, norms in _NORMS_OF.items() if norm in norms]
        raise ValueError(
            f"MaxMarginClassifier: solver {solver!r} solves norm {' and '.join(_NORMS_OF[solver])}, "
            f"got norm={norm!r}; use {' or '.join(map(repr, able))}, or 'auto'"
        )
    if solver in WITHOUT_SLACK and soft:
        raise ValueError(
            f"MaxMarginClassifier: solver {solver!r} has no slack, got C; use 'first-order' or 'auto'"
        )
    return solver


def _is_quick(problem: Problem, exact: str) -> bool:
    if exact == "lp" and problem.C is None:
        return min(problem.X.shape) <= _NARROW
    if exact == "socp" and importlib.util.find_spec("clarabel") is None:
        return False
    return problem.X.size <= _LARGEST["soft lp" if exact == "lp" else exact]


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
    if solver in _EXACT:
        return settled(problem, *_EXACT[solver](problem))
    tol = _GAP if tol is None else tol
    X = torch.from_numpy(np.require(problem.X, requirements="W")).to(device)
    sign = torch.from_numpy(problem.sign).to(device)
    if solver == "steepest":
        fit = fit_steepest(
            X.double(), sign, problem.norm, fit_intercept=problem.intercept, steps=max_iter
        )
        return _settled(problem, fit)
    if problem.C is not None:
        n, d = problem.X.shape
        # where C is so small that w = 0, steps of C would take long to a b of 1
        nothing = settled(problem, np.zeros(d), 0.0, np.full(n, problem.C), 0)
        if nothing.gap <= ROUNDING:
            return nothing
        single = solver == "first-order" and tol >= SINGLE
        lam = 1 / (len(sign) * problem.C)
        solution = _penalised(
            problem, X.float() if single else X.double(), sign, lam, tol, max_iter
        )
    elif solver == "first-order":
        solution = _first_order(problem, X, sign, tol, max_iter)
    else:
        solution = _proximal(problem, X.double(), sign, tol, max_iter)
    if solution.gap > tol and solution.n_iter >= max_iter:
        warnings.warn(
            f"MaxMarginClassifier: after {solution.n_iter} iterations the gap is {solution.gap:.2g}, "
            f"wanted {tol:.2g}; raise max_iter or tol. The radius is that of the classifier found",
            ConvergenceWarning,
            stacklevel=4,
        )
    return solution


def _first_order(problem: Problem, X: Tensor, sign: Tensor, tol: float, max_iter: int) -> Solution:
    found = fit_separable(
        X, sign, problem.norm, intercept=problem.intercept, tol=tol, max_iter=max_iter
    )
    if not found.lower > 0:
        raise NotSeparableError(
            f"in {found.n_iter} iterations no separating hyperplane was found, though there may be "
            f"one with a margin of up to {found.upper:.3g}; raise max_iter"
        )
    return settled(problem, _wide(found.w), found.b, _wide(found.p), found.n_iter)


def _proximal(problem: Problem, X: Tensor, sign: Tensor, tol: float, max_iter: int) -> Solution:
    """The hinge at a lam so small that it is exact.

    lam ≤ ε*/n is, since Σα = 1/ε*; and so is lam ≤ r/n with the radius r of any classifier, which is
    at most ε*. It begins at the largest ‖x_i‖*/n, and goes on from what it finds.
    """
    n = len(sign)
    centred = X - X.mean(0) if problem.intercept else X
    top = lam = float(problem.norm.dual.size(centred).max()) / n
    while lam > _SMALLEST * top:
        try:
            solution = _penalised(problem, X, sign, lam, tol, max_iter)
        except NotSeparableError:
            lam /= 10
            continue
        if lam <= (exact := 1 / (n * solution.primal)):
            return solution
        lam = exact
    raise NotSeparableError(f"no lam down to {lam:.1g} has led to a hyperplane that separates")


def _penalised(
    problem: Problem, X: Tensor, sign: Tensor, lam: float, tol: float, max_iter: int
) -> Solution:
    """min mean hinge + lam ‖w‖, as an answer to the problem."""
    fit = fit_proximal(
        X, sign, problem.norm, lam, fit_intercept=problem.intercept, tol=tol, max_steps=max_iter
    )
    return _settled(problem, fit)


def _settled(problem: Problem, fit: LinearFit) -> Solution:
    return settled(problem, _wide(fit.w), float(fit.b), _wide(fit.alpha), fit.steps)


def _wide(v: Tensor) -> np.ndarray:
    return v.detach().cpu().numpy().astype(np.float64)
