"""The linear probe: scikit-learn's contract, the search for C, and what it does at the edges."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator

from hrrl_ext.transfer import Features
from hrrl_ext.transfer.probe import LinearProbe, ProbeResult, _held_out, probe

GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def blobs(sizes, dim=4, spread=0.3, seed=0):
    """Gaussian clouds, one per class, of the given sizes."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), dim)) * 2
    y = np.repeat(np.arange(len(sizes)), sizes)
    return centres[y] + spread * random.normal(size=(len(y), dim)), y


@pytest.fixture(scope="module")
def digits():
    """Real data: 500 digits to fit on and 500 to test on."""
    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X, dtype=torch.float32)
    y = torch.tensor(y)
    return Features(X[:500], y[:500]), Features(X[500:1000], y[500:1000])


# scikit-learn's contract


@pytest.mark.parametrize(
    "parameters",
    [{}, {"normalise": "standard"}, {"normalise": None}, {"C": 1.0, "solver": "streamed"}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Skipping check:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_check_estimator(parameters):
    check_estimator(LinearProbe(**parameters))


def test_it_works_inside_scikit_learn(digits):
    train, _ = digits
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(), LinearProbe()),
        {"linearprobe__normalise": ["l2", "standard"], "linearprobe__C": [0.1]},
        cv=2,
    )
    search.fit(train.features.numpy(), train.labels.numpy())
    assert search.best_score_ > 0.8
    assert clone(LinearProbe(C=0.5, grid=(1,))).get_params()["grid"] == (1,)


