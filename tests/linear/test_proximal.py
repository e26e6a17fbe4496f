"""Regularised solutions: against exact solvers and their multipliers, duality gaps, edges of λ."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems_linear import DUALS, largest_radius, noise_rows
from torch import Tensor
from torch.testing import assert_close

from hrrl_ext.linear import (
    MaxMarginClassifier,
    Regularised,
    fit_proximal,
    primal_dual,
    radius,
    shrink,
)
from hrrl_ext.linear.losses import TAIL_LOSSES
from hrrl_ext.norms import vector_norm

NAMES = ["l1", "l2", "linf", "fourier-l1"]


def share(w: Tensor, rows: Tensor, norm: str) -> Tensor:
    """Of the largest radius, found by the estimator's own solvers."""
    y = torch.where(torch.arange(len(rows)) % 2 == 0, 1.0, -1.0)
    exact = MaxMarginClassifier(norm, fit_intercept=False, tol=1e-9).fit(y[:, None] * rows, y)
    return radius(w, rows[None], DUALS[norm])[0] / exact.robust_radius_


# --- the hinge


@pytest.mark.parametrize("n", [3, 12])
@pytest.mark.parametrize("norm", NAMES)
def test_the_hinge_is_exact_up_to_a_finite_lam_and_not_beyond(norm: str, n: int) -> None:
    """λ up to 1/(n max α), α by the estimator's solvers: gap 0; a tenth beyond it: not."""
    rows = noise_rows(n)
    y = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    exact = MaxMarginClassifier(norm, fit_intercept=False, tol=1e-9).fit(y[:, None] * rows, y)
    found = primal_dual(rows, norm, [f * float(exact.lam_exact_) for f in (1e-3, 0.999, 1.1)])
    shares = share(found.w, rows, norm)
    # the gap of 1e-8 is of ‖w‖; what is left of the smallest margin is of the same order
    assert_close(shares[:2], torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (shares <= 1 + 1e-9).all()
    assert shares[2] < 0.99
    assert (found.gap.abs() <= 1e-8).all()
    # and its own multipliers say the same λ
    assert 1 / (n * found.multipliers[0, 0].max()) == pytest.approx(exact.lam_exact_, rel=1e-3)


def test_lam_of_the_radius_over_n_is_always_small_enough() -> None:
    """Since Σ α = 1/ε*, no α is larger: no multipliers are needed to choose λ."""
    rows = noise_rows(12)
    found = primal_dual(rows, "l1", largest_radius(rows, "l1") / 12)
    assert_close(found.multipliers.sum(), 1 / torch.tensor(largest_radius(rows, "l1")).double())
    assert share(found.w, rows, "l1").item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("norm", NAMES)
@pytest.mark.parametrize("C", [0.01, 0.3])
def test_with_slack_it_is_the_soft_classifier(norm: str, C: float) -> None:
    """On data that no hyperplane separates, against the estimator with C = 1/(nλ), by objective."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 6, dtype=torch.float64, generator=generator)
    y = torch.sign(torch.randn(30, generator=generator)).double()
    exact = MaxMarginClassifier(norm, C=C, tol=1e-9).fit(X, y)
    fit = fit_proximal(X, y, norm, 1 / (30 * C), tol=1e-9)

    def objective(w: Tensor, b: Tensor) -> float:
        hinge = (1 - y * (X @ w + b)).clamp(min=0).sum()
        return (vector_norm(norm).size(w) + C * hinge).item()

    best = objective(torch.from_numpy(exact.coef_[0]), torch.tensor(exact.intercept_[0]))
    assert objective(fit.w, fit.b) == pytest.approx(best, rel=1e-6)


# --- smooth losses


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@pytest.mark.parametrize("norm", NAMES)
def test_shrunk_solutions_are_optimal(norm: str, loss: str) -> None:
    """Two routes: the duality gap, and -∇f in λ ∂‖w‖, that is ‖Aᵀα‖* ≤ 1 with ⟨w, Aᵀα⟩ = ‖w‖."""
    rows, lams = noise_rows(12, 30), [1e-4, 1e-2, 0.1]
    found = shrink(rows, norm, lams, loss=loss, tol=1e-7)
    assert (found.gap.abs() <= 1e-7).all()
    m = found.w[0] @ rows.T
    m = m.requires_grad_()
    (grad,) = torch.autograd.grad(TAIL_LOSSES[loss].value(m).sum(), m)
    pull = -grad @ rows / torch.tensor(lams)[:, None]
    measure = vector_norm(norm)
    assert (measure.dual.size(pull) <= 1 + 1e-2).all()  # a gap of 1e-7 is a residual of its root
    size = measure.size(found.w[0])
    assert_close((found.w[0] * pull).sum(-1), size, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("norm", NAMES)
def test_the_margin_rises_as_lam_falls(norm: str) -> None:
    """R-T8. With a tail it comes near only as 1/log(1/λ): at 1e-5 some percent are missing yet."""
    rows = noise_rows(12)
    shares = share(shrink(rows, norm, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]).w, rows, norm)
    assert (shares.diff() > 0).all()
    assert 0.9 < shares[-1] < 0.99


# --- both


@pytest.mark.parametrize("solve", [shrink, primal_dual])
@pytest.mark.parametrize("norm", NAMES)
def test_above_the_largest_lam_w_is_zero(norm: str, solve: Callable[..., Regularised]) -> None:
    """λ ≥ ‖∇f(0)‖*: no radius, which is not an infinite one."""
    rows = noise_rows(6, 9)
    slope = vector_norm(norm).dual.size(rows.mean(0)).item() * (0.5 if solve is shrink else 1)
    found = solve(rows, norm, [1.01 * slope, 0.9 * slope])
    assert not found.w[0, 0].any() and found.w[0, 1].any()
    assert radius(found.w, rows[None], DUALS[norm])[0, 0].isnan()


@pytest.mark.parametrize("solve", [shrink, primal_dual])
def test_problems_that_share_a_loop_are_those_of_their_own(
    solve: Callable[..., Regularised],
) -> None:
    rows = torch.stack([noise_rows(5, 8, seed) for seed in range(3)])
    together = solve(rows, "l2", [1e-3, 0.1])
    assert together.w.shape == (3, 2, 8) and together.multipliers.shape == (3, 2, 5)
    lams = torch.tensor([1e-3, 0.1]).expand(3, 2)
    assert_close(solve(rows, "l2", lams).w, together.w)
    for p in range(3):
        for r, lam in enumerate([1e-3, 0.1]):
            alone = solve(rows[p], "l2", lam)
            # each stops at its gap: w is as exact as the root of it, where the loss is flat
            assert_close(together.w[p, r], alone.w[0, 0], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["hinge", "logistic"])
def test_moving_all_features_moves_a_free_bias_alone(loss: str) -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(10, 4, dtype=torch.float64, generator=generator)
    y = torch.where(X[:, 0] > 0, 1.0, -1.0)
    shift = torch.tensor([5.0, -3.0, 0.0, 1.0])
    here, there = (fit_proximal(x, y, "l2", 0.01, loss=loss) for x in (X, X + shift))
    assert_close(here.w, there.w, rtol=1e-5, atol=1e-6)
    assert_close(here.b - here.w @ shift.double(), there.b, rtol=1e-5, atol=1e-6)


def test_the_unit_of_x_changes_no_step() -> None:
    """By a power of two, so to the last bit: the bias has no unit of its own."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(10, 4, dtype=torch.float64, generator=generator)
    y = torch.where(X[:, 0] > 0, 1.0, -1.0)
    here, there = (fit_proximal(k * X, y, "l1", k * 0.01) for k in (1.0, 4096.0))
    assert here.steps == there.steps < 100_000
    assert torch.equal(here.w, 4096 * there.w) and torch.equal(here.b, there.b)


def test_constant_features_and_one_dimension() -> None:
    """A feature that is 0 gets no weight; in one dimension the middle of the gap is the answer."""
    X = torch.tensor([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    for norm in ("l1", "l2"):
        fit = fit_proximal(X, y, norm, 1e-3)
        assert_close(-fit.b / fit.w[0], torch.tensor(3.5).double(), rtol=1e-6, atol=0.0)
        assert fit.w[1].abs() < 1e-9
    one = fit_proximal(X[:, :1], y, "linf", 1e-3)
    assert_close(-one.b / one.w[0], torch.tensor(3.5).double(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("lam", [0.0, -1.0, math.inf, [0.1, math.nan]])
def test_a_lam_that_is_none(lam: object) -> None:
    with pytest.raises(ValueError, match="lam must be positive and finite"):
        primal_dual(noise_rows(3, 4), "l2", lam)


def test_a_loss_that_is_not_smooth_has_another_solver() -> None:
    with pytest.raises(ValueError, match="'hinge' is not known"):
        shrink(noise_rows(3, 4), "l2", 0.1, loss="hinge")
