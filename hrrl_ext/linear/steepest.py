"""Steepest descent in a norm, of many runs at once (Faghri's thesis, Eq. 5.7).

    Δθ ∈ argmin_v ⟨∇f, v⟩ + ½ ‖v‖²  =  -‖∇f‖* v̂,     v̂ ∈ argmax of ⟨∇f, v⟩ over ‖v‖ ≤ 1

On separable examples and a loss with exponential tail, θ = w grows without bound in the direction of the
largest margin for that norm,

    lim_t min_i w_t·a_i / ‖w_t‖  =  max_{‖w‖ ≤ 1} min_i w·a_i                                 (Eq. 5.8)

(Gunasekar et al., ICML 2018; Telgarsky, ICML 2013, for coordinate descent), which withstands the largest
perturbation of the dual norm (Corollary 1):

    l2    gradient descent                                robust to l2
    linf  sign gradient descent                           robust to l1
    l1    coordinate descent, one coordinate a step       robust to linf
    fourier-l1   one frequency a step                     robust to fourier-linf
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..norms import VectorNorm, vector_norm
from ..spec import not_known
from .losses import FreeExponential
from .risk import Risk, linear_risk, radius

Rule = Literal["constant", "normalised", "armijo"]
RULES = ("constant", "normalised", "armijo")

_SUFFICIENT = 0.1
"""Part of the decrease that the slope promises which an Armijo step must bring."""
_GROWTH = 1.1
"""Of the length to try, after a step that was taken; one that was not halves it."""
_LENGTHS = torch.tensor([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
"""Of a step, in the units of 1/R, that fit_steepest tries: the best are some 0.3 to 3."""


@dataclass(frozen=True)
class Descent:
    """Where descent went: R runs on each of P problems."""

    theta: Tensor
    """[P, R, D] the last parameters"""
    w: Tensor
    """[P, R, d] the linear classifiers that they are"""
    log_loss: Tensor
    """[P, R] log f"""
    recorded: tuple[int, ...]
    """the steps after which margins were taken"""
    margins: Tensor
    """[len(recorded), P, R] min_i w·a_i / ‖w‖, on clean examples; NaN where a run diverged, or w = 0"""


@torch.no_grad()
def descend(
    risk: Risk,
    theta: Tensor,
    norm: str | VectorNorm,
    *,
    lr: float | Sequence[float] | Tensor = 0.1,
    steps: int = 10_000,
    rule: Rule = "normalised",
    record: Sequence[int] = (),
    margin_norm: str | VectorNorm | None = None,
) -> Descent:
    """θ ← θ - γ_t ‖∇f‖* v̂, ``steps`` times, for all problems and learning rates in one loop.

    Args:
        risk: such as :func:`linear_risk`.
        theta: where to start, [P, D], the same for all learning rates, or [P, R, D].
        norm: that of the step: l1, l2, linf, fourier-l1, fourier-linf, or l1.5 and the like. Of tied
            coordinates the lowest moves.
        lr: γ, one or R of them.
        rule: γ_t.
            "constant": γ. As f falls so do the steps, and the margin rises as slowly as 1/log t.
            "normalised": γ/‖∇f‖*, steps of length γ. The margin rises like 1/t up to a width of γ.
            "armijo": tried lengths, at most γ; log f must fall by a tenth of what its slope promises. A
            length that fails is halved, and after one that did not the next is 1.1 of it. Each trial
            counts as a step. γ is in units of 1/f.
        record: the steps after which the margin is taken, besides the last.
        margin_norm: ‖·‖ of the recorded margins, if not ``norm``.

    Deterministic; computed in the dtype of θ, float64 to be near the limit. A run that diverges ends as
    NaN and leaves the others alone. ValueError for settings that are out of range.
    """
    norm = vector_norm(norm)
    measure = norm if margin_norm is None else vector_norm(margin_norm)
    _check(steps, rule, record)
    rates = torch.as_tensor(lr, dtype=theta.dtype, device=theta.device).reshape(-1)
    if not (rates > 0).all() or not rates.isfinite().all():
        raise ValueError(f"descend: lr must be positive and finite, got {rates.tolist()}")
    if theta.ndim == 2:
        theta = theta.unsqueeze(1).expand(-1, len(rates), -1)
    length = rates.expand(theta.shape[:2])
    recorded = sorted({*record, steps})
    margins: list[Tensor] = []
    log_f, rise = risk(theta)
    for step in range(1, steps + 1):
        push, slope = norm.steepest(rise), norm.dual.size(rise)
        if rule == "armijo":
            trial = theta + (length * slope).unsqueeze(-1) * push
            trial_f, trial_rise = risk(trial)
            taken = trial_f <= log_f - _SUFFICIENT * length * slope**2
            theta = torch.where(taken.unsqueeze(-1), trial, theta)
            rise = torch.where(taken.unsqueeze(-1), trial_rise, rise)
            log_f = torch.where(taken, trial_f, log_f)
            length = torch.where(taken, torch.minimum(_GROWTH * length, rates), length / 2)
        else:
            size = length if rule == "normalised" else length * slope * log_f.exp()
            theta = theta + size.unsqueeze(-1) * push
            log_f, rise = risk(theta)
        if step == recorded[len(margins)]:
            margins.append(radius(risk.linear(theta), risk.rows, measure.dual))
    return Descent(theta, risk.linear(theta), log_f, tuple(recorded), torch.stack(margins))


def _check(steps: int, rule: str, record: Sequence[int]) -> None:
    if steps < 1:
        raise ValueError(f"descend: steps must be at least 1, got {steps}")
    if rule not in RULES:
        raise ValueError(f"descend: rule {not_known(rule, RULES)}")
    if not all(1 <= step <= steps for step in record):
        raise ValueError(f"descend: record must be steps from 1 to {steps}, got {list(record)}")


# --- one problem


class LinearFit(NamedTuple):
    """w [d], b [] and multipliers alpha [n] ≥ 0, up to their scale; and how many steps it took."""

    w: Tensor
    b: Tensor
    alpha: Tensor
    steps: int


def fit_steepest(
    X: Tensor,
    y: Tensor,
    norm: str | VectorNorm,
    *,
    fit_intercept: bool = True,
    lr: Sequence[float] | None = None,
    steps: int = 10_000,
) -> LinearFit:
    """The direction that normalised steepest descent on the exponential loss has reached.

    Args:
        X: [n, d] floats; y: [n] ±1.
        norm: that of the step, which the limit has least of.
        fit_intercept: whether there is a b: its best at every step (:class:`FreeExponential`), so that no
            norm sees it. One that counts in the norm is the weight of a feature that is 1.
        lr: lengths of a step, of which the one that ends with the largest margin counts. None: from
            0.01 to 10 in the units of 1/R, R = max_i ‖x_i‖* (of centred x_i where b is free).

    On data that are not separable the smallest margin stays negative. Deterministic. ValueError for
    other shapes and labels.
    """
    norm = vector_norm(norm)
    rows, y, middle = signed_rows("fit_steepest", X, y, fit_intercept)
    risk = linear_risk(rows, FreeExponential(y) if fit_intercept else "exponential")
    if lr is None:
        reach = norm.dual.size(rows).amax().clamp(min=1e-30)
        lr = (_LENGTHS.to(reach) / reach).tolist()
    went = descend(risk, torch.zeros_like(rows[:1]), norm, lr=lr, steps=steps)
    w = went.w[0]
    m = w @ rows.mT
    b = best_bias(m, y) if fit_intercept else torch.zeros_like(m[:, 0])
    radii = (m + y * b[:, None]).amin(-1) / norm.size(w)
    best = int(radii.nan_to_num(nan=-torch.inf).argmax())
    return LinearFit(w[best], b[best] - w[best] @ middle, risk.loss.log_shares(m[best]), steps)


def signed_rows(
    where: str, X: Tensor, y: Tensor, fit_intercept: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows y_i x_i, y as floats, and the middle that was taken off x, which a bias makes up for."""
    if X.ndim != 2 or y.shape != X.shape[:1] or not ((y == 1) | (y == -1)).all():
        raise ValueError(
            f"{where}: X must be [n, d] and y [n] of ±1, got {list(X.shape)} and {list(y.shape)}"
            + (f" with {y.unique().tolist()[:5]}" if y.shape == X.shape[:1] else "")
        )
    if fit_intercept and len(y.unique()) < 2:
        raise ValueError(
            f"{where}: y holds one class alone, which a bias separates from nothing; give both, or "
            "fit_intercept=False"
        )
    middle = X.mean(0) if fit_intercept else torch.zeros_like(X[0])
    y = y.to(X)
    return y[:, None] * (X - middle), y, middle


def best_bias(m: Tensor, y: Tensor) -> Tensor:
    """The b [...] with the largest min_i m_i + y_i b, of margins [..., n] without one."""
    least = [m[..., rows].amin(-1) for rows in (y > 0, y < 0)]
    return (least[1] - least[0]) / 2
