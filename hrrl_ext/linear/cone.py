"""The cone program of l2 and Fourier-l1, by Clarabel (extra "solvers"); soft problems too.

    min Σ_k c_k t_k + C Σ ξ_i    s.t.  ‖z_k‖₂ ≤ t_k,   y_i (w·x_i + b) ≥ 1 - ξ_i,   ξ ≥ 0

l2 has one cone, z = w. Fourier-l1 has one of two entries for each frequency of the half spectrum, the
real and the imaginary part of ŵ_k, with c_k = 2 since -k has the same modulus; DC and, for even d,
Nyquist have a real part alone and c_k = 1. With F unitary, w·x = Σ_k c_k Re(conj(ŵ_k) x̂_k).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from .duality import NotSeparableError, Problem
from .exact import Answer

_TIGHT = 1e-12  # of Clarabel; its own 1e-8 leave a gap of 1e-6 where margins are small


def solve_socp(problem: Problem) -> Answer:
    """ImportError without Clarabel."""
    try:
        import clarabel
    except ImportError as error:
        raise ImportError(
            "solver='socp' needs Clarabel: pip install 'hrrl_ext[solvers]'; solver='first-order' "
            "needs nothing and stops at the gap tol"
        ) from error
    basis = _Basis.of(problem)
    n, sign = len(problem.X), problem.sign
    entries, cones = basis.rows.shape[1], len(basis.sizes)
    soft, free = problem.C is not None, int(problem.intercept)
    # variables: z, t, b, ξ
    cost = np.r_[
        np.zeros(entries), basis.weight, np.zeros(free), np.full(n * soft, problem.C or 0.0)
    ]
    margin = sparse.hstack([
        sparse.csc_array(sign[:, None] * basis.rows), sparse.csc_array((n, cones)),
        *([sign[:, None]] if free else []), *([sparse.identity(n)] if soft else []),
    ])  # fmt: skip
    blocks, right = [-margin], [-np.ones(n)]
    kinds = [clarabel.NonnegativeConeT(n)]
    if soft:
        blocks.append(
            sparse.hstack([sparse.csc_array((n, entries + cones + free)), -sparse.identity(n)])
        )
        right.append(np.zeros(n))
        kinds.append(clarabel.NonnegativeConeT(n))
    blocks.append(basis.cone_rows(len(cost)))
    right.append(np.zeros(entries + cones))
    kinds += [clarabel.SecondOrderConeT(1 + int(size)) for size in basis.sizes]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _TIGHT
    size = len(cost)
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix((size, size)), cost, sparse.csc_matrix(sparse.vstack(blocks)),
        np.concatenate(right), kinds, settings,
    )  # fmt: skip
    found = solver.solve()
    status = str(found.status)
    if "PrimalInfeasible" in status:
        raise NotSeparableError("the cone program has no solution")
    if "Solved" not in status and "InsufficientProgress" not in status:
        raise RuntimeError(f"Clarabel found no solution: {status}")
    x, alpha = np.array(found.x), np.array(found.z)[:n]
    alpha[alpha < 1e-7 * alpha.max()] = 0  # an interior point leaves a little everywhere
    b = float(x[entries + cones]) if free else 0.0
    return Answer(basis.vector(x[:entries]), b, alpha, int(found.iterations))


class _Basis:
    """w by the entries z, cone by cone."""

    def __init__(self, rows: np.ndarray, weight: np.ndarray, sizes: np.ndarray, d: int) -> None:
        self.rows, self.weight, self.sizes, self.d = rows, weight, sizes, d

    @classmethod
    def of(cls, problem: Problem) -> _Basis:
        X = problem.X.astype(np.float64)
        n, d = X.shape
        if problem.norm.name == "l2":
            return cls(X, np.ones(1), np.array([d]), d)
        spectrum = np.fft.rfft(X, norm="ortho")
        k = np.arange(spectrum.shape[1])
        weight = np.where((k == 0) | (2 * k == d), 1.0, 2.0)
        sizes = weight.astype(int)  # entries: as many as frequencies that share the modulus
        parts = np.stack([spectrum.real, spectrum.imag], 2) * weight[:, None]
        return cls(parts.reshape(n, -1)[:, _kept(sizes)], weight, sizes, d)

    def cone_rows(self, variables: int) -> sparse.csc_array:
        """Of -(t_k, z_k) for each cone in turn: Clarabel wants right - A x in the cone."""
        entries = int(self.sizes.sum())
        t = entries + np.arange(len(self.sizes))
        begins = np.cumsum(self.sizes) - self.sizes
        order = np.insert(np.arange(entries), begins, t)
        shape = (len(order), variables)
        return sparse.csc_array((np.full(len(order), -1.0), (np.arange(len(order)), order)), shape)

    def vector(self, z: np.ndarray) -> np.ndarray:
        if len(self.sizes) == 1:  # l2; or d = 1, where F is the identity
            return z
        parts = np.zeros(2 * len(self.sizes))
        parts[_kept(self.sizes)] = z
        return np.fft.irfft(parts[::2] + 1j * parts[1::2], n=self.d, norm="ortho")


def _kept(sizes: np.ndarray) -> np.ndarray:
    """Of pairs (real, imaginary), one after the other: all but the imaginary part that is always 0."""
    return np.stack([np.full(len(sizes), True), sizes == 2], 1).ravel()
