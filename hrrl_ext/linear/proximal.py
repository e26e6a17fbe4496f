"""Explicit regularisation: min_w mean_i ζ(w·a_i) + λ ‖w‖, the norm not squared (Faghri's thesis, 5.4).

As λ → 0, w/‖w‖ tends to the maximally robust classifier for perturbations of the dual norm (Theorem
5.4.1, Corollary 3). How soon depends on the loss. With a tail as exp(-m) the margins of the support
examples keep a spread of the order 1/log(1/λ). The hinge is an exact penalty: in the form
min_w ‖w‖ + C Σ_i (1 - w·a_i)₊, C = 1/(nλ), the multipliers α of the constraints w·a_i ≥ 1 are bounded
by C, and wherever the bound does not bind the solution is that of the constrained problem,

    for every λ ≤ 1/(n max_i α_i),  of which λ ≤ ε*/n is a case, since Σ_i α_i = 1/ε*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..norms import VectorNorm, vector_norm
from .losses import Hinge, MarginLoss, tail_loss
from .risk import checked_rows
from .saddle import spectral_norm
from .steepest import LinearFit, signed_rows

_CHECK = 40
"""Steps between two looks at convergence; each waits for the device."""
_ENOUGH, _LONG = 0.5, 0.36
"""PDHG restarts when the gap has fallen to half, or after so large a part of all steps."""


@dataclass(frozen=True)
class Regularised:
    """Solutions for R values of λ on each of P problems."""

    w: Tensor
    """[P, R, d]; all 0 where λ is too large for any classifier to pay"""
    bias: Tensor
    """[P, R]; 0 where there is none"""
    multipliers: Tensor
    """[P, R, n] α_i = -∂f/∂m_i / λ, which the hinge bounds by 1/(nλ)"""
    gap: Tensor
    """[P, R] relative duality gap; NaN where it was not asked for"""
    steps: int


@torch.no_grad()
def shrink(
    rows: Tensor,
    norm: str | VectorNorm,
    lam: float | Sequence[float] | Tensor,
    *,
    loss: str | MarginLoss = "logistic",
    y: Tensor | None = None,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
) -> Regularised:
    """FISTA with restart and a step size that is searched for, for all problems and λ in one loop.

    v = w + β (w - w₋),  w₊ = prox_{tλ‖·‖}(v - t ∇f(v)); t is halved where f(w₊) is above its quadratic
    model at v, and grows by a tenth where it is not: near the limit f is as flat as λ. The momentum
    starts anew when it points uphill (O'Donoghue & Candès, 2015).

    Args:
        rows: [n, d] or [P, n, d] signed rows y_i x_i.
        norm: l1, l2, linf, fourier-l1, fourier-linf.
        lam: λ > 0, one, R of them, or R for each problem as [P, R].
        loss: "logistic" or "exponential"; with "hinge", which is not smooth, use :func:`primal_dual`.
        y: [n] ±1, for a bias that is not in the norm.
        tol: of the relative duality gap, at which it stops; None goes on to ``max_steps``.
        max_steps: each is a trial of t.

    Deterministic; float64 is meant. ValueError for λ that are not positive.
    """
    norm, loss = vector_norm(norm), loss if isinstance(loss, MarginLoss) else tail_loss(loss)
    problem = _Problem.of("shrink", rows, norm, lam, y)
    w, theta, length = problem.zero(), problem.each(1.0), problem.each(1.0)
    v, step, gap = w, 0, problem.each(torch.nan).squeeze(-1)
    for step in range(1, max_steps + 1):
        m = v @ problem.rows.mT
        push = loss.shares(m) @ problem.rows
        new = problem.prox(v + length * push, length * problem.lam)
        move = new - v
        # f(new) - f(v) - ⟨∇f(v), move⟩, against ‖move‖²/2t; rounding of f itself is let through
        f, f_new = loss.value(m), loss.value(new @ problem.rows.mT)
        model = f - (push * move).sum(-1) + move.square().sum(-1) / (2 * length[..., 0])
        taken = (f_new <= model + 1e-15 * f.abs()).unsqueeze(-1)
        uphill = ((-move * (new - w)).sum(-1, keepdim=True) > 0) & taken
        theta_new = torch.where(uphill, 1.0, (1 + (1 + 4 * theta**2).sqrt()) / 2)
        beta = torch.where(uphill, 0.0, (theta - 1) / theta_new)
        v = torch.where(taken, new + beta * (new - w), v)
        w = torch.where(taken, new, w)
        theta = torch.where(taken, theta_new, theta)
        length = torch.where(taken, (1.1 * length).clamp(max=1e12), length / 2)
        if tol is not None and (step % _CHECK == 0 or step == max_steps):
            gap = problem.gap(w, loss.shares(w @ problem.rows.mT) / problem.lam, loss)
            if (gap <= tol).all():
                break
    multipliers = loss.shares(w @ problem.rows.mT) / problem.lam
    return Regularised(*problem.parted(w), multipliers, gap, step)


@torch.no_grad()
def primal_dual(
    rows: Tensor,
    norm: str | VectorNorm,
    lam: float | Sequence[float] | Tensor,
    *,
    y: Tensor | None = None,
    tol: float = 1e-8,
    max_steps: int = 100_000,
) -> Regularised:
    """The hinge: min_w max_{0 ≤ α ≤ C} ‖w‖ + Σ_i α_i (1 - w·a_i), C = 1/(nλ), by restarted PDHG.

    w₊ = prox_{τ‖·‖}(w + τ Aᵀα),  α₊ = clip(α + σ (1 - A(2w₊ - w)), 0, C),  τσ‖A‖² < 1 (Chambolle &
    Pock, 2011). As in PDLP (Applegate et al., 2021) it restarts from the better of the average and the
    last point, and the ratio of σ and τ follows how far either has moved since the last restart.

    Arguments as for :func:`shrink`; tol is the relative duality gap, measured at w for the hinge and at
    w / min_i w·a_i for the constraints, whichever is less. The gap bounds how far the margin is from that
    of the best classifier where λ is small enough for one without slack.
    """
    norm = vector_norm(norm)
    problem, hinge = _Problem.of("primal_dual", rows, norm, lam, y), Hinge()
    size = 1 / spectral_norm(problem.rows)[:, None, None]
    d, ratio = problem.rows.shape[2], problem.each(1.0)
    z = torch.cat([problem.zero(), problem.each(0.0).expand(-1, -1, problem.rows.shape[1])], -1)
    start, total, since, best, step = z, z, problem.each(0.0), problem.each(torch.inf), 0
    for step in range(1, max_steps + 1):
        w, alpha = z[..., :d], z[..., d:]
        new = problem.prox(w + size / ratio * (alpha @ problem.rows), size / ratio)
        alpha = alpha + size * ratio * (1 - (2 * new - w) @ problem.rows.mT)
        z = torch.cat([new, alpha.clamp(min=0).minimum(problem.bound)], -1)
        total, since = total + z, since + 1
        if step % _CHECK and step < max_steps:
            continue
        gaps = [problem.gap(p[..., :d], p[..., d:], hinge)[..., None] for p in (total / since, z)]
        gap = torch.minimum(*gaps)
        better = torch.where(gaps[0] < gaps[1], total / since, z)
        if (gap <= tol).all() or step == max_steps:
            z = better
            break
        anew = (gap <= _ENOUGH * best) | (since >= _LONG * step)
        moved = (better - start).split([d, z.shape[-1] - d], -1)
        moved_w, moved_alpha = (part.norm(dim=-1, keepdim=True) for part in moved)
        far = anew & (moved_w > 1e-12) & (moved_alpha > 1e-12)
        balanced = (ratio * moved_alpha / moved_w).sqrt().clamp(1e-6, 1e6)
        ratio, z = torch.where(far, balanced, ratio), torch.where(anew, better, z)
        start, total = torch.where(anew, z, start), torch.where(anew, 0.0, total)
        since, best = torch.where(anew, 0.0, since), torch.where(anew, gap, best)
    w, alpha = z[..., :d], z[..., d:]
    return Regularised(*problem.parted(w), alpha, problem.gap(w, alpha, hinge), step)


def fit_proximal(
    X: Tensor,
    y: Tensor,
    norm: str | VectorNorm,
    lam: float,
    *,
    loss: str = "hinge",
    fit_intercept: bool = True,
    tol: float = 1e-8,
    max_steps: int = 100_000,
) -> LinearFit:
    """min_{w,b} mean_i ζ(y_i (w·x_i + b)) + lam ‖w‖ of one problem: X [n, d], y [n] ±1.

    ``loss`` is "hinge" (:func:`primal_dual`), "logistic" or "exponential" (:func:`shrink`). The
    intercept as in :func:`fit_steepest`. Returns w, b and the multipliers.
    """
    rows, y, middle = signed_rows("fit_proximal", X, y, fit_intercept)
    bias = y if fit_intercept else None
    if loss == "hinge":
        found = primal_dual(rows, norm, lam, y=bias, tol=tol, max_steps=max_steps)
    else:
        found = shrink(rows, norm, lam, loss=loss, y=bias, tol=tol, max_steps=max_steps)
    w, b = found.w[0, 0], found.bias[0, 0]
    return LinearFit(w, b - w @ middle, found.multipliers[0, 0], found.steps)


@dataclass(frozen=True)
class _Problem:
    """Rows with a last column where there is a bias, which the prox leaves alone: y, times ``column``,
    the size of the other entries, so that steps do not depend on the unit of x."""

    rows: Tensor
    norm: VectorNorm
    lam: Tensor
    """[P, R, 1]"""
    y: Tensor | None
    column: Tensor
    """[P, 1]"""

    @classmethod
    def of(
        cls,
        where: str,
        rows: Tensor,
        norm: VectorNorm,
        lam: float | Sequence[float] | Tensor,
        y: Tensor | None,
    ) -> _Problem:
        rows = checked_rows(where, rows)
        lam = torch.as_tensor(lam, dtype=rows.dtype, device=rows.device)
        lam = lam.unsqueeze(-1) if lam.ndim == 2 else lam.reshape(1, -1, 1)
        if not (lam > 0).all() or not lam.isfinite().all():
            raise ValueError(
                f"{where}: lam must be positive and finite, got {lam.flatten().tolist()}"
            )
        column = rows.square().mean((-2, -1)).sqrt().unsqueeze(-1)
        column = torch.where(column > 0, column, 1.0)
        if y is not None:
            y = y.to(rows)
            rows = torch.cat([rows, (column * y).unsqueeze(-1)], -1)
        return cls(rows, norm, lam.expand(len(rows), -1, 1), y, column)

    @property
    def bound(self) -> Tensor:
        """C [P, R, 1]."""
        return 1 / (self.rows.shape[1] * self.lam)

    def zero(self) -> Tensor:
        return self.rows.new_zeros(*self.lam.shape[:2], self.rows.shape[2])

    def each(self, value: float) -> Tensor:
        return torch.full_like(self.lam, value)

    def prox(self, w: Tensor, step: Tensor) -> Tensor:
        if self.y is None:
            return self.norm.prox(w, step)
        return torch.cat([self.norm.prox(w[..., :-1], step), w[..., -1:]], -1)

    def parted(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w and the bias."""
        if self.y is None:
            return w, w.new_zeros(w.shape[:-1])
        return w[..., :-1], w[..., -1] * self.column

    def gap(self, w: Tensor, alpha: Tensor, loss: MarginLoss) -> Tensor:
        """[P, R] (upper - lower) / upper bound of min_w f + λ ‖w‖, of w and of multipliers."""
        m, lam = w @ self.rows.mT, self.lam.squeeze(-1)
        size, least = self.norm.size(self.parted(w)[0]), m.amin(-1)
        upper = loss.value(m) + lam * size
        if isinstance(loss, Hinge):  # that of w / min_i m_i, which has no slack, may be lower
            upper = torch.where(least > 0, torch.minimum(upper, lam * size / least), upper)
        if self.y is not None:  # Σ y α = 0 belongs to a bias: the heavier class is made lighter
            sums = [alpha[..., self.y > 0].sum(-1), alpha[..., self.y < 0].sum(-1)]
            light = torch.minimum(*sums)
            tiny = torch.finfo(light.dtype).tiny
            plus, minus = ((light / s.clamp(min=tiny)).unsqueeze(-1) for s in sums)
            alpha = alpha * torch.where(self.y > 0, plus, minus)
        pull = self.norm.dual.size(self.parted(alpha @ self.rows)[0]).clamp(min=1)
        lower = loss.dual(self.lam * alpha / pull.unsqueeze(-1))
        return (upper - lower) / upper
