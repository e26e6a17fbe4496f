"""Certificates of any linear classifier: exact from both sides, whatever holds the weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from margin_cases import NORMS, synthetic
from scipy import sparse
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from hrrl_ext.linear import MaxMarginClassifier, certify
from hrrl_ext.norms import vector_norm
from hrrl_ext.transfer import LinearProbe, SGDProbe


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    return X, names[y]


@pytest.mark.parametrize("norm", NORMS)
def test_the_radius_is_where_the_prediction_turns(norm: str, iris) -> None:
    """The worst case just inside changes nothing, just outside it errs; three classes, words as labels."""
    X, y = iris
    model = MaxMarginClassifier(norm, C=1.0, solver="first-order").fit(X, y)
    certificate = model.certify(X, y)
    right = model.predict(X) == y
    np.testing.assert_array_equal(certificate.radius > 0, right)
    for radius, rival, x, label in list(
        zip(certificate.radius, certificate.rival, X, y, strict=True)
    )[::7]:
        if radius > 0:
            inside, outside = (
                model.worst_case(x[None], [label], radius * f) for f in (1 - 1e-6, 1 + 1e-6)
            )
            size = vector_norm(norm).dual.size(torch.from_numpy(outside - x))
            assert float(size) == pytest.approx(radius, rel=1e-5)
            assert model.predict(inside) == label and model.predict(outside) == rival


@pytest.mark.parametrize("norm", NORMS)
def test_no_perturbation_that_is_drawn_does_better(norm: str, iris) -> None:
    """R-T2: the closed form is the maximum, for each of several classes."""
    X, y = iris
    model = LogisticRegression(max_iter=2000).fit(X, y)
    eps, attack = 0.8, vector_norm(norm).dual
    share = certify(model, X, y, norm).accuracy(eps)
    random = torch.Generator().manual_seed(0)
    survived = model.predict(X) == y
    for _ in range(200):
        delta = torch.randn(X.shape, dtype=torch.float64, generator=random)
        delta = eps * delta / attack.size(delta).unsqueeze(-1)
        survived &= model.predict(X + delta.numpy()) == y
    assert share <= survived.mean()
    moved = MaxMarginClassifier(norm, C=1.0, solver="first-order").fit(X, y)
    certified = moved.certified_accuracy(X, y, [0.0, eps])
    attacked = moved.predict(moved.worst_case(X, y, eps)) == y
    assert certified[0] == moved.score(X, y) and certified[1] == attacked.mean()


def test_every_kind_of_head_says_the_same(iris) -> None:
    X, y = iris
    svm = LinearSVC(C=0.1).fit(X, y)
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(svm.coef_))
        layer.bias.copy_(torch.from_numpy(svm.intercept_))
    expected = certify(svm, X, y, "l1")
    number = np.searchsorted(svm.classes_, y)
    found = certify(layer, torch.from_numpy(X), torch.from_numpy(number), "l1")
    assert isinstance(found.radius, torch.Tensor)
    np.testing.assert_array_equal(found.radius.numpy(), expected.radius)
    np.testing.assert_array_equal(svm.classes_[found.rival.numpy()], expected.rival)
    assert found.norm == expected.norm == "linf"
    assert expected.robust_radius == expected.radius.min()


def test_two_classes_by_hand() -> None:
    X, y = synthetic(30, 0, 6)
    for model in (LogisticRegression(max_iter=2000), RidgeClassifier(), SVC(kernel="linear")):
        model.fit(X, y)
        radius = y * model.decision_function(X) / np.abs(model.coef_).sum()
        np.testing.assert_allclose(certify(model, X, y, "l1").radius, radius, rtol=1e-9)
    layer = torch.nn.Linear(6, 1)
    x, target = torch.randn(5, 6), torch.tensor([0, 1, 1, 0, 1])
    radius = (2 * target - 1) * layer(x).squeeze(1) / layer.weight.norm()
    torch.testing.assert_close(certify(layer, x, target, "l2").radius.float(), radius)


@pytest.mark.parametrize(
    "scaler", [StandardScaler(), MinMaxScaler(), MaxAbsScaler(), "passthrough"]
)
def test_scalers_are_folded_into_the_weights(scaler, iris) -> None:
    """Radii are in the space of X: the prediction of the whole pipeline turns there."""
    X, y = iris
    model = make_pipeline(
        scaler, StandardScaler(with_mean=False), LogisticRegression(max_iter=2000)
    ).fit(X, y)
    certificate = certify(model, X, y, "l1")
    i = int(np.flatnonzero(certificate.radius > 0)[3])
    W = {c: model[-1].coef_[k] for k, c in enumerate(model.classes_)}
    w = W[y[i]] - W[certificate.rival[i]]
    x = X[i] - (1 + 1e-6) * certificate.radius[i] * np.sign(w)
    assert model.predict(X[i : i + 1]) == y[i] != model.predict(x[None])


@pytest.mark.parametrize("make", [partial(LinearProbe, 1.0), partial(SGDProbe, 0.1, epochs=5)])
def test_a_probe_is_certified_in_the_space_it_sees(make, iris) -> None:
    X, y = iris
    for kind in ("standard", None):
        probe = make(normalise=kind).fit(X, y)
        right = probe.predict(X) == y
        np.testing.assert_array_equal(certify(probe, X, y).radius > 0, right)
    probe = make(normalise="l2").fit(X, y)
    rows = Normalizer().transform(X)
    expected = certify(probe.pipeline_[-1], rows, y).radius
    np.testing.assert_array_equal(certify(probe, X, y).radius, expected)
    within = make_pipeline(StandardScaler(), make_pipeline(Normalizer(), LinearSVC()))
    for model in (make_pipeline(StandardScaler(), make(normalise="l2")), within):
        right = model.fit(X, y).predict(X) == y
        assert 0.8 < right.mean() < 1
        np.testing.assert_array_equal(certify(model, X, y).radius > 0, right)


def test_equal_and_empty_weights() -> None:
    """Classes with the same w are told by b alone; if all are, no radius is defined, and no eps matters."""
    layer = torch.nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
        layer.bias.copy_(torch.tensor([1.0, 0, 0]))
    x = np.array([[3.0, 0.0]])
    assert certify(layer, x, [0], "l2").radius == pytest.approx(4 / np.sqrt(2))
    assert certify(layer, x, [1], "l2").radius == -np.inf
    with torch.no_grad():
        layer.weight.zero_()
    for label, share in ((0, 1.0), (1, 0.0)):
        found = certify(layer, x, [label])
        assert np.isnan(found.radius).all() and np.isnan(found.robust_radius)
        assert found.accuracy([0.0, 100.0]).tolist() == [share, share]


def test_what_cannot_be_certified_says_why(iris) -> None:
    X, y = iris
    model = LogisticRegression(max_iter=2000).fit(X, y)
    with pytest.raises(ValueError, match="does not know the label 'rose'"):
        certify(model, X[:1], ["rose"])
    with pytest.raises(ValueError, match=r"X must be \[N, 4\], .* got \[150, 3\]"):
        certify(model, X[:, :3], y)
    with pytest.raises(ValueError, match="one label per row"):
        certify(model, X, y[:3])
    with pytest.raises(ValueError, match="number 2 of row 1 is nan; fill in what is missing"):
        certify(model, np.where(np.arange(600).reshape(150, 4) == 6, np.nan, X), y)
    with pytest.raises(TypeError, match="hyperplane per pair"):
        certify(SVC(kernel="linear").fit(X, y), X, y)
    with pytest.raises(TypeError, match="extract_features"):
        certify(torch.nn.Sequential(torch.nn.Linear(4, 3)), X, y)
    with pytest.raises(TypeError, match="must be a fitted linear classifier"):
        certify(LinearRegression().fit(X, np.arange(150)), X, y)
    with pytest.raises(TypeError, match="step 'pca', a PCA, is none of"):
        certify(make_pipeline(PCA(), LogisticRegression(max_iter=2000)).fit(X, y), X, y)
    clipping = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=2000)).fit(X, y)
    clipping[0].clip = True  # which scikit-learn has from 1.9 on
    with pytest.raises(TypeError, match=r"a MaxAbsScaler, is none of .* \(both with clip=False\)"):
        certify(clipping, X, y)
    with pytest.raises(ValueError, match=r"X must be \[N, 4\], .* got \[150, 3\]"):
        certify(make_pipeline(StandardScaler(), model).fit(X, y), X[:, :3], y)
    with pytest.raises(ValueError, match="norm 'l7x' is not known"):
        certify(model, X, y, "l7x")
    with pytest.raises(TypeError, match=r"must be dense, got a sparse matrix; use X.toarray\(\)"):
        certify(model, sparse.csr_array(X), y)
    for unfitted in (MaxMarginClassifier(), make_pipeline(StandardScaler(), LogisticRegression())):
        with pytest.raises(NotFittedError):
            certify(unfitted, X, y)
    for eps in (-0.1, [0.0, np.nan]):
        with pytest.raises(ValueError, match="eps must be at least 0"):
            certify(model, X, y).accuracy(eps)


def test_columns_have_the_order_of_the_fit(iris) -> None:
    pandas = pytest.importorskip("pandas")
    X, y = iris
    X = pandas.DataFrame(X, columns=list("abcd"))
    model = MaxMarginClassifier(C=1.0).fit(X, y)
    assert model.feature_names_in_.tolist() == list("abcd")
    assert (
        certify(model, X, pandas.Series(y)).radius.tolist() == model.certify(X, y).radius.tolist()
    )
    for head in (model, make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)):
        with pytest.raises(ValueError, match="same order"):
            certify(head, X[list("dcba")], y)
