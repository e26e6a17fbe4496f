"""The exact margins: known values, two routes to each, and what the problem says must hold."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch
from margin_cases import ANCHORS, EXACT, NORMS, digits_3_7, overlapping, printed, synthetic
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from hrrl_ext.linear import MaxMarginClassifier, NotSeparableError, programs
from hrrl_ext.linear.duality import Problem, settled
from hrrl_ext.linear.first_order import FirstOrder
from hrrl_ext.linear.solve import solve
from hrrl_ext.norms import vector_norm


def fitted(norm: str, X: np.ndarray, y: np.ndarray, **settings) -> MaxMarginClassifier:
    if EXACT[norm] == "socp" and settings.get("solver", "auto") == "auto":
        pytest.importorskip("clarabel")
    return MaxMarginClassifier(norm, **settings).fit(X, y)


def size(norm: str, w: np.ndarray) -> float:
    return float(vector_norm(norm).size(torch.from_numpy(w)))


@pytest.mark.parametrize("n", [100, 50, 25, 12, 6, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_the_synthetic_table_to_its_printed_digits(norm: str, n: int) -> None:
    """By the solvers themselves: of n = 3 some have one class, which is no task of a classifier."""
    if EXACT[norm] == "socp":
        pytest.importorskip("clarabel")
    for seed, text in enumerate(ANCHORS[norm][n]):
        found = solve(Problem(*synthetic(n, seed), vector_norm(norm), intercept=False), EXACT[norm])
        expected, half = printed(text)
        assert abs(1 / found.primal - expected) <= half * 1.001, seed
        assert -1e-12 <= found.gap <= 1e-8


@pytest.mark.parametrize(("norm", "text"), [("l1", ".08764"), ("linf", "1.598"), ("l2", ".3639")])
def test_digits(norm: str, text: str) -> None:
    model = fitted(norm, *digits_3_7())
    expected, half = printed(text)
    assert abs(model.robust_radius_ - expected) <= half
    assert model.gap_ <= 1e-12
    if norm == "l1":
        assert np.count_nonzero(np.abs(model.coef_) > 1e-12) == 18


ROUTES = [
    ("l1", "lp", "first-order"), ("linf", "lp", "first-order"), ("l2", "nnls", "first-order"),
    ("l2", "nnls", "socp"), ("fourier-l1", "socp", "first-order"), ("l1", "lp", "prox"), ("linf", "lp", "prox"),
]  # fmt: skip


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("norm", "one", "other"), ROUTES)
@pytest.mark.parametrize(("n", "d"), [(12, 20), (40, 9), (7, 7)])
def test_two_routes_agree(norm: str, one: str, other: str, n: int, d: int, intercept: bool) -> None:
    if "socp" in (one, other):
        pytest.importorskip("clarabel")
    X, y = synthetic(n, 4, d)
    a, b = (
        MaxMarginClassifier(norm, solver=s, fit_intercept=intercept, tol=1e-8).fit(X, y)
        for s in (one, other)
    )
    assert a.robust_radius_ == pytest.approx(b.robust_radius_, rel=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_descent_comes_near_from_below(norm: str) -> None:
    X, y = synthetic(12, 1)
    exact = fitted(norm, X, y)
    near = MaxMarginClassifier(norm, solver="steepest", max_iter=2000).fit(X, y)
    assert 1e-9 < 1 - near.robust_radius_ / exact.robust_radius_ < 0.01
    assert (
        1 - near.robust_radius_ / exact.robust_radius_ <= near.gap_
    )  # which the data give, not lp


@pytest.mark.parametrize("solver", ["first-order", "prox"])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_two_routes_agree_on_the_soft_problem(norm: str, solver: str) -> None:
    pytest.importorskip("clarabel")
    X, y = overlapping()
    exact = MaxMarginClassifier(norm, C=0.3).fit(X, y)
    other = MaxMarginClassifier(norm, C=0.3, solver=solver, tol=1e-9).fit(X, y)
    np.testing.assert_allclose(
        other.coef_, exact.coef_, atol=1e-4
    )  # a flat optimum: 1e-9 of its value
    for model in (exact, other):
        f, sign = model.decision_function(X), 2 * y - 1
        objective = size(norm, model.coef_[0]) + 0.3 * np.maximum(0, 1 - sign * f).sum()
        assert objective == pytest.approx(model.dual_coef_.sum(), rel=1e-8)
        assert model.dual_coef_.max() <= 0.3 * (1 + 1e-12)


def test_svc_finds_the_same_where_it_can() -> None:
    X, y = synthetic(20, 1, 30)
    svc = SVC(kernel="linear", C=1e6, tol=1e-10).fit(X, y)
    model = fitted("l2", X, y)
    np.testing.assert_allclose(svc.coef_, model.coef_, atol=1e-6)  # libsvm ends at a tolerance
    np.testing.assert_allclose(svc.intercept_, model.intercept_, atol=1e-6)


def test_breast_cancer_is_separable() -> None:
    """Standardised; libsvm does not separate it (docs/linear.md). The margin is 1/1000 of a deviation."""
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    for norm, text in (("l1", ".00045"), ("linf", ".0023")):
        model = fitted(norm, X, y)
        expected, half = printed(text)
        assert abs(model.robust_radius_ - expected) <= half
        assert model.gap_ <= 1e-8
        assert model.score(X, y) == 1
    model = fitted("l2", X, y)
    assert model.score(X, y) == 1 and model.gap_ <= 1e-8


@pytest.mark.parametrize("norm", NORMS)
def test_no_classifier_has_a_larger_margin(norm: str) -> None:
    X, y = synthetic(15, 2, 12)
    model = fitted(norm, X, y)
    best, random = model.robust_radius_, np.random.default_rng(0)
    for scale in (1e-6, 1e-3, 0.1, 1.0):
        for _ in range(50):
            w = model.coef_[0] + scale * random.standard_normal(12) * np.abs(model.coef_).max()
            f = X @ w
            b = -(f[y > 0].min() + f[y < 0].max()) / 2
            assert (y * (f + b)).min() / size(norm, w) <= best * (1 + 1e-9)
    assert (y * model.decision_function(X)).min() == pytest.approx(1, abs=1e-9)
    assert best == pytest.approx(1 / size(norm, model.coef_[0]), rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_two_points_are_parted_in_the_middle(norm: str) -> None:
    """ε* is half their distance in the attack's norm; also for d = 1, and odd d."""
    for d in (1, 2, 5, 8):
        x, z = np.random.default_rng(d).standard_normal((2, d))
        model = fitted(norm, np.stack([x, z]), ["a", "b"])
        half = vector_norm(norm).dual.size(torch.from_numpy(x - z)) / 2
        assert model.robust_radius_ == pytest.approx(float(half), rel=1e-8)
        assert model.decision_function((x + z)[None] / 2) == pytest.approx(0, abs=1e-7)
        assert model.lam_exact_ == pytest.approx(float(half), rel=1e-7)  # α = 1/(2 ε*), n = 2


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_shifting_and_constant_features(norm: str) -> None:
    X, y = synthetic(14, 3, 10)
    best = fitted(norm, X, y).robust_radius_
    assert fitted(norm, 1e3 * X, y).robust_radius_ == pytest.approx(1e3 * best, rel=1e-8)
    assert fitted(norm, X + 5, y).robust_radius_ == pytest.approx(best, rel=1e-7)
    if not norm.startswith("fourier"):  # there a column more is another transform
        constant = np.hstack([X, np.full((14, 1), 7.0)])
        model = fitted(norm, constant, y)
        assert model.robust_radius_ == pytest.approx(best, rel=1e-8)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_an_appended_one_is_another_problem(norm: str) -> None:
    X, y = digits_3_7()
    inside = fitted(norm, X, y, penalise_intercept=True)
    appended = fitted(norm, np.hstack([X, np.ones((len(X), 1))]), y, fit_intercept=False)
    np.testing.assert_allclose(
        np.r_[inside.coef_[0], inside.intercept_], appended.coef_[0], atol=1e-9
    )
    assert inside.robust_radius_ < fitted(norm, X, y).robust_radius_ * (1 - 1e-6)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize(("n", "d"), [(300, 9), (30, 200), (120, 120)])
