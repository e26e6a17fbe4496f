"""The linear probe by SGD: its steps written out in float64, its optimum by another solver, its edges."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from hrrl_ext.transfer import Features, SGDProbe
from hrrl_ext.transfer.probe import probe


def clouds(count: int = 50, classes: int = 3, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = np.arange(count) % classes
    return random.normal(size=(classes, dim))[y] + random.normal(size=(count, dim)), y


@pytest.mark.filterwarnings("ignore:Skipping check:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_check_estimator() -> None:
    check_estimator(SGDProbe(1.0, epochs=10))


@pytest.mark.parametrize(
    ("given", "computed"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("int64", "float32")],
)
def test_the_precision_that_it_computes_in(given: str, computed: str) -> None:
    X, y = clouds()
    X = (8 * X).astype(given)
    X.setflags(write=False)
    model = SGDProbe(0.1, epochs=1, normalise=None).fit(X, y)
    assert model.coef_.dtype == model.decision_function(X).dtype == np.dtype(computed)


# --- its steps, and what they come to


@pytest.mark.parametrize("milestones", [None, (1, 3)])
def test_it_is_these_lines(milestones: tuple[int, ...] | None) -> None:
    X, y = clouds()  # 50 of 12: the last batch has 2
    model = SGDProbe(
        0.5, weight_decay=0.1, batch_size=12, epochs=5, milestones=milestones, normalise=None
    ).fit(X, y)
    w, moved = np.zeros((3, 5)), np.zeros((3, 5))
    ones = np.column_stack([X, np.ones(50)])
    seed = np.random.RandomState(0).randint(2**31)
    generator = torch.Generator().manual_seed(int(seed))
    for epoch in range(5):
        lr = 0.5 * 0.1 ** sum(epoch >= m for m in milestones or (3, 4))
        total = 0.0
        order = torch.randperm(50, generator=generator).numpy()
        for rows in (order[i : i + 12] for i in range(0, 50, 12)):
            e = np.exp(ones[rows] @ w.T)
            p = e / e.sum(1, keepdims=True)
            total -= np.log(p[np.arange(len(rows)), y[rows]]).sum()
            moved = 0.9 * moved + (p - np.eye(3)[y[rows]]).T @ ones[rows] / len(rows) + 0.1 * w
            w = w - lr * moved
    np.testing.assert_allclose(model.coef_, w[:, :4], atol=1e-12)
    np.testing.assert_allclose(model.intercept_, w[:, 4], atol=1e-12)
    assert model.loss_ == pytest.approx(total / 50, abs=1e-12)
    np.testing.assert_allclose(model.decision_function(X), ones @ w.T, atol=1e-11)
    assert (model.predict(X) == (ones @ w.T).argmax(1)).all()


def test_its_optimum_is_that_of_logistic_regression() -> None:
    """Of a strongly convex loss: whole batches and a constant rate come to it within 1e-6."""
    X, y = clouds()
    model = SGDProbe(
        1.0, weight_decay=0.02, batch_size=50, epochs=400, milestones=(), normalise="standard"
    ).fit(X, y)
    z = (X - X.mean(0)) / X.std(0)
    ones = np.column_stack([z, np.ones(50)])  # so that the intercept is regularised too
    other = LogisticRegression(C=1 / (50 * 0.02), fit_intercept=False, tol=1e-10).fit(ones, y)
    np.testing.assert_allclose(model.coef_, other.coef_[:, :4], atol=1e-6)
    np.testing.assert_allclose(model.intercept_, other.coef_[:, 4], atol=1e-6)


def test_two_classes_have_one_row() -> None:
    X, y = clouds(classes=2)
    settings: dict[str, Any] = {"batch_size": 50, "epochs": 300, "normalise": None}
    model = SGDProbe(0.5, weight_decay=0.05, milestones=(), **settings).fit(X, 7 * y)
    assert model.coef_.shape == (1, 4) and model.decision_function(X).shape == (50,)
    assert ((model.decision_function(X) > 0) * 7 == model.predict(X)).all()
    # W_0 = -W_1, so λ/2 (‖W_0‖² + ‖W_1‖²) is λ/4 of the difference's square
    other = LogisticRegression(C=1 / (50 * 0.025), fit_intercept=False, tol=1e-10)
    other.fit(np.column_stack([X, np.ones(50)]), y)
    np.testing.assert_allclose(model.coef_, other.coef_[:, :4], atol=1e-6)


@pytest.mark.parametrize("normalise", ["l2", "standard"])
def test_the_scale_of_the_features_does_not_matter(normalise: Any) -> None:
    X, y = clouds()
    models = [SGDProbe(1.0, epochs=3, normalise=normalise).fit(f * X, y) for f in (1.0, 2.0**-10)]
    assert np.array_equal(models[0].coef_, models[1].coef_)


def test_the_preset_reads_digits() -> None:
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    train, test = Features(X[:500], y[:500]), Features(X[500:900], y[500:900])
    result = probe(train, test, method="sgd", epochs=40)
    svm = probe(train, test, C=1.0)
    assert abs(result.accuracy - svm.accuracy) < 0.03  # two classifiers: 12 of 400 images
    told = result.to_dict()
    assert (told["lr"], told["epochs"]) == (30.0, 40) and 0 < told["loss"] < 0.2
    assert "C" not in told
    again = probe(train, test, method="sgd", epochs=40)
    assert again == result
    with torch.no_grad():  # its own gradients all the same
        assert probe(train, test, method="sgd", epochs=40) == result


# --- edges


def test_one_example_of_each_class_is_enough() -> None:
    X, y = clouds(3)
    assert (SGDProbe().fit(X, y).predict(X) == y).all()


def test_labels_are_words_and_features_half_precision() -> None:
    X, y = clouds()
    names = np.array(["cat", "dog", "eel"])[y]
    model = SGDProbe(epochs=5).fit(torch.tensor(X).bfloat16(), names)
    assert set(model.predict(X)) <= set(names) and model.coef_.dtype == np.float32


def test_a_rate_that_is_too_high_is_told() -> None:
    X, y = clouds()
    with pytest.warns(ConvergenceWarning, match="without any weight it is 1.1; lower lr .now 1000"):
        SGDProbe(1000.0, epochs=2, normalise=None).fit(100 * X, y)
    with pytest.raises(ValueError, match=r"the loss is not finite in epoch \d.*; lower lr"):
        SGDProbe(1e308, epochs=2, normalise=None).fit(100 * X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SGDProbe(epochs=5).fit(X, y).loss_ < math.log(3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"batch_size": 0}, "batch_size must be positive and finite, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative, got -1.0"),
        ({"momentum": 1.0}, "momentum must lie in [0, 1), got 1.0"),
        ({"normalise": "L2"}, "SGDProbe: normalise must be 'standard', 'l2' or None, got 'L2'"),
    ],
)
def test_refused_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SGDProbe(**parameters).fit(*clouds())


def test_one_class_and_no_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class"):
        SGDProbe().fit(np.ones((3, 2)), [4, 4, 4])
    with pytest.raises(NotFittedError):
        SGDProbe().predict(np.ones((3, 2)))
