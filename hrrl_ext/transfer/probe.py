"""Linear SVM on frozen features: the paper's measure of a representation (Tables 2 to 4).

The paper prints "linear SVM" and a parameter searched in 10^i, i = -3..1. The solver, the scaling
of the features and the data on which the search is scored are ours: docs/transfer.md.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._arrays import is_positive, to_numpy
from ..data import ConceptMap
from ..evaluation.neighbours import KNeighbours
from ..spec import not_known
from .features import Features
from .normalising import Normalise, scaler
from .sgd_probe import SGDProbe
from .streamed_svm import Fit, Fits, as_stored, blocks, streaming

__all__ = ["LinearProbe", "ProbeResult", "SGDProbe", "probe"]

_LARGE = 2**27  # numbers of X from which on it is streamed; liblinear takes 3 GiB for as many


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """One-vs-rest linear SVM with squared hinge; C is searched on a part of the training data.

        min_{w,b} 1/2 (‖w‖² + b²) + C Σ_i max(0, 1 - y_i (w·x_i + b))²        per class, y = ±1

    C                a positive number, or "search": the best of `grid` on held-out training data,
                     the smaller C among equals, then a fit on all of it
    normalise        "l2": rows of norm 1; "standard": columns of mean 0 and variance 1 over the
                     examples fitted on; None: features as they are
    validation_size  share of every class that the search holds out. Each class keeps at least one
                     example to fit on, and one with two or more has at least one held out
    max_iter         of liblinear, per class; passes over the examples, where they are streamed
    random_state     of the held-out part, and of liblinear's dual solver (N < D)
    solver           "liblinear"; "streamed": the same problem to the same tolerance, a block of rows at a
                     time, in memory that does not grow with N; "auto": streamed from 2**27 numbers N D on
    device           where it is streamed
    progress         is told, as it is streamed, in a line how long the rest will take

    Features are [N, D] arrays or tensors, labels [N] of any type. liblinear has them converted to
    float64; what is streamed stays where it is, in a mapped file, say, and in its type. If no class has
    two examples there is nothing to search on: then C_ = 1.0 and scores_ is empty.

    Attributes after fit: C_, scores_ (C → validation accuracy, empty if C was given), converged_
    (whether the last fit met liblinear's tolerance; one ConvergenceWarning names each C, searched
    or chosen, that did not), classes_, n_features_in_, pipeline_ (normalisation, then LinearSVC),
    and of that SVM coef_ and intercept_ (for normalised features) and n_iter_.
    """

    def __init__(
        self,
        C: float | Literal["search"] = "search",
        *,
        grid: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
        normalise: Normalise = "l2",
        validation_size: float = 0.2,
        max_iter: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
        solver: Literal["auto", "liblinear", "streamed"] = "auto",
        device: torch.device | str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.C = C
        self.grid = grid
        self.normalise = normalise
        self.validation_size = validation_size
        self.max_iter = max_iter
        self.random_state = random_state
        self.solver = solver
        self.device = device
        self.progress = progress

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """Fit on features X [N, D] and labels y [N]; ValueError on fewer than two classes."""
        self._check_parameters()
        streamed = self._streams(getattr(X, "shape", ()))
        X, y = validate_data(
            self,
            as_stored(X) if streamed else to_numpy(X),
            to_numpy(y),
            dtype="numeric" if streamed else np.float64,
            ensure_all_finite=not streamed,  # a block at a time
        )
        check_classification_targets(y)
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"LinearProbe: y must hold at least 2 classes, got 1 class ({self.classes_[0]!r})"
            )
        grid: list[float] = []
        if self.C == "search":
            held = _held_out(y, self.validation_size, check_random_state(self.random_state))
            grid = sorted({float(C) for C in self.grid}) if held.any() else []
        if streamed:
            fits = streaming(
                X,
                label,
                self.classes_,
                normalise=self.normalise,
                max_passes=self.max_iter,
                device=self.device,
                number=len(grid) + 1,
                report=self.progress,
            )
        else:
            fits = self._liblinear(X, y)
        unconverged: list[float] = []
        self.scores_: dict[float, float] = {}
        for C, pipeline, converged in fits(grid, ~held) if grid else ():
            self.scores_[C] = _accuracy(pipeline, X, y, held)
            if not converged:
                unconverged.append(C)
        given = 1.0 if self.C == "search" else float(self.C)
        self.C_ = max(self.scores_, key=self.scores_.__getitem__, default=given)
        ((_, self.pipeline_, self.converged_),) = fits([self.C_], None)
        if not self.converged_:
            unconverged.append(self.C_)
        self.coef_ = self.pipeline_[-1].coef_
        self.intercept_ = self.pipeline_[-1].intercept_
        self.n_iter_ = int(self.pipeline_[-1].n_iter_)
        if unconverged:
            solver = "the streamed solver" if streamed else "liblinear"
            warnings.warn(
                f"LinearProbe: {solver} did not converge in {self.max_iter} iterations for C = "
                f"{', '.join(f'{C:g}' for C in sorted(set(unconverged)))} (chosen: {self.C_:g}); "
                "raise max_iter, or use normalise='l2', which converges soonest",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Class of every row of X [N, D]: an array [N] of entries of classes_."""
        return np.concatenate([self.pipeline_.predict(part) for part in self._parts(X)])

    def decision_function(self, X: Any) -> np.ndarray:
        """w·x + b per row: [N, classes], or [N] for two classes, positive meaning classes_[1]."""
        return np.concatenate([self.pipeline_.decision_function(part) for part in self._parts(X)])

    def _liblinear(self, X: np.ndarray, y: np.ndarray) -> Fits:
        def fits(grid: Sequence[float], kept: np.ndarray | None) -> Iterator[Fit]:
            X_part, y_part = (X, y) if kept is None else (X[kept], y[kept])
            for C in grid:
                svm = LinearSVC(
                    C=C,
                    dual="auto",  # primal (deterministic, Newton) for N >= D, else coordinate descent
                    intercept_scaling=1.0,  # scores depend on it: liblinear regularises the intercept
                    max_iter=self.max_iter,
                    random_state=self.random_state,
                )
                pipeline = make_pipeline(scaler(self.normalise, "LinearProbe"), svm)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)  # fit warns once, for all
                    pipeline.fit(X_part, y_part)
                yield Fit(C, pipeline, svm.n_iter_ < self.max_iter)

        return fits

    def _parts(self, X: Any) -> Iterator[np.ndarray]:
        """All rows in float64, a block at a time where there are many."""
        check_is_fitted(self)
        shape = getattr(X, "shape", ())
        many = len(shape) == 2 and self._streams(shape)
        for part in (X[rows] for rows in blocks(shape, len(self.classes_))) if many else (X,):
            yield np.asarray(validate_data(self, to_numpy(part), dtype=np.float64, reset=False))

    def _streams(self, shape: tuple[int, ...]) -> bool:
        if self.solver == "auto":  # N < D is the dual's, whose solver has no need of D x D numbers
            return len(shape) == 2 and shape[0] >= shape[1] and math.prod(shape) >= _LARGE
        return self.solver == "streamed"

    def _check_parameters(self) -> None:
        if isinstance(self.C, str) and self.C == "search":
            if len(self.grid) == 0 or not all(is_positive(C) for C in self.grid):
                raise ValueError(
                    f"LinearProbe: grid must hold positive numbers, at least one, got {self.grid}"
                )
        elif not is_positive(self.C):
            raise ValueError(
                f"LinearProbe: C must be a positive, finite number or 'search', got {self.C!r}"
            )
        scaler(self.normalise, "LinearProbe")
        if self.solver not in ("auto", "liblinear", "streamed"):
            raise ValueError(
                f"LinearProbe: solver must be 'auto', 'liblinear' or 'streamed', got {self.solver!r}"
            )
        if not (is_positive(self.validation_size) and self.validation_size < 1):
            raise ValueError(
                "LinearProbe: validation_size must lie between 0 and 1, a share of every class, "
                f"got {self.validation_size!r}"
            )
        if not is_positive(self.max_iter):
            raise ValueError(f"LinearProbe: max_iter must be at least 1, got {self.max_iter}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Accuracies in [0, 1] on the test features of a classifier fitted on the training features.

    worst_class_accuracy, and worst_concept_accuracy, is the least over the classes or concepts with
    test examples; concept_accuracy is None for a concept without. A test class that the training
    features lack counts as wrong. C and converged are those of `LinearProbe`, k (of the training
    examples that there are) and temperature those of `KNeighbours`, lr, epochs and the loss of the last
    one those of `SGDProbe`.
    """

    accuracy: float
    worst_class_accuracy: float
    n_train: int
    n_test: int
    worst_concept_accuracy: float | None = None
    concept_accuracy: dict[str, float | None] | None = None
    C: float | None = None
    converged: bool | None = None
    k: int | None = None
    temperature: float | None = None
    lr: float | None = None
    epochs: int | None = None
    loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name that there are, ready for JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}


def probe(
    train: Features,
    test: Features,
    *,
    method: Literal["svm", "sgd", "knn"] = "svm",
    concepts: ConceptMap | None = None,
    **parameters: Any,
) -> ProbeResult:
    """Fit a classifier on train [N, D], measure it on test [M, D], by class and by concept.

    method      "svm": a `LinearProbe(**parameters)`, whose C is searched within train: test is looked
                at once, at the end; "sgd": `SGDProbe(**parameters)`; "knn": `KNeighbours(**parameters)`
    concepts    class → concept, where accuracies by concept are wanted

    ValueError: test is empty, or a parameter is not one of the method's. IndexError: a class that
    concepts do not know.
    """
    classifiers = {"svm": LinearProbe, "sgd": SGDProbe, "knn": KNeighbours}
    if method not in classifiers:
        raise ValueError(f"probe: method must be svm, sgd or knn, got {method!r}")
    known = classifiers[method]().get_params()
    if unknown := sorted(parameters.keys() - known.keys()):
        raise ValueError(f"probe: {method}'s setting {not_known(unknown[0], known)}")
    if len(test.features) == 0:
        raise ValueError("probe: test has no examples; check the path and split it came from")
    concept = None if concepts is None else concepts.concept(torch.as_tensor(test.labels)).numpy()
    classifier = classifiers[method](**parameters).fit(train.features, train.labels)
    labels = to_numpy(test.labels)
    correct = classifier.predict(test.features) == labels
    by_concept: dict[str, float | None] = {}
    if concepts is not None and concept is not None:
        hits = ((name, correct[concept == i]) for i, name in enumerate(concepts.names))
        by_concept = {name: float(hit.mean()) if len(hit) else None for name, hit in hits}
    settings: dict[str, Any]
    match method:
        case "svm":
            settings = {"C": classifier.C_, "converged": classifier.converged_}
        case "sgd":
            settings = {name: getattr(classifier, name) for name in ("lr", "epochs")}
            settings["loss"] = classifier.loss_
        case _:
            settings = {
                "k": min(int(classifier.k), len(train.features)),
                "temperature": float(classifier.temperature),
            }
    return ProbeResult(
        accuracy=float(correct.mean()),
        worst_class_accuracy=min(float(correct[labels == c].mean()) for c in np.unique(labels)),
        n_train=len(train.features),
        n_test=len(labels),
        worst_concept_accuracy=min((a for a in by_concept.values() if a is not None), default=None),
        concept_accuracy=by_concept or None,
        **settings,
    )


def _accuracy(pipeline: Pipeline, X: np.ndarray, y: np.ndarray, held: np.ndarray) -> float:
    hits = 0
    for block in blocks(X.shape, len(pipeline.classes_)):
        rows = held[block]
        if rows.any():
            x = X[block][rows].astype(np.float64, copy=False)
            hits += int(np.count_nonzero(pipeline.predict(x) == y[block][rows]))
    return hits / int(np.count_nonzero(held))


def _held_out(y: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Mask [N] of the examples to validate on: `share` of every class, within 1 .. size - 1.

    scikit-learn's stratified split refuses a class of one example and parts smaller than the number
    of classes. Here such a class is only fitted on, and every fit sees every class.
    """
    held = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == label))
        held[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    return held