def test_a_program_by_parts_is_the_whole_one(
    norm: str, n: int, d: int, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the guess is poor, and where parts that are left out have to join."""
    X, y = synthetic(n, 6, d)
    problem = Problem(X, y, vector_norm(norm), intercept)
    whole = solve(problem, "lp")
    monkeypatch.setattr(programs, "_WHOLE", 0)
    for guess, join in ((1e-3, 200), (0.5, 2)):
        monkeypatch.setattr(programs, "_GUESS", guess)
        monkeypatch.setattr(programs, "_JOIN", join)
        parts = solve(problem, "lp")
        assert parts.gap <= 1e-9
        assert parts.primal == pytest.approx(whole.primal, rel=1e-9)


def test_a_program_by_parts_recovers_from_a_wrong_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of weights that separate nothing: the one feature that does is not among them."""
    random = np.random.default_rng(0)
    X, y = random.standard_normal((30, 8)), np.repeat([-1.0, 1.0], 15)
    X[:, 7] = 1e-3 * y
    w = torch.zeros(8, dtype=torch.float64)
    w[0] = 1.0
    p = torch.zeros(30)
    p[0] = p[29] = 0.5
    wrong = FirstOrder(w, 0.0, p, 0.0, 1.0, 0, met=False)
    monkeypatch.setattr(programs, "_WHOLE", 0)
    monkeypatch.setattr(programs, "fit_separable", lambda *_, **__: wrong)
    for norm in ("l1", "linf"):
        problem = Problem(X, y, vector_norm(norm))
        found = solve(problem, "lp")
        assert found.gap <= 1e-9 and found.primal <= size(norm, np.eye(8)[7]) * 1e3 * (1 + 1e-9)


def test_a_program_by_parts_notices_an_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_WHOLE", 0)
    X, y = overlapping()
    with pytest.raises(NotSeparableError, match="least slack"):
        MaxMarginClassifier("linf").fit(X, y)


@pytest.mark.parametrize("C", [None, 0.2])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_gap_is_honest_whatever_a_solver_answers(
    norm: str, intercept: bool, C: float | None
) -> None:
    """Any w and any α: never a primal below the optimum, nor a dual above it."""
    X, y = synthetic(40, 3, 8)
    problem = Problem(X + 3 * intercept, y, vector_norm(norm), intercept, C)
    best = solve(problem, "first-order", tol=1e-9)
    random = np.random.default_rng(0)
    for _ in range(50):
        w = best.w + 1e-3 * random.standard_normal(8) * np.abs(best.w).max()
        alpha = best.alpha * random.uniform(0.7, 1.3, 40) + 0.01 * random.exponential(size=40)
        try:
            found = settled(problem, w, best.b, alpha, 0)
        except NotSeparableError:
            continue
        assert found.primal >= best.primal * (1 - 1e-8)
        assert found.dual <= best.dual * (1 + 1e-8) and found.alpha.max() <= (C or np.inf) * (
            1 + 1e-12
        )
        assert 0 <= found.gap <= 1


# --- lam, C and the multipliers


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_hinge_is_exact_up_to_lam_exact_and_not_beyond(norm: str) -> None:
    X, y = synthetic(12, 0)
    model = fitted(norm, X, y, fit_intercept=False)
    if norm == "l1":
        assert model.lam_exact_ == pytest.approx(0.1953, abs=5e-5)
    assert model.robust_radius_ / 12 <= model.lam_exact_  # Σα = 1/ε*
    lams = [model.lam_exact_ * factor for factor in (1.05, 0.999, 0.1)]
    beyond, *exact = model.path(X, y, lams)
    for point in exact:
        assert point.margin == pytest.approx(model.robust_radius_, rel=1e-9)
    assert beyond.margin < 0.99 * model.robust_radius_


def test_the_path_rises_as_lam_falls_and_begins_at_zero() -> None:
    X, y = synthetic(30, 1, 20)
    model = MaxMarginClassifier("linf")
    path = model.path(X, y)
    assert np.isnan(path[0].margin) and path[0].norm == 0  # w = 0: undefined, not infinite
    margins = [point.margin for point in path if point.norm > 0]
    assert all(b >= a - 1e-9 for a, b in pairwise(margins))
    assert margins[-1] == pytest.approx(model.fit(X, y).robust_radius_, rel=1e-9)
    hard = [MaxMarginClassifier("l2", solver=s).path(X, y, [0.1]) for s in ("nnls", "auto")]
    assert hard[0] == hard[1]  # nnls has no slack


SOFT = [("lp", "l1"), ("lp", "linf"), ("socp", "l2"), ("socp", "fourier-l1"), ("first-order", "l2")]


@pytest.mark.parametrize(("solver", "norm"), SOFT)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_tiny_c_leaves_nothing(solver: str, norm: str, fit_intercept: bool) -> None:
    """Up to C = 1/‖Σ y_i x_i‖*, of classes of one size, w is 0: the radius is undefined, not large."""
    if solver == "socp":
        pytest.importorskip("clarabel")
    X, _ = overlapping()
    y = np.arange(60) % 2
    largest = 1 / size(vector_norm(norm).dual, (2 * y - 1) @ X)
    for factor in (1e-6, 0.99, 1.05):
        model = MaxMarginClassifier(
            norm, C=factor * largest, solver=solver, fit_intercept=fit_intercept, tol=1e-8
        ).fit(X, y)
        assert model.coef_.any() == (factor > 1) != np.isnan(model.robust_radius_)
        assert -1e-9 < model.gap_ < 1e-7
        assert model.lam_exact_ == pytest.approx(1 / (60 * model.C))


def test_of_classes_of_two_sizes_a_tiny_c_leaves_the_larger() -> None:
    X, y = overlapping()
    y[:20] = 1
    for solver, norm in SOFT if find_spec("clarabel") else SOFT[:2]:
        model = MaxMarginClassifier(norm, C=1e-6, solver=solver).fit(X, y)
        assert model.n_iter_ < 100  # none of the first-order solver, where b by steps of C took all
        assert not model.coef_.any() and (model.predict(X) == 1).all()


# --- what cannot be separated


@pytest.mark.parametrize("solver", ["lp", "nnls", "socp", "first-order", "steepest", "prox"])
def test_what_is_not_separable_says_so(solver: str) -> None:
    if solver == "socp":
        pytest.importorskip("clarabel")
    X, y = overlapping()
    norm = "l1" if solver == "lp" else "l2"
    with pytest.raises(
        NotSeparableError, match=r"classes 0 and 1; the least slack .* is (\d\S*)"
    ) as told:
        MaxMarginClassifier(norm, solver=solver, max_iter=3000).fit(X, y)
    assert "give C" in str(told.value)


def test_the_least_slack_is_what_a_large_c_leaves() -> None:
    X, y = overlapping()
    with pytest.raises(NotSeparableError) as told:
        MaxMarginClassifier("l1").fit(X, y)
    soft = MaxMarginClassifier("l1", C=1e6).fit(X, y)
    slack = np.maximum(0, 1 - (2 * y - 1) * soft.decision_function(X)).sum()
    assert f"is {slack:.4g};" in str(told.value)


def test_equal_rows_with_opposite_labels_are_named() -> None:
    X, y = synthetic(10, 0, 30)
    X[7], y[7] = X[2], -y[2]
    with pytest.raises(NotSeparableError, match="examples 2 and 7 are equal"):
        MaxMarginClassifier().fit(X, y)
