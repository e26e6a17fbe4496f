"""The linear probe of contrastive pretraining: softmax regression on frozen features, by SGD."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .._arrays import is_positive, to_numpy
from .._precision import full_float32
from .normalising import Normalise, scaler

__all__ = ["SGDProbe"]

_PRECISIONS = (np.float32, np.float64)  # which stay; what is in neither becomes the first


class SGDProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """Softmax regression by SGD with momentum, as MoCo's linear evaluation has it.

        min_{W,b} 1/N Σ_i -log softmax(W x_i + b)_{y_i} + (weight_decay/2) (‖W‖² + ‖b‖²)

    lr, weight_decay, momentum, batch_size
                     MoCo's: 30, 0, 0.9, 256; lr is divided by 10 at the milestones
    epochs           passes over the examples, in a new order each; a last batch may be smaller
    milestones       epochs; None: after 60 % and 80 % of them, MoCo's 60 and 80 of 100
    normalise        "l2": rows of norm 1; "standard": columns of mean 0 and variance 1 over the
                     examples fitted on; None: features as they are, which is MoCo's, and for which lr
                     has to suit their scale
    random_state     of the orders

    It begins at W = 0 and b = 0. MoCo's sees another crop of every image in each epoch; features that
    were saved stay what they are. They are [N, D] arrays or tensors, labels [N] of any type. float64
    stays, all else is computed in float32. Deterministic for a number of threads.

    Attributes after fit: loss_ (the mean of the training loss in the last epoch), coef_ [classes, D] and
    intercept_ (for normalised features; two classes share one row, as in scikit-learn), pipeline_
    (normalisation, then the regression), classes_, n_features_in_. A ConvergenceWarning says where loss_
    is no better than log(classes), that of W = 0.
    """

    def __init__(
        self,
        lr: float = 30.0,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        batch_size: int = 256,
        epochs: int = 100,
        milestones: Sequence[int] | None = None,
        normalise: Normalise = "l2",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.lr = lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.batch_size = batch_size
        self.epochs = epochs
        self.milestones = milestones
        self.normalise = normalise
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> SGDProbe:
        """Fit on features X [N, D] and labels y [N]; ValueError on fewer than two classes, and where the
        loss is not finite."""
        self._check_parameters()
        X, y = validate_data(self, to_numpy(X), to_numpy(y), dtype=_PRECISIONS)
        check_classification_targets(y)
        self.classes_: np.ndarray
        self.classes_, label = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"SGDProbe: y must hold at least 2 classes, got 1 class ({self.classes_[0]!r})"
            )
        scaled = make_pipeline(scaler(self.normalise, "SGDProbe"))
        x = torch.from_numpy(np.require(scaled.fit_transform(X), requirements=["C", "W"]))
        with torch.enable_grad(), full_float32(x.device):
            weight, bias = self._descended(x, torch.from_numpy(label))
        if len(self.classes_) == 2:
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        self.coef_, self.intercept_ = weight.numpy(), bias.numpy()
        regression = LogisticRegression()  # which decides by these
        regression.coef_, regression.intercept_ = self.coef_, self.intercept_
        regression.classes_ = self.classes_
        self.pipeline_ = Pipeline([*scaled.steps, ("regression", regression)])
        worst = math.log(len(self.classes_))
        if self.loss_ > worst:
            warnings.warn(
                f"SGDProbe: the loss is {self.loss_:.3g} after {self.epochs} epochs, and without any "
                f"weight it is {worst:.3g}; lower lr (now {self.lr:g}), or use normalise='l2'",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Class of every row of X [N, D]: an array [N] of entries of classes_."""
        X = self._rows(X)
        return np.asarray(self.pipeline_.predict(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """w·x + b per row: [N, classes], or [N] for two classes, positive meaning classes_[1]."""
        X = self._rows(X)
        return np.asarray(self.pipeline_.decision_function(X))

    def _rows(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, to_numpy(X), dtype=_PRECISIONS, reset=False)

    def _descended(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """W [classes, D] and b [classes]."""
        weight = x.new_zeros(len(self.classes_), x.shape[1], requires_grad=True)
        bias = x.new_zeros(len(self.classes_), requires_grad=True)
        milestones = self.milestones
        if milestones is None:
            milestones = [math.ceil(self.epochs * share) for share in (0.6, 0.8)]
        sgd = torch.optim.SGD(
            [weight, bias],
            lr=float(self.lr),
            momentum=float(self.momentum),
            weight_decay=float(self.weight_decay),
        )
        seed = check_random_state(self.random_state).randint(2**31)
        generator = torch.Generator().manual_seed(int(seed))
        for epoch in range(int(self.epochs)):
            total = x.new_zeros((), dtype=torch.float64)
            lr = self.lr * 0.1 ** sum(epoch >= m for m in milestones)
            sgd.param_groups[0]["lr"] = lr
            for rows in torch.randperm(len(x), generator=generator).split(int(self.batch_size)):
                loss = F.cross_entropy(F.linear(x[rows], weight, bias), label[rows])
                sgd.zero_grad(set_to_none=True)
                loss.backward()
                sgd.step()
                total += loss.detach().double() * len(rows)
            self.loss_ = float(total) / len(x)
            if not math.isfinite(self.loss_):
                raise ValueError(
                    f"SGDProbe: the loss is not finite in epoch {epoch + 1}; lower lr (now "
                    f"{self.lr:g}), or use normalise='l2'"
                )
        return weight.detach(), bias.detach()

    def _check_parameters(self) -> None:
        for name in ("lr", "batch_size", "epochs"):
            value = getattr(self, name)
            if not is_positive(value):
                raise ValueError(f"SGDProbe: {name} must be positive and finite, got {value!r}")
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if value != int(value):
                raise ValueError(f"SGDProbe: {name} must be a whole number, got {value!r}")
        if not (self.weight_decay == 0 or is_positive(self.weight_decay)):
            raise ValueError(
                f"SGDProbe: weight_decay must be finite and not negative, got {self.weight_decay!r}"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"SGDProbe: momentum must lie in [0, 1), got {self.momentum!r}")
        scaler(self.normalise, "SGDProbe")
