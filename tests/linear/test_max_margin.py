"""The estimator among scikit-learn's: its checks, labels, pipelines, tensors, and bad input."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from margin_cases import NORMS, overlapping, synthetic
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from hrrl_ext.linear import MaxMarginClassifier, NotSeparableError

WITH_SLACK = [
    ("lp", "l1"), ("lp", "linf"), ("socp", "l2"), ("socp", "fourier-l1"), ("prox", "l2"),
    *(("first-order", norm) for norm in NORMS),
]  # fmt: skip


def checked(model: MaxMarginClassifier) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """scikit-learn's checks that failed, and those that passed."""
    found = check_estimator(model, on_fail=None, on_skip=None)
    failed, passed = ([c for c in found if c["status"] == s] for s in ("failed", "passed"))
    return failed, passed


@pytest.mark.parametrize(("solver", "norm"), WITH_SLACK)
def test_scikit_learn_finds_nothing_wrong(solver: str, norm: str) -> None:
    """With slack: many of its checks use labels drawn at random. Some of 55 need pandas, or a setting."""
    if solver == "socp":
        pytest.importorskip("clarabel")
    failed, passed = checked(MaxMarginClassifier(norm, C=1.0, solver=solver, tol=0.1, max_iter=300))
    assert not failed and len(passed) >= 50


@pytest.mark.parametrize(("solver", "norm"), [("lp", "l1"), ("nnls", "l2"), ("lp", "linf")])
def test_without_slack_only_what_is_not_separable_is_refused(solver: str, norm: str) -> None:
    """Every check passes but for those that need a fit of labels drawn at random."""
    failed, passed = checked(MaxMarginClassifier(norm, solver=solver))
    assert len(passed) >= 30
    for check in failed:
        told = f"{check['exception']!r} {check['exception'].__cause__!r}"
        assert "NotSeparableError" in told or "no hyperplane separates" in told, check


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), ("no", "yes"), (False, True), (3.0, 7.0)])
def test_labels_of_any_kind(labels) -> None:
    X, y = synthetic(20, 0, 30)
    words = np.array(labels)[(y > 0).astype(int)]
    model = MaxMarginClassifier().fit(X, words)
    assert (model.predict(X) == words).all() and model.classes_.tolist() == list(labels)
    np.testing.assert_array_equal(model.coef_, MaxMarginClassifier().fit(X, y).coef_)


def test_shapes_and_support() -> None:
    X, y = synthetic(20, 0, 30)
    model = MaxMarginClassifier("l1").fit(X, y)
    assert model.coef_.shape == (1, 30) and model.intercept_.shape == (1,)
    assert model.dual_coef_.shape == (20,) and (model.dual_coef_ >= 0).all()
    np.testing.assert_allclose(y[model.support_] * model.decision_function(X)[model.support_], 1)
    assert model.dual_coef_.sum() == pytest.approx(1 / model.robust_radius_)
    random = np.random.default_rng(0)
    X = np.eye(4)[np.repeat(np.arange(4), 5)] + 0.05 * random.standard_normal((20, 4))
    y = np.repeat(list("abcd"), 5)
    model = MaxMarginClassifier("linf").fit(X, y)
    assert model.coef_.shape == (4, 4) and model.dual_coef_.shape == (4, 20)
    assert model.lam_exact_.shape == (4,) and model.gap_ <= 1e-8
    assert model.robust_radius_ == model.certify(X, y).robust_radius > 0
    with pytest.raises(NotSeparableError, match="class 'b' from the others"):
        MaxMarginClassifier().fit(np.arange(20.0)[:, None], y)


def test_in_pipelines_and_grid_searches() -> None:
    X, y = overlapping()
    pipeline = make_pipeline(StandardScaler(), MaxMarginClassifier("linf"))
    search = GridSearchCV(
        pipeline, {"maxmarginclassifier__C": [0.01, 1.0]}, cv=3, error_score="raise"
    )
    assert search.fit(X, y).best_score_ > 0.6
    assert cross_val_score(pipeline.set_params(maxmarginclassifier__C=1.0), X, y, cv=3).min() > 0.5


