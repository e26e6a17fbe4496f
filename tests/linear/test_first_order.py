"""The first-order solver: bounds that hold, working sets, what float32 can tell, max_iter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from margin_cases import NORMS, overlapping, synthetic
from sklearn.exceptions import ConvergenceWarning

from hrrl_ext.linear import MaxMarginClassifier, NotSeparableError, first_order, labels, solve
from hrrl_ext.linear.duality import Problem, settled
from hrrl_ext.linear.first_order import fit_hard
from hrrl_ext.norms import vector_norm


def tensors(X: np.ndarray, y: np.ndarray, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(X).to(dtype), torch.from_numpy(y)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("max_iter", [40, 400])
def test_the_bounds_hold_wherever_it_stops(norm: str, intercept: bool, max_iter: int) -> None:
    X, y = synthetic(30, 5, 16)
    best = fit_hard(*tensors(X, y), vector_norm(norm), intercept=intercept, tol=1e-9)
    early = fit_hard(
        *tensors(X, y), vector_norm(norm), intercept=intercept, tol=0, max_iter=max_iter
    )
    assert best.met and not early.met and early.n_iter == max_iter
    assert early.lower <= best.upper and best.lower <= early.upper
    found = settled(
        Problem(X, y, vector_norm(norm), intercept), best.w.numpy(), best.b, best.p.numpy(), 0
    )
    assert 1 / found.primal == pytest.approx(best.lower, rel=1e-9)  # the same bounds from the data
    assert 1 / found.dual == pytest.approx(best.upper, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_working_sets_find_the_same(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = synthetic(800, 0, 12)
    whole = fit_hard(*tensors(X, y), vector_norm(norm), tol=1e-7)
    monkeypatch.setattr(first_order, "_SMALL", 100)
    monkeypatch.setattr(first_order, "_WORST", 5)
    parts = fit_hard(*tensors(X, y), vector_norm(norm), tol=1e-7)
    assert parts.met and parts.lower <= whole.upper and whole.lower <= parts.upper
    assert 0 < (parts.p > 0).sum() < 100


def test_working_sets_notice_an_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_order, "_SMALL", 20)
    monkeypatch.setattr(first_order, "_WORST", 5)
    X, y = overlapping()
    assert not fit_hard(*tensors(X, 2 * y - 1), vector_norm("l2")).separable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overlap_is_told_from_a_small_margin(dtype: torch.dtype) -> None:
    """A gap of 1/1000 between the hulls is one; hulls that touch have none."""
    X = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    y = np.array([1.0, 1.0, -1.0, -1.0])
    assert not fit_hard(*tensors(X, y, dtype), vector_norm("l2")).separable
    near = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2e-3], [1.0, 2e-3]])
    found = fit_hard(*tensors(near, y, dtype), vector_norm("l2"))
    assert found.separable and found.lower == pytest.approx(1e-3, rel=2e-3)


def test_a_margin_below_float32_is_found_in_float64() -> None:
    """Two parallel segments, so near that in float32 they are one."""
    side = np.array([[0.1, 0.3], [0.9, 0.7]])
    normal = np.array([-0.4, 0.8]) / np.hypot(0.4, 0.8)
    X, y = np.concatenate([side, side + 2e-8 * normal]), np.array([-1.0, -1.0, 1.0, 1.0])
    assert not fit_hard(*tensors(X, y, torch.float32), vector_norm("l2")).separable
    model = MaxMarginClassifier("l2", solver="first-order").fit(X, y)
    assert model.robust_radius_ == pytest.approx(1e-8, rel=2e-3)


def test_it_draws_nothing_at_random() -> None:
    X, y = synthetic(30, 5, 16)
    one, other = (fit_hard(*tensors(X, y), vector_norm("l1")) for _ in range(2))
    assert torch.equal(one.w, other.w) and torch.equal(one.p, other.p)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", NORMS)
def test_on_cuda_it_finds_the_same(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = tensors(*synthetic(300, 5, 16))
    for small in (4000, 100):
        monkeypatch.setattr(first_order, "_SMALL", small)
        here = MaxMarginClassifier(norm, solver="first-order", tol=1e-6).fit(X, y)
        there = MaxMarginClassifier(norm, solver="first-order", tol=1e-6).fit(X.cuda(), y.cuda())
        assert there.robust_radius_ == pytest.approx(here.robust_radius_, rel=1e-6)
        assert there.decision_function(X.cuda()).is_cuda
    here, there = (
        MaxMarginClassifier(norm, C=0.1, solver="first-order", tol=1e-6).fit(*of)
        for of in ((X, y), (X.cuda(), y.cuda()))
    )
    assert there.dual_coef_.sum() == pytest.approx(here.dual_coef_.sum(), rel=2e-6)  # two gaps


def test_too_few_iterations_warn_or_say_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = synthetic(12, 0)
    with pytest.warns(ConvergenceWarning, match=r"the gap is \S+, wanted 1e-06"):
        model = MaxMarginClassifier("l1", solver="first-order", tol=1e-6, max_iter=80).fit(X, y)
    assert 1e-6 < model.gap_ < 1 and model.score(X, y) == 1
    X, y = overlapping()
    for solver in ("first-order", "prox"):
        with pytest.warns(ConvergenceWarning, match=r"after 80 iterations .* wanted 1e-06"):
            model = MaxMarginClassifier("l1", C=1, solver=solver, tol=1e-6, max_iter=80).fit(X, y)
        assert 1e-6 < model.gap_ < 1 and model.n_iter_ == 80
    X, y = synthetic(60, 0, 50)
    for solver, steps in (("first-order", 2), ("steepest", 1)):
        with pytest.raises(NotSeparableError, match="though there is one; raise max_iter"):
            MaxMarginClassifier("l1", solver=solver, max_iter=steps).fit(X, y)
    monkeypatch.setattr(labels, "_COUNTED", 0)  # so large that nobody looks
    monkeypatch.setattr(solve, "_NARROW", 0)
    with pytest.raises(NotSeparableError, match=r"was found that separates .* though there may be"):
        MaxMarginClassifier("l1", max_iter=2).fit(X, y)
