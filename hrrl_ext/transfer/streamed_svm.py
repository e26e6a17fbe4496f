"""The linear SVM of more examples than fit into memory: a block of rows at a time, all classes at once.

The problem is LinearSVC's own, one for each class k with y = ±1,

    f(w, b) = 1/2 (‖w‖² + b²) + C Σ_i max(0, 1 - y_i (w·x_i + b))²

convex, smooth and with one solution, so that another way to it is the same measure. A pass over the
rows gives f and its gradient for all classes, by two products of matrices. Between passes every class
has a quasi-Newton step (L-BFGS) and a length of it of its own, and leaves when it meets LinearSVC's rule.

At w = 0 all rows lie within the margin, and the Hessian of every class is I + 2C Σ x xᵀ. That is summed
once for all C. It gives the start, Newton's step from 0, and is the metric of the steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import assert_all_finite
from torch import Tensor

from .._arrays import to_numpy
from .normalising import Normalise, scaler

_BLOCK = 2**20  # numbers at once, of 8 bytes, which a cache may hold
_FEWEST = 256  # rows, or adding a block to the gradient takes longer than the block
_TOLERANCE = 1e-4  # LinearSVC's
_MEMORY = 10  # steps that L-BFGS remembers
_SHORTEST = 2.0**-30  # of a step's length: shorter ones do not change f
_USUAL = 30.0  # passes of a fit, as long as none had more: docs/transfer.md
_SECONDS = 10.0  # from one line of progress to the next


class Fit(NamedTuple):
    C: float
    pipeline: Pipeline
    converged: bool


Fits: TypeAlias = Callable[[Sequence[float], np.ndarray | None], Iterator[Fit]]
"""For each C in turn, on the rows of a mask or on all."""


def streaming(
    X: np.ndarray,
    label: np.ndarray,
    classes: np.ndarray,
    *,
    normalise: Normalise,
    max_passes: int,
    device: torch.device | str,
    number: int,
    report: Callable[[str], None] | None,
) -> Fits:
    """Fits to the features X [N, D] and labels [N], which are numbers of ``classes``.

    number    of fits that there will be, for ``report``, which is told how long they will take
    """
    for rows in blocks(X.shape, len(classes)):
        assert_all_finite(X[rows], estimator_name="LinearProbe", input_name="X")
    clock = Clock(number, report)

    def fits(grid: Sequence[float], kept: np.ndarray | None) -> Iterator[Fit]:
        rows = Rows(X, label, len(classes), normalise=normalise, kept=kept, device=device)
        streamed = StreamedSVM(rows, clock)
        for C in grid:
            clock.fit(f"C = {C:g}")
            solution = streamed.solve(C, max_passes)
            weight = solution.weight.cpu().numpy()
            svm = LinearSVC(C=C)
            svm.coef_, svm.intercept_ = weight[:, :-1].copy(), weight[:, -1].copy()
            svm.classes_, svm.n_features_in_ = classes, X.shape[1]
            svm.n_iter_ = solution.passes
            yield Fit(C, make_pipeline(rows.scaler, svm), solution.converged)

    return fits


def as_stored(X: Any) -> Any:
    """An array of the type that it has; bfloat16, which NumPy lacks, in float32."""
    if not isinstance(X, Tensor) or X.dtype == torch.bfloat16:
        return to_numpy(X)
    return X.detach().cpu().numpy()


def blocks(shape: tuple[int, ...], classes: int) -> list[slice]:
    """Of rows: themselves, normalised, their scores, and the squares of those are in memory."""
    at_once = max(_FEWEST, _BLOCK // (2 * (shape[1] + classes)))
    return [slice(first, first + at_once) for first in range(0, shape[0], at_once)]


class Rows:
    """Examples X [N, D], which may lie in a mapped file, with labels 0 .. classes - 1.

    kept    [N], which of them; None: all
    """

    def __init__(
        self,
        X: np.ndarray,
        label: np.ndarray,
        classes: int,
        *,
        normalise: Normalise,
        kept: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.X, self.label, self.classes, self.kept = X, label, classes, kept
        self.device = torch.device(device)
        self._unit = normalise == "l2"
        self.scaler: Any = scaler(normalise, "LinearProbe")
        """fitted on these rows, for a pipeline"""
        self._of_columns: tuple[Tensor, Tensor] | None = None
        if isinstance(self.scaler, StandardScaler):
            for stored, _ in self.stored():
                self.scaler.partial_fit(stored.astype(np.float64, copy=False))
            mean, scale = (torch.from_numpy(v) for v in (self.scaler.mean_, self.scaler.scale_))
            self._of_columns = mean.to(self.device), scale.to(self.device)

    def stored(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block in blocks(self.X.shape, self.classes):
            x, label = self.X[block], self.label[block]
            if self.kept is not None:
                x, label = x[self.kept[block]], label[self.kept[block]]
            if len(x):
                yield x, label

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """x [B, D] float64, normalised, and label [B], on the device."""
        for stored, label in self.stored():
            dtype = stored.dtype if stored.dtype in (np.float16, np.float32) else np.float64
            taken = stored.flags.c_contiguous and stored.flags.writeable  # as torch wants it
            x = torch.from_numpy(stored.astype(dtype, order="C", copy=not taken))
            x = x.to(self.device).double()  # there: half the bytes to move
            if self._unit:
                norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
                x = x / norm.masked_fill(norm == 0, 1)
            elif self._of_columns is not None:
                mean, scale = self._of_columns
                x = (x - mean) / scale
            yield x, torch.from_numpy(label).to(self.device)


@dataclass(frozen=True)
class Solution:
    """weight [k, D + 1] float64 with the intercept last: a row per class, one of the second for two."""

    weight: Tensor
    passes: int
    converged: bool


class StreamedSVM:
    """The SVMs of all classes on the same rows, for one C after the other."""

    def __init__(self, rows: Rows, clock: Clock) -> None:
        self.rows, self.clock = rows, clock
        gram, of_class, count = _sums(rows)
        problems = slice(1 if rows.classes == 2 else 0, None)
        self._gram = gram
        self._pull = (2 * of_class - of_class.sum(0))[problems]  # Σ y x of each class
        self._share = (torch.minimum(count, count.sum() - count) / count.sum())[problems]

    def solve(self, C: float, max_passes: int) -> Solution:
        """From Newton's step at 0: the solution of another C is no nearer."""
        hessian = 2 * C * self._gram
        hessian.diagonal().add_(1 + 1e-14 * hessian.trace())  # of any scale, positive as rounded
        steps = _LBFGS(torch.linalg.cholesky(hessian))
        weight = steps.metric(2 * C * self._pull)
        bound = _TOLERANCE * self._share * (2 * C * self._pull).norm(dim=1)  # liblinear's rule
        which = torch.arange(len(weight), device=self.rows.device)
        at, length = weight.clone(), weight.new_ones(len(weight))
        value, gradient = self._pass(C, at, which)
        direction, passes, converged = steps.direction(gradient), 1, True
        while True:
            met = gradient.norm(dim=1) <= bound[which]
            left = ~met & (length > _SHORTEST) & (passes < max_passes)
            if not left.all():
                weight[which[~left]] = at[~left]
                converged &= bool((met | left).all())
                which, at, value, gradient, direction, length = (
                    v[left] for v in (which, at, value, gradient, direction, length)
                )
                steps.keep(left)
            if not len(which):
                return Solution(weight, passes, converged)
            tried = at + length[:, None] * direction
            its_value, its_gradient = self._pass(C, tried, which)
            passes += 1
            good = _descends(value, its_value, gradient, its_gradient, direction, length)
            taken = good[:, None]
            steps.learn(
                torch.where(taken, tried - at, 0.0),
                torch.where(taken, its_gradient - gradient, 0.0),
            )
            at, gradient = torch.where(taken, tried, at), torch.where(taken, its_gradient, gradient)
            value = torch.where(good, its_value, value)
            direction = torch.where(taken, steps.direction(gradient), direction)
            length = torch.where(good, 1.0, length / 2)

    def _pass(self, C: float, weight: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """f [k] and its gradient [k, D + 1] for the classes ``which``."""
        value, gradient = weight.new_zeros(len(weight)), torch.zeros_like(weight)
        column = torch.full((self.rows.classes,), -1, device=weight.device)  # of a label, if any
        column[which + self.rows.classes - len(self._pull)] = torch.arange(len(which)).to(column)
        for x, label in self.rows:
            own = column[label]
            row = (own >= 0).nonzero()[:, 0]
            own = own[row]
            slack = torch.addmm(weight[:, -1] + 1, x, weight[:, :-1].T)  # 1 - y s, where y = -1
            slack[row, own] = 2 - slack[row, own]
            slack.clamp_min_(0)
            value += slack.square().sum(0)
            slack[row, own] *= -1
            gradient[:, :-1].addmm_(slack.T, x)
            gradient[:, -1] += slack.sum(0)
        self.clock.passed(len(which), len(self._pull))
        return (weight.square().sum(1) / 2 + C * value), weight + 2 * C * gradient


def _sums(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Σ x xᵀ [D + 1, D + 1], Σ x of each class [classes, D + 1], and their sizes; x ends in 1."""
    columns = rows.X.shape[1] + 1
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=rows.device)
    of_class, count = gram.new_zeros(rows.classes, columns), gram.new_zeros(rows.classes)
    for part, label in rows:
        x = torch.nn.functional.pad(part, (0, 1), value=1.0)
        gram.addmm_(x.T, x)
        of_class.index_add_(0, label, x)
        count += label.bincount(minlength=rows.classes)
    return gram, of_class, count


def _descends(
    value: Tensor,
    its_value: Tensor,
    gradient: Tensor,
    its_gradient: Tensor,
    direction: Tensor,
    length: Tensor,
) -> Tensor:
    """Whether f falls enough (Armijo); near the solution, where rounding hides it, whether its slope
    says so (Hager and Zhang, SIAM J. Optim. 2005, eq. 4.1)."""
    slope, its_slope = ((g * direction).sum(1) for g in (gradient, its_gradient))
    lower = its_value <= value + 1e-4 * length * slope
    flat = (its_value <= value * (1 + 1e-12)) & (its_slope <= (2e-4 - 1) * slope)
    return lower | flat


class _LBFGS:
    """Directions of descent, of each class by what its own last steps did to its gradient."""

    def __init__(self, factor: Tensor) -> None:
        self._factor = factor
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scale: Tensor | None = None

    def metric(self, gradient: Tensor) -> Tensor:
        return torch.cholesky_solve(gradient.T, self._factor).T

    def direction(self, gradient: Tensor) -> Tensor:
        q, shares = gradient.clone(), []
        for step, change, inverse in reversed(self._pairs):
            shares.append(inverse * (step * q).sum(1, keepdim=True))
            q -= shares[-1] * change
        q = self.metric(q)
        if self._scale is not None:
            q = q * self._scale
        for step, change, inverse in self._pairs:
            q += (shares.pop() - inverse * (change * q).sum(1, keepdim=True)) * step
        return -q

    def learn(self, step: Tensor, change: Tensor) -> None:
        """Of rows of zeros, which are classes that did not move, nothing."""
        product = (step * change).sum(1, keepdim=True)
        known = product > 0  # but for rounding, of all that moved: f is convex
        product = product.where(known, 1.0)
        self._pairs = [*self._pairs, (step, change, known / product)][-_MEMORY:]
        scale = product / (change * self.metric(change)).sum(1, keepdim=True).where(known, 1.0)
        before = torch.ones_like(scale) if self._scale is None else self._scale
        self._scale = scale.where(known, before)

    def keep(self, left: Tensor) -> None:
        self._pairs = [(s[left], c[left], i[left]) for s, c, i in self._pairs]
        self._scale = None if self._scale is None else self._scale[left]


class Clock:
    """Says how far the fits of one search are, and about how long the rest will take."""

    def __init__(self, fits: int, report: Callable[[str], None] | None) -> None:
        self._fits, self._report = fits, report
        self._passes: list[float] = []
        self._spent = 0.0
        self._said = -math.inf

    def fit(self, what: str) -> None:
        """The next one begins."""
        self._what = what
        self._passes.append(0.0)
        self._since = time.perf_counter()

    def passed(self, classes: int, of: int) -> None:
        """A pass for the classes that are left, which takes that share of the time of all."""
        now = time.perf_counter()
        self._spent += now - self._since
        self._since = now
        self._passes[-1] += classes / of
        if self._report is None or now - self._said < _SECONDS:
            return
        self._said = now
        *done, current = self._passes
        usual = max([_USUAL, *done])
        ahead = max(usual - current, classes / of) + usual * (self._fits - len(self._passes))
        a_pass = self._spent / sum(self._passes)
        self._report(
            f"fit {len(self._passes)} of {self._fits}, {self._what}: {classes} of {of} classes to go, "
            f"{a_pass:.3g} s a pass of all, about {_duration(ahead * a_pass)} left"
        )


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