def test_several_classes_by_every_solver() -> None:
    """One against the others, each of them exactly: copied, stored and chosen by a search too."""
    X, y = load_iris(return_X_y=True, as_frame=False)
    words = np.array(["setosa", "versicolor", "virginica"])[y]
    for solver, norm in WITH_SLACK:
        if solver == "socp":
            pytest.importorskip("clarabel")
        model = MaxMarginClassifier(norm, C=1.0, solver=solver, tol=1e-2).fit(X, words)
        assert model.gap_ <= 1e-2 and model.score(X, words) > 0.9
        for k, label in enumerate(model.classes_):
            one = clone(model).fit(X, words == label)
            np.testing.assert_array_equal(one.coef_[0], model.coef_[k])
        stored = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(stored.decision_function(X), model.decision_function(X))
        assert stored.robust_radius_ == model.certify(X, words).radius.min()


def test_tensors_in_tensors_out() -> None:
    X, y = synthetic(20, 0, 30)
    x, target = torch.from_numpy(X).float(), torch.from_numpy(y).long()
    for solver in ("auto", "first-order"):
        model = MaxMarginClassifier("linf", solver=solver).fit(x, target)
        for given in (
            model.predict(x),
            model.decision_function(x),
            model.worst_case(x, target, 0.1),
        ):
            assert isinstance(given, torch.Tensor)
        assert torch.equal(model.predict(x), target.double()) or torch.equal(
            model.predict(x), target
        )
        assert model.score(x, target) == 1
        assert model.certified_accuracy(x, target, torch.tensor([0.0, 1e9])).tolist() == [1, 0]
    learnt = x.clone().requires_grad_()
    assert torch.equal(MaxMarginClassifier("linf").fit(learnt, target).predict(learnt), target)
    half = MaxMarginClassifier("linf").fit(x.bfloat16(), target)
    assert half.robust_radius_ == pytest.approx(model.robust_radius_, rel=0.05)


def test_the_worst_case_reaches_the_hyperplane() -> None:
    X, y = synthetic(20, 0, 30)
    for norm in ("l1", "l2", "linf"):
        model = MaxMarginClassifier(norm).fit(X, y)
        moved = y * model.decision_function(model.worst_case(X, y, model.robust_radius_))
        assert moved.min() == pytest.approx(0, abs=1e-9)
        np.testing.assert_array_equal(model.worst_case(X, y, 0.0), X)
    for eps in (-0.1, np.inf, np.nan, [0.1, 0.2]):
        with pytest.raises(ValueError, match="eps must be one finite number of at least 0, got"):
            model.worst_case(X, y, eps)


def test_bad_input() -> None:
    X, y = synthetic(10, 0, 30)
    fit = MaxMarginClassifier().fit
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class"):
        fit(X, np.ones(10))
    with pytest.raises(ValueError, match="NaN"):
        fit(np.where(np.arange(30) == 3, np.nan, X), y)
    with pytest.raises(TypeError, match=r"[Ss]parse.*toarray"):
        fit(sparse.csr_array(X), y)
    with pytest.raises(TypeError, match=r"Sparse.*to_dense"):
        fit(torch.from_numpy(X).to_sparse(), y)
    with pytest.raises(ValueError, match="Unknown label type"):
        fit(X, np.linspace(0, 1, 10))
    for settings, told in (
        ({"norm": "l3"}, "norm 'l3' is not known"),
        ({"solver": "pl"}, "did you mean 'lp'"),
        ({"solver": "lp"}, "solver 'lp' solves norm l1 and linf"),
        ({"solver": "nnls", "C": 1.0}, "no slack"),
        ({"C": 0.0}, "C must be None or a positive number"),
        ({"tol": -1.0}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"max_iter": 0.5}, "max_iter must be at least 1, got 0.5"),
        ({"norm": "fourier-l1", "penalise_intercept": True}, "has no frequency"),
    ):
        with pytest.raises(ValueError, match=told):
            MaxMarginClassifier(**settings).fit(X, y)
    with pytest.raises(ValueError, match="2 classes, got 3"):
        MaxMarginClassifier().path(*load_iris(return_X_y=True))
    with pytest.raises(ValueError, match="lams must be positive"):
        MaxMarginClassifier("l1").path(X, y, [0.0])


def test_without_clarabel_auto_uses_the_first_order_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    monkeypatch.setitem(sys.modules, "clarabel", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "clarabel" else real(n))
    X, y = synthetic(10, 0, 30)
    model = MaxMarginClassifier("fourier-l1").fit(X, y)
    assert 1e-12 < model.gap_ <= 1e-3
    with pytest.raises(ImportError, match=r"pip install 'hrrl_ext\[solvers\]'"):
        MaxMarginClassifier("fourier-l1", solver="socp").fit(X, y)
