"""Exact certificates: how far every example can be moved before a linear classifier errs.

With scores s_k = w_k·x + b_k, a perturbation ‖δ‖ ≤ ε makes rival j win over the class y as soon as
ε ‖w_y - w_j‖* ≥ s_y - s_j, and no sooner: the radius is  min_j (s_y - s_j)/‖w_y - w_j‖*. Here ‖·‖* is
the ``norm`` that is named, that of weights, and the radius is in its dual: "l1" answers linf attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, NuSVC
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from .._arrays import like, to_numpy
from ..norms import VectorNorm, vector_norm


@dataclass(frozen=True)
class Certificate:
    """Of each example: the radius within which the prediction stays right, and who is next.

    radius  [N]. Below 0 the example is misclassified, and at least so far from being right: of two
            classes just so far. NaN where every class has the same weights: then nothing depends on x
    rival   [N] the class that is reached there, as in y
    norm    of the perturbations: the dual of the one that was named
    right   [N] whether the example is classified rightly as it is
    """

    radius: Any
    rival: Any
    norm: str
    right: Any

    def accuracy(self, eps: Any) -> Any:
        """The share of examples that are right whatever ‖δ‖ ≤ eps does; an array for several eps."""
        eps = np.asarray(to_numpy(eps), dtype=np.float64)
        if not (eps >= 0).all():
            raise ValueError(f"Certificate.accuracy: eps must be at least 0, got {eps.min()}")
        radius = np.asarray(to_numpy(self.radius))
        whatever = np.isnan(radius) & np.asarray(to_numpy(self.right))  # as nothing depends on x
        share = (whatever | (radius > eps[..., None])).mean(-1)
        return share if eps.ndim else float(share)

    @property
    def robust_radius(self) -> float:
        """The least radius of all examples."""
        return float(np.min(to_numpy(self.radius)))


def certify(head: Any, X: Any, y: Any, norm: str | VectorNorm = "l2") -> Certificate:
    """The exact radius of every example of X [N, d] with labels y [N] under a linear classifier.

    head  a fitted linear classifier of scikit-learn (with coef_, intercept_, classes_); a probe;
          a Pipeline that ends in one after scalers, which are folded into it: radii are those of X as
          given; torch.nn.Linear, whose classes are 0, 1, ... (one output: 0 and 1)
    norm  of the weights, see `hrrl_ext.norms.vector_norm`: l1, l2, linf, fourier-l1 certify against linf,
          l2, l1 and Fourier-linf perturbations

    A Normalizer bends the space: behind it, also in a probe (`LinearProbe`, `SGDProbe`) with
    normalise="l2", radii are those of the normalised rows. Tensors in, tensors out. Raises TypeError for
    another head, ValueError for shapes that do not fit and for a label that the head does not know.
    """
    norm = vector_norm(norm)
    if sparse.issparse(X):
        raise TypeError("certify: X must be dense, got a sparse matrix; use X.toarray()")
    if hasattr(X, "columns") and hasattr(head, "feature_names_in_"):
        validate_data(head, X, reset=False, skip_check_array=True)  # names, and their order
    rows = np.asarray(to_numpy(X), dtype=np.float64)
    linear, rows = Linear.of(head, rows)
    if not (finite := np.isfinite(rows)).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"certify: X must be finite, but number {column} of row {row} is {rows[row, column]}; fill "
            "in what is missing, or leave the row out"
        )
    target = linear.places(np.asarray(to_numpy(y)), len(rows))
    radius, rival, right = linear.radii(rows, target, norm)
    return Certificate(
        like(X, radius), like(X, linear.classes[rival]), norm.dual.name, like(X, right)
    )


@dataclass(frozen=True)
class Linear:
    """Scores W x + b of the classes; W [K, d], two classes having 0 and w."""

    W: np.ndarray
    b: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, head: Any, X: np.ndarray) -> tuple[Linear, np.ndarray]:
        """A head as its scores, and X in the space where they are linear."""
        scalers, head = _unrolled(head)
        X, scale, shift = _through_scalers(scalers, X)
        if isinstance(head, nn.Linear):
            W = to_numpy(head.weight).astype(np.float64)
            b = np.zeros(len(W)) if head.bias is None else to_numpy(head.bias).astype(np.float64)
            linear = cls.of_rows(W, b, np.arange(max(2, len(W))))
        elif all(hasattr(head, name) for name in ("coef_", "intercept_", "classes_")):
            classes = np.asarray(head.classes_)
            if isinstance(head, SVC | NuSVC) and len(classes) > 2:
                raise TypeError(
                    f"certify: {type(head).__name__} has a hyperplane per pair of classes and votes, "
                    "which no weights of classes describe; use LinearSVC or MaxMarginClassifier"
                )
            W = np.atleast_2d(np.asarray(head.coef_, dtype=np.float64))
            b = np.broadcast_to(np.asarray(head.intercept_, dtype=np.float64), len(W))
            linear = cls.of_rows(W, b, classes)
        else:
            raise TypeError(
                "certify: head must be a fitted linear classifier of scikit-learn, a Pipeline that ends "
                f"in one, a probe or a torch.nn.Linear, got {type(head).__name__}; of a network give the "
                "last layer and its features (hrrl_ext.extract_features)"
            )
        if X.ndim != 2 or X.shape[1] != linear.W.shape[1]:
            raise ValueError(
                f"certify: X must be [N, {linear.W.shape[1]}], as the head takes it, got {list(X.shape)}"
            )
        b = linear.b + (linear.W * shift).sum(1)
        return cls(linear.W * scale, b, linear.classes), X

    @classmethod
    def of_rows(cls, W: np.ndarray, b: np.ndarray, classes: np.ndarray) -> Linear:
        if len(W) == 1:
            W, b = np.concatenate([0 * W, W]), np.concatenate([0 * b, b])
        return cls(W, b, classes)

    def places(self, y: np.ndarray, n: int) -> np.ndarray:
        """The number of each label among the classes."""
        if y.shape != (n,):
            raise ValueError(
                f"certify: y must be [{n}], one label per row of X, got {list(y.shape)}"
            )
        order = np.argsort(self.classes)
        place = order[np.searchsorted(self.classes, y, sorter=order).clip(max=len(order) - 1)]
        if (unknown := y[self.classes[place] != y]).size:
            raise ValueError(
                f"certify: the head does not know the label {str(unknown[0])!r}; its classes are "
                f"{self.classes.tolist()[:10]}; leave such examples out"
            )
        return place

    def radii(
        self, X: np.ndarray, target: np.ndarray, norm: VectorNorm
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """min_j (s_y - s_j)/‖w_y - w_j‖ [N], the j where it is, and whether y leads."""
        radius, rival = np.empty(len(X)), np.empty(len(X), dtype=np.int64)
        right = np.empty(len(X), dtype=bool)
        for k, rows, lead, size in self._leads(X, target, norm):
            with np.errstate(divide="ignore", invalid="ignore"):
                of = np.where(size > 0, lead / size, np.where(lead > 0, np.inf, -np.inf))
            of[:, k] = np.inf
            rival[rows] = of.argmin(1)
            radius[rows] = of.min(1) if size.any() else np.nan
            right[rows] = of.min(1) > 0
        return radius, rival, right

    def worst_case(
        self, X: np.ndarray, target: np.ndarray, eps: float, norm: VectorNorm
    ) -> np.ndarray:
        """x + δ, where ‖δ‖ ≤ eps lowers the lead over the best rival at eps as far as it can."""
        attacked = X.copy()
        for k, rows, lead, size in self._leads(X, target, norm):
            after = lead - eps * size
            after[:, k] = np.inf
            away = norm.dual.steepest(torch.from_numpy(self.W[k] - self.W[after.argmin(1)]))
            attacked[rows] -= eps * away.numpy()
        return attacked

    def _leads(self, X: np.ndarray, target: np.ndarray, norm: VectorNorm) -> Any:
        """By class: its number, its rows, their s_y - s_j [rows, K] and ‖w_y - w_j‖ [K]."""
        for k in np.unique(target):
            rows = np.flatnonzero(target == k)
            away = self.W[k] - self.W
            lead = X[rows] @ away.T + (self.b[k] - self.b)
            yield k, rows, lead, norm.size(torch.from_numpy(away)).numpy()


def _unrolled(head: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The steps of pipelines within one another, also those of a probe, and what the last ends in.

    All at once, since a Normalizer needs the rows as every step before it leaves them.
    """
    scalers: list[tuple[str, Any]] = []
    while True:
        head = getattr(head, "pipeline_", head)
        if isinstance(head, BaseEstimator):
            check_is_fitted(head)
        if not isinstance(head, Pipeline):
            return scalers, head
        scalers += head.steps[:-1]
        head = head[-1]