def test_scikit_learn_is_loaded_on_first_use():
    code = """
import sys
import hrrl_ext.models, hrrl_ext.transfer
heavy = {"sklearn", "scipy", "torchvision", "PIL", "matplotlib"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
from hrrl_ext.transfer import LinearProbe, ProbeResult, probe
assert "sklearn" in sys.modules
assert probe.LinearProbe is LinearProbe and probe.ProbeResult is ProbeResult
assert {"LinearProbe", "extract_features"} <= set(dir(hrrl_ext.transfer))
try:
    hrrl_ext.transfer.LinearProb
except AttributeError as error:
    assert "LinearProb" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Fit


@pytest.mark.parametrize("normalise", ["l2", "standard", None])
def test_fit_is_a_linear_svc_on_normalised_features(digits, normalise):
    train, test = digits
    X, Xt = train.features.double().numpy(), test.features.double().numpy()
    mean, std = X.mean(0), X.std(0)
    std[std == 0] = 1  # pixels that no digit touches
    normalised = {
        "l2": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
        "standard": lambda x: (x - mean) / std,
        None: lambda x: x,
    }[normalise]
    model = LinearProbe(C=0.1, normalise=normalise).fit(train.features, train.labels)
    svm = LinearSVC(C=0.1, dual=False, max_iter=2000).fit(normalised(X), train.labels.numpy())
    # The same solver on numbers that differ in the last bits; it stops at a tolerance of 1e-4.
    expected = svm.decision_function(normalised(Xt))
    np.testing.assert_allclose(model.decision_function(test.features), expected, atol=1e-3)
    np.testing.assert_allclose(
        model.decision_function(test.features),
        normalised(Xt) @ model.coef_.T + model.intercept_,
        atol=1e-9,
    )
    assert (model.predict(test.features) == expected.argmax(1)).all()
    assert (model.C_, model.scores_, model.converged_) == (0.1, {}, True)
    assert model.n_features_in_ == 64


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x.double(),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.T.contiguous().T,
        lambda x: x.bfloat16(),
    ],
    ids=["float", "double", "numpy", "list", "grad", "strided", "bfloat16"],
)
def test_every_container_gives_the_same_fit(digits, convert):
    train, test = digits  # digits are integers from 0 to 16: exact in bfloat16 too
    expected = LinearProbe(C=1.0).fit(train.features, train.labels)
    model = LinearProbe(C=1.0).fit(convert(train.features), train.labels.tolist())
    assert np.array_equal(model.coef_, expected.coef_)
    assert model.score(convert(test.features), test.labels) == expected.score(
        test.features.numpy(), test.labels.numpy()
    )


def test_features_are_not_changed(digits):
    X, y = digits[0].features.double().numpy(), digits[0].labels.numpy()
    copy = X.copy()
    for normalise in ("l2", "standard", None):
        LinearProbe(C=1.0, normalise=normalise).fit(X, y).predict(X)
    assert np.array_equal(X, copy)


@pytest.mark.parametrize("normalise", ["l2", "standard"])
def test_the_scale_of_the_features_does_not_matter(digits, normalise):
    train, test = digits
    predictions = [
        LinearProbe(normalise=normalise)
        .fit(f * train.features, train.labels)
        .predict(f * test.features)
        for f in (1.0, 2.0**-10)  # a power of two: the same bits after normalisation
    ]
    assert (predictions[0] == predictions[1]).all()


def test_rows_of_zeros_and_constant_columns_stay_finite():
    X, y = blobs([20, 20])
    X[:2] = 0
    X = np.column_stack([X, np.full(len(X), 7.0)])
    for normalise in ("l2", "standard", None):
        assert np.isfinite(LinearProbe(C=1.0, normalise=normalise).fit(X, y).coef_).all()


# Search


def test_search_takes_the_best_c_of_the_grid_and_refits_on_everything(digits):
    train, test = digits
    model = LinearProbe().fit(train.features, train.labels)
    assert tuple(model.scores_) == GRID
    assert model.scores_[model.C_] == max(model.scores_.values())
    assert model.scores_[1e-3] < model.scores_[10.0]  # else the test could not fail
    refitted = LinearProbe(C=model.C_).fit(train.features, train.labels)
    assert np.array_equal(model.coef_, refitted.coef_)
    assert model.score(test.features, test.labels) > 0.8  # chance is 0.1


def test_search_scores_are_those_of_the_held_out_part(digits):
    X, y = digits[0].features.numpy(), digits[0].labels.numpy()
    model = LinearProbe(grid=(0.01, 1.0), normalise="standard", random_state=5).fit(X, y)
    held = _held_out(y, 0.2, np.random.RandomState(5))
    for C, score in model.scores_.items():
        part = LinearProbe(C=C, normalise="standard").fit(X[~held], y[~held])
        assert part.score(X[held], y[held]) == score


def test_ties_go_to_the_smaller_c():
    X, y = blobs([30, 30, 30], spread=0.01)
    model = LinearProbe(grid=(10.0, 0.1, 1.0), normalise=None).fit(X, y)
    assert model.scores_ == {0.1: 1.0, 1.0: 1.0, 10.0: 1.0}
    assert model.C_ == 0.1


def test_search_is_reproducible(digits):
    X, y = digits[0].features, digits[0].labels
    first, second = LinearProbe().fit(X, y), LinearProbe().fit(X, y)
    assert first.scores_ == second.scores_
    assert np.array_equal(first.coef_, second.coef_)
    other = LinearProbe(random_state=1).fit(X, y)
    assert other.scores_ != first.scores_


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_held_out_part_is_stratified(share):
    y = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = _held_out(y, share, np.random.RandomState(0))
    assert np.bincount(y[held], minlength=4).tolist() == [
        round(100 * share),
        round(10 * share),
        1,
        0,
    ]


def test_a_class_of_one_example_is_fitted_and_not_validated():
    X, y = blobs([10, 10, 1])
    model = LinearProbe().fit(X, y)
    assert tuple(model.scores_) == GRID
    assert model.classes_.tolist() == [0, 1, 2]


def test_one_example_per_class_leaves_nothing_to_search():
    X, y = blobs([1, 1, 1])
    model = LinearProbe().fit(X, y)
    assert (model.C_, model.scores_) == (1.0, {})
    assert (model.predict(X) == y).all()


def test_two_examples_per_class_are_enough():
    X, y = blobs([2, 2])
    assert tuple(LinearProbe().fit(X, y).scores_) == GRID


# Labels


def test_labels_of_any_type():
    X, y = blobs([10, 10, 10])
    names = np.array(["cat", "dog", "eel"])[y]
    model = LinearProbe(C=1.0).fit(X, names)
    assert set(model.predict(X)) == {"cat", "dog", "eel"}
    sparse = LinearProbe(C=1.0).fit(X, torch.from_numpy(y) * 1000 - 7)
    assert sparse.classes_.tolist() == [-7, 993, 1993]


def test_two_classes_have_one_decision():
    X, y = blobs([10, 12])
    model = LinearProbe(C=1.0).fit(X, y)
    assert model.decision_function(X).shape == (22,)
    assert ((model.decision_function(X) > 0) == y).all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes, got 1 class"):
        LinearProbe().fit(np.ones((3, 2)), [4, 4, 4])


# Convergence


def test_one_warning_of_ours_when_liblinear_stops_early(digits):
    train, _ = digits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LinearProbe(max_iter=1).fit(train.features, train.labels)
    assert model.converged_ is False
    assert [w.category for w in caught] == [ConvergenceWarning]
    assert "LinearProbe" in str(caught[0].message)
    assert "0.001, 0.01, 0.1, 1, 10 (chosen" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_converged_speaks_of_the_last_fit_and_the_warning_of_all():
    X, y = blobs([30, 30, 30], spread=0.01)  # every C is right, so the search takes the smallest
    few, many = (LinearProbe(C=C, normalise=None).fit(X, y).n_iter_ for C in (0.1, 10.0))
    assert few + 1 < many
    model = LinearProbe(grid=(0.1, 10.0), normalise=None, max_iter=few + 1)
    with pytest.warns(ConvergenceWarning, match=r"for C = 10 \(chosen: 0\.1\)"):
        model.fit(X, y)
    assert model.converged_ is True


def test_the_default_converges_where_features_outnumber_examples(digits):
    random = np.random.default_rng(0)
    X, y = digits[0].features[:60].numpy(), digits[0].labels[:60].numpy()
    X = np.maximum(X @ random.normal(size=(64, 256)), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LinearProbe().fit(X, y).converged_


# Refusals


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": "cv"}, "C must be a positive, finite number or 'search', got 'cv'"),
        ({"C": 0}, "got 0"),
        ({"C": -1.0}, "got -1.0"),
        ({"C": float("nan")}, "got nan"),
        ({"C": float("inf")}, "got inf"),
        ({"C": None}, "got None"),
        ({"grid": ()}, "grid must hold positive numbers"),
        ({"grid": (1.0, 0.0)}, "grid must hold positive numbers"),
        ({"grid": ("1",)}, "grid must hold positive numbers"),
        ({"normalise": "L2"}, "normalise must be 'standard', 'l2' or None, got 'L2'"),
        ({"validation_size": 0.0}, "validation_size must lie between 0 and 1"),
        ({"validation_size": 1.0}, "validation_size must lie between 0 and 1"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"solver": "stream"}, "solver must be 'auto', 'liblinear' or 'streamed', got 'stream'"),
    ],
    ids=str,
)
def test_refused_parameters(parameters, message):
    X, y = blobs([5, 5])
    with pytest.raises(ValueError, match=message):
        LinearProbe(**parameters).fit(X, y)


def test_not_fitted_and_wrong_width():
    X, y = blobs([5, 5])
    with pytest.raises(NotFittedError):
        LinearProbe().predict(X)
    with pytest.raises(ValueError, match="X has 3 features, but LinearProbe is expecting 4"):
        LinearProbe(C=1.0).fit(X, y).predict(X[:, :3])


# probe


def test_probe_reports_accuracies_as_shares(digits):
    train, test = digits
    result = probe(train, test, C=1.0)
    predicted = LinearProbe(C=1.0).fit(train.features, train.labels).predict(test.features)
    labels = test.labels.numpy()
    shares = [(predicted[labels == k] == k).mean() for k in range(10)]
    assert result == ProbeResult(
        accuracy=(predicted == labels).mean(),
        C=1.0,
        converged=True,
        worst_class_accuracy=min(shares),
        n_train=500,
        n_test=500,
    )
    assert 0 < result.worst_class_accuracy < result.accuracy < 1
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert set(result.to_dict()) == {
        "accuracy",
        "C",
        "converged",
        "worst_class_accuracy",
        "n_train",
        "n_test",
    }


def test_probe_does_not_search_on_the_test_data(digits):
    train, test = digits
    shuffled = Features(test.features, test.labels.flip(0))
    assert probe(train, test).C == probe(train, shuffled).C


def test_worst_class_is_taken_over_classes_with_test_examples(digits):
    train, test = digits
    easy = test.labels == 0
    result = probe(train, Features(test.features[easy], test.labels[easy]), C=1.0)
    assert result.worst_class_accuracy == result.accuracy > 0.9


def test_a_test_class_without_training_examples_counts_as_wrong(digits):
    train, test = digits
    known = train.labels != 3
    result = probe(Features(train.features[known], train.labels[known]), test, C=1.0)
    assert result.worst_class_accuracy == 0
    assert result.accuracy < 0.95


def test_probe_refuses_an_empty_test_set(digits):
    train, test = digits
    with pytest.raises(ValueError, match="test has no examples"):
        probe(train, Features(test.features[:0], test.labels[:0]))
