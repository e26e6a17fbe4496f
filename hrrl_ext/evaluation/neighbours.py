"""k nearest neighbours on frozen features: what they are worth without any training on top."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .._arrays import is_positive, to_numpy, unit_rows
from .._precision import full_float32
from .._products import inner_products

_CHUNK = 2**24  # similarities in memory at once
_ROWS = 2**13  # normalised at once


class KNeighbours(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """The k most similar training examples vote, weighted by similarity (Wu et al., CVPR 2018).

        vote_c = Σ_{i in N_k(x), y_i = c} exp(s_i / T),   s_i = cos(x, x_i)

    k            neighbours; all training examples where there are fewer
    temperature  T; the smaller, the more the nearest one decides

    The defaults are those of MoCo's reference on CIFAR-10. Features are [N, D] arrays or tensors,
    labels [N] of any type. float64 stays, all else is computed in float32. A row of zeros has
    similarity 0 to every other.

    Among training examples of equal similarity, as computed, the earlier ones are neighbours; of classes
    with equal votes the first in `classes_` wins. Nothing is drawn, nothing carries a gradient.

    Attributes after fit: classes_, n_features_in_. ValueError: k below 1, a temperature that is not
    positive, features that are not finite.
    """

    def __init__(self, k: int = 200, *, temperature: float = 0.1) -> None:
        self.k = k
        self.temperature = temperature

    def fit(self, X: Any, y: Any) -> KNeighbours:
        """Keep features X [N, D] and labels y [N]."""
        if not (is_positive(self.k) and self.k == int(self.k)):
            raise ValueError(f"KNeighbours: k must be a whole number from 1 on, got {self.k!r}")
        if not is_positive(self.temperature):
            raise ValueError(
                f"KNeighbours: temperature must be positive and finite, got {self.temperature!r}"
            )
        X, y = validate_data(self, to_numpy(X), to_numpy(y), dtype=(np.float32, np.float64))
        check_classification_targets(y)
        self.classes_: np.ndarray
        self.classes_, label = np.unique(y, return_inverse=True)
        self._label: Tensor = torch.from_numpy(label)
        self._features: Tensor = _unit_rows(X)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Class of every row of X [N, D]: an array [N] of entries of classes_."""
        votes = self.predict_proba(X)
        return np.asarray(self.classes_[votes.argmax(1)])  # the first among equals

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares of the votes [N, classes] float64."""
        check_is_fitted(self)
        X = validate_data(self, to_numpy(X), dtype=(np.float32, np.float64), reset=False)
        queries = _unit_rows(X).to(self._features.dtype)
        at_once = max(1, _CHUNK // len(self._features))
        return torch.cat([self._shares(part) for part in queries.split(at_once)]).numpy()

    def _shares(self, queries: Tensor) -> Tensor:
        with full_float32(queries.device):
            similarity = inner_products(queries, self._features)
        near = _most_similar(similarity, int(self.k))
        s = similarity.gather(1, near).double()
        vote = ((s - s.amax(1, keepdim=True)) / self.temperature).exp()  # in (0, 1], whatever T
        votes = vote.new_zeros(len(queries), len(self.classes_))
        votes.scatter_add_(1, self._label[near], vote)
        return votes / votes.sum(1, keepdim=True)


def _most_similar(similarity: Tensor, k: int) -> Tensor:
    """Columns of the k largest of every row; of equal ones the first, which topk does not promise."""
    columns = similarity.shape[1]
    if k >= columns:
        return torch.arange(columns).expand(len(similarity), columns)
    values, near = similarity.topk(k + 1)
    tied = values[:, k - 1] == values[:, k]  # where it matters which of them is in
    near = near[:, :k]
    near[tied] = similarity[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return near


def _unit_rows(X: np.ndarray) -> Tensor:
    """A copy; of the steps to it there is a block at a time."""
    x = torch.from_numpy(np.ascontiguousarray(X))
    unit = torch.empty_like(x)
    for of, rows in zip(unit.split(_ROWS), x.split(_ROWS), strict=True):
        of.copy_(unit_rows(rows))
    return unit