def _through_scalers(
    scalers: list[tuple[str, Any]], X: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, and scale and shift with which what follows sees scale * x + shift."""
    scale, shift = np.ones(1), np.zeros(1)
    for name, step in scalers:
        if step is None or step == "passthrough":
            continue
        if isinstance(step, Normalizer):
            X = step.transform(scale * X + shift)
            scale, shift = np.ones(1), np.zeros(1)
        elif isinstance(step, StandardScaler):
            by = 1.0 if step.scale_ is None else 1 / step.scale_
            off = 0.0 if step.mean_ is None or not step.with_mean else step.mean_
            scale, shift = scale * by, (shift - off) * by
        elif isinstance(step, MaxAbsScaler) and not getattr(step, "clip", False):  # since 1.9
            scale, shift = scale / step.scale_, shift / step.scale_
        elif isinstance(step, MinMaxScaler) and not step.clip:
            scale, shift = scale * step.scale_, shift * step.scale_ + step.min_
        else:
            raise TypeError(
                f"certify: step {name!r}, a {type(step).__name__}, is none of StandardScaler, "
                "MinMaxScaler and MaxAbsScaler (both with clip=False) and Normalizer; transform X by "
                "the first steps, and certify the last one: radii are then those of what it sees"
            )
    return X, scale, shift
