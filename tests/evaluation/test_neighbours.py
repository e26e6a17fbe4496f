"""Nearest neighbours against a loop over pairs in float64, ties, scales, and the result by concept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

from hrrl_ext.data import ConceptMap
from hrrl_ext.evaluation import neighbours as module
from hrrl_ext.transfer import Features, KNeighbours
from hrrl_ext.transfer.probe import probe


def problem(n: int, m: int, d: int, classes: int, dtype=np.float64):
    random = np.random.RandomState(0)
    X, Q = random.randn(n, d).astype(dtype), random.randn(m, d).astype(dtype)
    return X, random.permutation(np.arange(n) % classes), Q


def by_pairs(X, y, Q, k: int, temperature: float) -> list[list[float]]:
    """The definition, one pair at a time."""
    classes, shares = sorted(set(y.tolist())), []
    for q in Q:
        similarity = [
            float(q @ x) / math.sqrt(float(q @ q) * float(x @ x)) if x.any() and q.any() else 0.0
            for x in X
        ]
        near = sorted(range(len(X)), key=lambda i: (-similarity[i], i))[:k]
        votes = dict.fromkeys(classes, 0.0)
        for i in near:
            votes[y[i]] += math.exp(similarity[i] / temperature)
        shares.append([votes[c] / sum(votes.values()) for c in classes])
    return shares


@pytest.mark.filterwarnings("ignore")  # of the checks that need other packages
def test_check_estimator():
    check_estimator(KNeighbours(3))


@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(1, 1, 1, 1), (7, 3, 2, 3), (31, 11, 5, 31), (13, 5, 3, 200)]
)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_votes_are_the_definition(n, m, d, k, temperature):
    X, y, Q = problem(n, m, d, 3)
    model = KNeighbours(k, temperature=temperature).fit(X, y)
    expected = np.array(by_pairs(X, y, Q, k, temperature))
    # Cosines agree to some 1e-16, exponents divide that by T.
    np.testing.assert_allclose(model.predict_proba(Q), expected, rtol=1e-13, atol=1e-15)
    assert (model.predict(Q) == model.classes_[expected.argmax(1)]).all()


def test_a_large_temperature_counts_heads_as_scikit_learn_does():
    X, y, Q = problem(40, 20, 4, 3)
    theirs = KNeighborsClassifier(7, metric="cosine").fit(X, y)
    ours = KNeighbours(7, temperature=1e9).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(Q), theirs.predict_proba(Q), rtol=1e-8)


def test_a_small_temperature_leaves_the_decision_to_the_nearest():
    X, y, Q = problem(40, 20, 4, 3)
    nearest = KNeighbours(1).fit(X, y).predict(Q)
    model = KNeighbours(40, temperature=1e-300).fit(X, y)
    assert np.isfinite(model.predict_proba(Q)).all()
    assert (model.predict(Q) == nearest).all()


def test_parts_of_the_queries_do_not_matter(monkeypatch):
    X, y, Q = problem(30, 17, 4, 3)
    model = KNeighbours(5).fit(X, y)
    whole = model.predict_proba(Q)
    monkeypatch.setattr(module, "_CHUNK", 90)  # three queries at once
    # Another shape of the product may round differently.
    np.testing.assert_allclose(model.predict_proba(Q), whole, rtol=1e-12)


# Ties


def test_of_equal_similarities_the_earlier_examples_are_neighbours():
    X = np.tile([[1.0, 0.0]], (9, 1))
    X[4] = [0.0, 1.0]
    for order in (np.arange(9), np.arange(9)[::-1]):
        y = order.copy()  # every example a class of its own
        votes = KNeighbours(3, temperature=1.0).fit(X, y).predict_proba([[2.0, 0.0]])[0]
        assert votes[y[:3]] == pytest.approx(1 / 3)
        assert votes.sum() == pytest.approx(1)


def test_the_nearest_stay_where_the_last_ones_tie():
    X = np.array([[0.0, 1.0]] * 3 + [[1.0, 0.0]] + [[0.0, 1.0]] * 3)
    votes = KNeighbours(2, temperature=1.0).fit(X, np.arange(7)).predict_proba([[1.0, 0.1]])[0]
    assert np.flatnonzero(votes).tolist() == [0, 3]
    assert votes[3] > votes[0]


def test_of_equal_votes_the_first_class_wins():
    X = np.eye(3)
    model = KNeighbours(3, temperature=1.0).fit(X, ["c", "b", "a"])
    assert model.predict(np.ones((1, 3))).tolist() == ["a"]


# Edges


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_features_have_no_scale(scale):
    """In float32, where the squares are out of range."""
    X, y, Q = problem(30, 9, 4, 3, np.float32)
    expected = KNeighbours(5).fit(X, y).predict_proba(Q)
    scale = np.float32(scale)
    scaled = KNeighbours(5).fit(X * scale, y).predict_proba(Q * scale)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)  # 1e-7 of a cosine over T = 0.1


def test_rows_of_zeros_are_similar_to_none():
    X, y, Q = problem(10, 4, 3, 2)
    X[3], Q[1] = 0, 0
    model = KNeighbours(10).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(Q), by_pairs(X, y, Q, 10, 0.1), rtol=1e-12)


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda x: torch.from_numpy(x).to(torch.bfloat16),
        lambda x: torch.from_numpy(x)[:, None].expand(-1, 2, -1)[:, 1],
        np.asfortranarray,
        lambda x: x.tolist(),
    ],
    ids=["tensor", "bfloat16", "strided", "fortran", "lists"],
)
def test_every_container_gives_the_same(convert):
    X, y, Q = (np.round(a) for a in problem(12, 5, 3, 2))  # whole numbers: exact in bfloat16
    X[:, 0] += 9
    y = y.astype(int)
    expected = KNeighbours(3).fit(X, y).predict_proba(Q)
    ours = KNeighbours(3).fit(convert(X), torch.from_numpy(y)).predict_proba(convert(Q))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_one_class_and_one_example_are_enough():
    assert KNeighbours().fit([[1.0, 2.0]], [7]).predict([[0.0, -1.0]]).tolist() == [7]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k must be a whole number from 1 on, got 0"),
        ({"k": 1.5}, "got 1.5"),
        ({"k": "3"}, "got '3'"),
        ({"temperature": 0}, "temperature must be positive and finite, got 0"),
        ({"temperature": math.nan}, "got nan"),
        ({"temperature": math.inf}, "got inf"),
    ],
)
def test_refused_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        KNeighbours(**parameters).fit([[1.0]], [0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite(value):
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        KNeighbours().fit([[value]], [0])


# probe


def features(n: int, seed: int) -> Features:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    return Features(torch.randn(n, 6, generator=g) + 2 * torch.eye(6)[labels], labels)


MAP = ConceptMap(torch.tensor([0, 0, 1, 2]), ["a", "b", "c"])


@pytest.mark.parametrize("method", ["svm", "knn"])
def test_accuracy_by_concept(method):
    train, test = features(60, 0), features(48, 1)
    result = probe(train, test, method=method, concepts=MAP)
    from hrrl_ext.transfer import LinearProbe

    model = {"svm": LinearProbe, "knn": KNeighbours}[method]().fit(*train)
    hit = model.predict(test.features) == test.labels.numpy()
    by = [hit[MAP.concept(test.labels).numpy() == k].mean() for k in range(3)]
    assert result.concept_accuracy == dict(zip("abc", map(float, by), strict=True))
    assert result.worst_concept_accuracy == min(by) < result.accuracy == hit.mean()
    if method == "knn":
        assert (result.k, result.temperature, result.C) == (60, 0.1, None)
        assert "C" not in result.to_dict()


def test_a_concept_without_test_examples_has_no_accuracy():
    test = features(48, 1)
    some = test.labels != 3
    result = probe(features(60, 0), Features(*(t[some] for t in test)), method="knn", concepts=MAP)
    assert result.concept_accuracy["c"] is None
    by = [result.concept_accuracy[k] for k in "ab"]
    assert result.worst_concept_accuracy == min(a for a in by if a is not None) and None not in by


def test_probe_refuses():
    train = features(8, 0)
    with pytest.raises(ValueError, match="method must be svm, sgd or knn, got 'tree'"):
        probe(train, train, method="tree")
    with pytest.raises(
        ValueError, match="knn's setting 'C' is not known; known are 'k', 'temperature'"
    ):
        probe(train, train, method="knn", C=1.0)
    with pytest.raises(IndexError, match="must lie in"):
        probe(train, train, method="knn", concepts=ConceptMap(torch.zeros(2).long(), ["a"]))
