"""Separable problems whose answers are known by another route."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

DUALS = {"l1": "linf", "l2": "l2", "linf": "l1", "fourier-l1": "fourier-linf"}


def noise_rows(n: int, d: int = 100, seed: int = 0) -> Tensor:
    """Signed rows of the thesis's data: X ~ N(0, I), y = sign(X w*)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return torch.from_numpy(np.sign(X @ rng.standard_normal(d))[:, None] * X)


def largest_radius(rows: Tensor, norm: str) -> float:
    """1/min ‖w‖ s.t. rows w ≥ 1, by scipy: a linear program, or least squares with signs for l2."""
    a = rows.numpy()
    n, d = a.shape
    if norm == "l2":
        u, _ = nnls(np.vstack([a.T, np.ones(n)]), np.r_[np.zeros(d), 1.0])
        w = -(a.T @ u) / (u.sum() - 1)
        return float(1 / np.linalg.norm(w))
    if norm == "l1":
        found = linprog(np.ones(2 * d), A_ub=-np.hstack([a, -a]), b_ub=-np.ones(n))
    else:
        eye, one = np.eye(d), np.ones((d, 1))
        rows_ub = np.block([[-a, np.zeros((n, 1))], [eye, -one], [-eye, -one]])
        right = np.r_[-np.ones(n), np.zeros(2 * d)]
        found = linprog(np.r_[np.zeros(d), 1.0], rows_ub, right, bounds=[(None, None)] * (d + 1))
    return float(1 / found.fun)
