"""Restarted Halpern iteration of primal-dual steps, for max_w min_p f(w) + ⟨p, Aw⟩ + g(p).

One step T is the primal-dual hybrid gradient of Chambolle and Pock (2011). It is taken twice its
length and averaged with an anchor,

    z ← k/(k+1) (2 T(z) - z) + 1/(k+1) z0,     z = (w, p),

and the anchor moves to T(z) when the step has become short (Lu and Yang, 2024, "Restarted Halpern
PDHG for linear programming"). On polyhedral problems the distance then falls geometrically. Matrix
products are those of T alone: what A does to z and z0 is averaged like them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHECK = 40  # steps between two looks at the bounds, each of which waits for the device
_SHORT, _SHORTER, _LONG = 0.2, 0.8, 0.36
"""A restart is due when the step is 0.2 of what it was after the last one; or 0.8 and growing again;
or when 0.36 of all steps were made since (Applegate et al., 2021, "PDLP")."""

Step = Callable[[Tensor, float], Tensor]
Bounds = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[float, float]]
"""Of (w, p, A w, Aᵀ p): a value that w attains, one that nobody exceeds by p, in the user's scale."""


@dataclass(frozen=True)
class Found:
    """The best w and the best p that were looked at, their bounds, and where the steps were left."""

    w: Tensor
    p: Tensor
    lower: float
    upper: float
    n_iter: int
    ratio: float | None

    def within(self, tol: float) -> bool:
        return self.upper < math.inf and self.upper - self.lower <= tol * abs(self.upper)

    def replace(self, **changed: Any) -> Found:
        return dataclasses.replace(self, **changed)


def solve_saddle(
    A: Tensor,
    w: Tensor,
    p: Tensor,
    *,
    step_w: Step,
    step_p: Step,
    bounds: Bounds,
    ratio: float,
    tol: float,
    max_iter: int,
    nothing: float = 0.0,
) -> Found:
    """Until upper - lower ≤ tol |upper|, or upper ≤ nothing, from (w, p).

    A [n, d]; step_w(v, τ) and step_p(v, σ) are the proxes of the two players; ``ratio`` is about
    ‖w‖₂/‖p‖₂ at the solution: it is improved at each restart.
    """
    d = A.shape[1]
    norm = float(spectral_norm(A))
    z, K = torch.cat([w, p]), torch.cat([A.T @ p, A @ w])
    T, KT = torch.empty_like(z), torch.empty_like(K)
    anchor, K_anchor = z.clone(), K.clone()
    best = Found(w, p, -math.inf, math.inf, 0, ratio)
    since, first, last = 0, math.inf, math.inf
    for n_iter in range(1, max_iter + 1):
        tau, sigma = ratio / norm, 1 / (ratio * norm)
        T[:d] = step_w(torch.add(z[:d], K[:d], alpha=tau), tau)
        torch.mv(A, T[:d], out=KT[d:])
        T[d:] = step_p(z[d:] - sigma * (2 * KT[d:] - K[d:]), sigma)
        torch.mv(A.T, T[d:], out=KT[:d])
        since += 1
        if n_iter % _CHECK == 0 or n_iter == max_iter:
            best = _better(best, T[:d], T[d:], *bounds(T[:d], T[d:], KT[d:], KT[:d]), n_iter, ratio)
            if best.within(tol) or best.upper <= nothing:
                break
            length = _length(T - z, KT[d:] - K[d:], ratio, norm)
            first = min(first, length) if since <= _CHECK else first
            growing = length <= _SHORTER * first and length > last
            if length <= _SHORT * first or growing or since >= _LONG * n_iter:
                z.copy_(T)
                K.copy_(KT)
                ratio = _balanced(z - anchor, d, ratio)
                anchor.copy_(z)
                K_anchor.copy_(K)
                since, first, last = 0, math.inf, math.inf
                continue
            last = length
        stay = since / (since + 1)
        z.mul_(-stay).add_(T, alpha=2 * stay).add_(anchor, alpha=1 - stay)
        K.mul_(-stay).add_(KT, alpha=2 * stay).add_(K_anchor, alpha=1 - stay)
    return best


def spectral_norm(A: Tensor) -> Tensor:
    """‖A‖₂ of matrices A [..., n, d], from 20 power steps, with 3 % on top: they come from below."""
    tiny = torch.finfo(A.dtype).tiny
    v = torch.randn(A.shape[-1], generator=torch.Generator().manual_seed(0)).to(A)
    v = v.expand(*A.shape[:-2], -1).unsqueeze(-1)
    for _ in range(20):
        v = A.mT @ (A @ (v / v.norm(dim=-2, keepdim=True).clamp(min=tiny)))
    return (1.03 * v.norm(dim=(-2, -1)).sqrt()).clamp(min=tiny)


def _better(
    best: Found, w: Tensor, p: Tensor, lower: float, upper: float, n_iter: int, ratio: float
) -> Found:
    w, lower = (w.clone(), lower) if lower > best.lower else (best.w, best.lower)
    p, upper = (p.clone(), upper) if upper < best.upper else (best.p, best.upper)
    return Found(w, p, lower, upper, n_iter, ratio)


def _length(move: Tensor, moved: Tensor, ratio: float, norm: float) -> float:
    """Of a step T(z) - z, in the metric in which T contracts: 1/τ, 1/σ, and A between them."""
    n = len(moved)
    dw, dp = move[:-n], move[-n:]
    square = norm / ratio * (dw @ dw) + norm * ratio * (dp @ dp) + 2 * (dp @ moved)
    return math.sqrt(max(0.0, float(square)))


def _balanced(move: Tensor, d: int, ratio: float) -> float:
    """Halfway, in logarithms, from the ratio in use to that of what the players moved."""
    dw, dp = float(move[:d].norm()), float(move[d:].norm())
    return math.sqrt(ratio * dw / dp) if dw > 0 and dp > 0 else ratio
