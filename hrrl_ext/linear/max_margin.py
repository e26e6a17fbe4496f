"""The maximally robust linear classifier as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._arrays import is_positive, like, to_numpy
from ..norms import VectorNorm, vector_norm
from ..spec import not_known
from .certify import Certificate, Linear, certify
from .duality import NotSeparableError, Problem, Solution, size
from .labels import named, not_separable, signs
from .solve import NORMS, WITHOUT_SLACK, Solver, choose, solve

_PATH = 16  # values of lam, over five decades
_DECADES = 5


class PathPoint(NamedTuple):
    """Of the minimiser of mean hinge + lam ‖w‖: min_i y_i f(x_i)/‖w‖, NaN where w = 0, and ‖w‖."""

    lam: float
    margin: float
    norm: float


class MaxMarginClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """The linear classifier that withstands the largest perturbation of its training examples, exactly.

        min_{w,b} ‖w‖   s.t.  y_i (w·x_i + b) ≥ 1;      ε* = 1/‖w‖

    No perturbation of size below ε* in the dual norm changes a training prediction, and of no other
    linear classifier can more be said (Lemma 5.2.1 of Faghri's thesis).

    norm         of w: "l1" (robust to linf attacks), "l2" (l2), "linf" (l1), "fourier-l1" (Fourier-linf)
    solver       "lp" (l1, linf; HiGHS), "nnls" (l2), "socp" (l2, fourier-l1; needs Clarabel, the extra
                 `solvers`): to rounding; "first-order" (all norms; on the device of X, where X is a
                 tensor): to `tol`; "auto": the exact one where it takes seconds, else first-order.
                 To see what they come to: "steepest", `max_iter` steps of steepest descent in the norm
                 on the exponential loss; "prox", hinge and the norm, at a lam that is small enough
    fit_intercept, penalise_intercept
                 whether there is a b, and whether it counts in the norm as one more weight, as it does
                 when a column of ones is appended: that is another problem, with another ε*
    C            None: separable data only. A number: + C Σ max(0, 1 - y_i (w·x_i + b)), for any data
                 (Eq. B.2). From C = max α on, it is the separable solution, exactly
    tol          relative duality gap at which "first-order" and "prox" stop; None: 1e-3
    max_iter     steps of "first-order", "steepest" and "prox"

    X is [n, d], y [n] of any labels; of more than two classes each is fitted against the others. Sparse
    X is refused. Tensors in, tensors out.

    Attributes after fit: classes_, n_features_in_, coef_ [1 or K, d], intercept_ [1 or K];
    robust_radius_, the least radius of the training examples, by the certificate for all classes
    (negative with training errors, NaN where w = 0); dual_coef_ [n] (or [K, n]) the multipliers α ≥ 0;
    support_, the examples with any; gap_, the relative duality gap, of the worst of K; lam_exact_,
    1/(n max α): for all lam up to it the minimiser of mean hinge + lam ‖w‖ is this very classifier (a
    number, or [K]; of the soft problem 1/(n C), its own lam); n_iter_, the most of K.
    """

    def __init__(
        self,
        norm: str = "l2",
        *,
        solver: Solver = "auto",
        fit_intercept: bool = True,
        penalise_intercept: bool = False,
        C: float | None = None,
        tol: float | None = None,
        max_iter: int = 100_000,
    ) -> None:
        self.norm = norm
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.penalise_intercept = penalise_intercept
        self.C = C
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> MaxMarginClassifier:
        """Raises NotSeparableError, a ValueError, where C is None and no hyperplane separates."""
        norm = self._check_parameters()
        device = X.device if isinstance(X, torch.Tensor) else "cpu"
        X, y = validate_data(self, to_numpy(X), to_numpy(y), dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"MaxMarginClassifier: y must hold at least 2 classes, got 1 class ({self.classes_[0]}); "
                "give examples of another one too"
            )
        found = [
            self._solved(Problem(X, sign, norm, self.fit_intercept, self.C), number, device)
            for number, sign in enumerate(signs(y, self.classes_))
        ]
        self.coef_ = np.stack([one.w for one in found])
        self.intercept_ = np.array([one.b for one in found])
        alpha = np.stack([one.alpha for one in found])
        self.support_ = np.flatnonzero(alpha.any(0))
        largest = alpha.max(1)
        with np.errstate(divide="ignore"):
            lam = (
                1 / (len(y) * largest)
                if self.C is None
                else np.full(len(found), 1 / (len(y) * self.C))
            )
        binary = len(found) == 1
        self.dual_coef_ = alpha[0] if binary else alpha
        self.lam_exact_ = float(lam[0]) if binary else lam
        self.gap_ = max(one.gap for one in found)
        self.n_iter_ = max(one.n_iter for one in found)
        target = np.searchsorted(self.classes_, y)
        self.robust_radius_ = float(self._linear().radii(X, target, norm)[0].min())
        return self

    def decision_function(self, X: Any) -> Any:
        """w·x + b: [n] for two classes, positive meaning classes_[1], else [n, K]."""
        scores = self._checked(X) @ self.coef_.T + self.intercept_
        return like(X, scores[:, 0] if len(self.classes_) == 2 else scores)

    def predict(self, X: Any) -> Any:
        """The class of every row."""
        scores = np.asarray(to_numpy(self.decision_function(X)))
        place = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        return like(X, self.classes_[place])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean accuracy."""
        return float(super().score(to_numpy(X), to_numpy(y), to_numpy(sample_weight)))

    def certify(self, X: Any, y: Any) -> Certificate:
        """The exact radius of every example: `hrrl_ext.linear.certify` in this norm."""
        return certify(self, X, y, self.norm)

    def certified_accuracy(self, X: Any, y: Any, eps: Any) -> Any:
        """The share that is right whatever a perturbation of size eps does; eps may be a grid."""
        return self.certify(X, y).accuracy(eps)

    def worst_case(self, X: Any, y: Any, eps: float) -> Any:
        """X as the strongest perturbation of size eps leaves it: x - eps y v, v steepest for w.

        Of several classes, towards the rival that leads by most, or trails by least, once it is moved.
        """
        if np.ndim(eps) or not 0 <= eps < np.inf:
            raise ValueError(
                "MaxMarginClassifier.worst_case: eps must be one finite number of at least 0, got "
                f"{eps!r}"
            )
        rows = self._checked(X)
        target = self._linear().places(np.asarray(to_numpy(y)), len(rows))
        attacked = self._linear().worst_case(rows, target, float(eps), vector_norm(self.norm))
        return like(X, attacked)

    def path(self, X: Any, y: Any, lams: Sequence[float] | None = None) -> list[PathPoint]:
        """min mean hinge + lam ‖w‖ for each lam, of two classes; this classifier is not changed.

        lams None: 16 values over five decades, down from one at which w is 0 for certain. From
        `lam_exact_` on downwards the margin is that of the hard problem, not only near it. By "auto",
        where `solver` is one of separable data alone.
        """
        norm = self._check_parameters()
        device = X.device if isinstance(X, torch.Tensor) else "cpu"
        rows, y = check_X_y(to_numpy(X), to_numpy(y), dtype=[np.float64, np.float32])
        classes = np.unique(y)
        if len(classes) != 2:
            raise ValueError(f"MaxMarginClassifier.path: y must hold 2 classes, got {len(classes)}")
        (sign,) = signs(y, classes)
        if lams is None:
            centred = torch.from_numpy(rows - rows.mean(0) if self.fit_intercept else rows)
            top = float(norm.dual.size(centred).max())
            lams = np.geomspace(top, top * 10.0**-_DECADES, _PATH).tolist()
        points = []
        for lam in lams:
            if not is_positive(lam):
                raise ValueError(f"MaxMarginClassifier.path: lams must be positive, got {lam!r}")
            problem = Problem(rows, sign, norm, self.fit_intercept, 1 / (lam * len(sign)))
            found = self._solution(problem, device)
            length = size(norm, found.w)
            least = float((sign * (problem.scores(found.w) + found.b)).min())
            points.append(PathPoint(lam, least / length if length else float("nan"), length))
        return points

    def _solved(self, problem: Problem, number: int, device: Any) -> Solution:
        try:
            return self._solution(problem, device)
        except NotSeparableError as error:
            chosen = choose(problem, self.solver)
            detail = str(error) if chosen in ("first-order", "prox") else ""
            names = named(self.classes_, number)
            raise NotSeparableError(not_separable(problem, names, detail)) from None

    def _solution(self, problem: Problem, device: Any) -> Solution:
        """Of the problem, or, with the intercept penalised, of that with a column of ones."""
        if not (problem.intercept and self.penalise_intercept):
            return self._call(problem, device)
        ones = np.ones((len(problem.X), 1), dtype=problem.X.dtype)
        joined = Problem(np.hstack([problem.X, ones]), problem.sign, problem.norm, False, problem.C)
        found = self._call(joined, device)
        return Solution(
            found.w[:-1], float(found.w[-1]), found.alpha, found.primal, found.dual, found.n_iter
        )

    def _call(self, problem: Problem, device: Any) -> Solution:
        of_path = problem.C is not None and self.C is None
        solver = "auto" if of_path and self.solver in WITHOUT_SLACK else self.solver
        return solve(problem, solver, tol=self.tol, max_iter=int(self.max_iter), device=device)

    def _linear(self) -> Linear:
        return Linear.of_rows(self.coef_, self.intercept_, self.classes_)

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(validate_data(self, to_numpy(X), dtype=np.float64, reset=False))

    def _check_parameters(self) -> VectorNorm:
        if self.norm not in NORMS:
            raise ValueError(f"MaxMarginClassifier: norm {not_known(self.norm, NORMS)}")
        if self.C is not None and not is_positive(self.C):
            raise ValueError(
                f"MaxMarginClassifier: C must be None or a positive number, got {self.C!r}"
            )
        if self.tol is not None and not is_positive(self.tol):
            raise ValueError(
                f"MaxMarginClassifier: tol must be None or a positive number, got {self.tol!r}"
            )
        if not is_positive(self.max_iter) or self.max_iter < 1:
            raise ValueError(
                f"MaxMarginClassifier: max_iter must be at least 1, got {self.max_iter!r}"
            )
        if self.penalise_intercept and self.fit_intercept and self.norm.startswith("fourier"):
            raise ValueError(
                "MaxMarginClassifier: an intercept has no frequency, so penalise_intercept has no "
                f"meaning for norm={self.norm!r}; leave it out, or use l1, l2 or linf"
            )
        return vector_norm(self.norm)
