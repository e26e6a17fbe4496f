"""How noisy a mini-batch gradient is: its variance, normalised, and against the gradient itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._streams import random_stream
from .._tables import aligned
from ..data.ids import Ids
from ..processes import ALONE, Processes
from ..spec import nearest
from .estimators import (
    SVRG,
    GradientEstimator,
    MeanGradient,
    Snapshot,
    StochasticGradient,
    StratifiedGradient,
)
from .examples import Data, ExampleLoss, cross_entropy

Form = Literal["corrected", "paper"]
ESTIMATORS = ("SG-B", "SG-2B", "SVRG", "GC")


@dataclass(frozen=True)
class GradientVariance:
    """Statistics of n independent estimates g_b of one gradient of P coordinates, with mean ḡ."""

    average_variance: float
    """1/P tr Cov[g], per coordinate: of the estimate (the mini-batch), not of an example"""
    standard_error: float
    """of average_variance; NaN for n = 2 in the corrected form"""
    normalised_variance: float
    """V[g]/E[‖g‖²]; NaN where all estimates are 0"""
    noise_to_signal: float
    """ζ = V[g]/‖E g‖² (Eq. A.9); inf where the noise hides the gradient, NaN where both are 0"""
    mean_gradient_norm: float
    """‖ḡ‖, whose square is too large by V/n on average"""
    n: int
    num_parameters: int
    """P"""
    form: Form


class VarianceTable(Mapping[str, GradientVariance]):
    """Name of the estimator → :class:`GradientVariance`; ``print`` shows a row for each."""

    def __init__(self, measured: Mapping[str, GradientVariance]) -> None:
        self._measured = dict(measured)

    def __getitem__(self, name: str) -> GradientVariance:
        return self._measured[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._measured)

    def __len__(self) -> int:
        return len(self._measured)

    def rows(self) -> list[dict[str, Any]]:
        """A row per estimator, for JSON: what is not finite is None."""
        return [
            {"estimator": name}
            | {k: None if _not_finite(v) else v for k, v in asdict(measured).items()}
            for name, measured in self.items()
        ]

    def __repr__(self) -> str:
        return f"VarianceTable({self._measured})"

    def __str__(self) -> str:
        rows = [["estimator", "average variance", "normalised", "noise/signal", "n", "form"]]
        for name, v in self.items():
            variance = f"{v.average_variance:.3e} ± {v.standard_error:.0e}"
            ratios = [f"{v.normalised_variance:.3f}", f"{v.noise_to_signal:.3g}"]
            rows.append([name, variance, *ratios, str(v.n), v.form])
        return aligned(rows)


def gradient_variance(
    model: nn.Module,
    data: Data,
    estimators: Sequence[str] | None = None,
    *,
    assignment: Ids | None = None,
    snapshot: Snapshot | None = None,
    batch_size: int = 128,
    num_batches: int = 50,
    loss: ExampleLoss = cross_entropy,
    parameters: Sequence[str] | None = None,
    form: Form = "corrected",
    replacement: bool = False,
    seed: int = 0,
    processes: Processes = ALONE,
) -> VarianceTable:
    """The variance of several estimators of the mean gradient, all at the model as it is.

    ======= ================================================== ========================= ============
    name    estimate                                           gradients of an example   needs
    ======= ================================================== ========================= ============
    SG-B    mean over a uniform mini-batch of B                B
    SG-2B   the same with 2B: half the variance of SG-B        2B
    SVRG    full gradient of a snapshot, plus B differences    2B, and N per snapshot    snapshot
    GC      weighted mean over a stratified mini-batch of B    B                         assignment
    ======= ================================================== ========================= ============

    See :class:`StochasticGradient`, :class:`SVRG` and :class:`StratifiedGradient` for the equations, and
    :func:`variance_of` for the statistics. GC needs about the memory of one mini-batch more, so that
    SG-2B is the fair one to compare it with::

        print(gradient_variance(model, images, assignment=assignment, batch_size=num_clusters))

    GC is worth its clustering where it lies clearly below SG-B, by a few standard errors, and the noise
    matters, that is ζ is not small. That GC is at most SG-B is no theorem: with clusters of very unequal
    sizes, or made long ago, of other parameters or of other pixels, it can be above. Then go on
    with uniform mini-batches.

    Args:
        model, data, loss, parameters: see :class:`MeanGradient`. The model is in eval mode meanwhile,
            its batch normalisation on running statistics, its dropout off; data is not augmented.
            ``.grad``, modes, buffers and the global random state stay as they are.
        estimators: of the names above; by default SG-B and SG-2B, SVRG if there is a snapshot, GC if
            there is an assignment.
        assignment: [N] cluster of each example; the ids need not be dense.
        snapshot: by ``MeanGradient(model, data, ...).snapshot()``, taken earlier in training.
        batch_size: B. For GC take the number of clusters, or a multiple.
        num_batches: n ≥ 2 estimates of each. The standard error falls as 1/√n. It is too small for
            GC where clusters are so unequal that a few estimates in n hold most of the variance.
        form: see :func:`variance_of`. "paper" draws twice as many.
        replacement: draw examples with replacement. By default a batch has none twice, as in
            training (GC: unless it takes more of a cluster than there are); then SG-2B has
            (N - 2B)/(2 (N - B)) of the variance of SG-B, 1/2 for large N.
        seed: each estimator draws from a stream of its own, whatever the others are.
        processes: those that estimate in turn, and call this alike; each has the whole table, to the
            bit but for SVRG, whose full gradient has the rounding of a sum in another order.

    Time: n times the gradients of the table, for "paper" twice that. Memory: a few vectors [P] float64
    at a time, whatever n. Deterministic where the model is.

    Raises ValueError for an unknown estimator, one that lacks what it needs, a batch (2B for SG-2B)
    larger than the data, and whatever :class:`MeanGradient` refuses.
    """
    if estimators is None:
        given = {"SG-B": True, "SG-2B": True, "SVRG": snapshot, "GC": assignment}
        estimators = [name for name, needed in given.items() if needed is not None]
    estimators = checked_estimators(estimators)
    check_measurement(num_batches, form)
    gradient = MeanGradient(model, data, loss=loss, parameters=parameters)

    def estimator(name: str) -> GradientEstimator:
        generator = random_stream(seed, name)
        match name:
            case "SG-B":
                return StochasticGradient(gradient, batch_size, generator, replacement=replacement)
            case "SG-2B":
                return StochasticGradient(
                    gradient, 2 * batch_size, generator, replacement=replacement
                )
            case "SVRG":
                if snapshot is None:
                    raise ValueError(
                        "gradient_variance: SVRG needs snapshot=, from "
                        "MeanGradient(model, data).snapshot() earlier in training"
                    )
                return SVRG(gradient, batch_size, generator, snapshot, replacement=replacement)
            case _:
                if assignment is None:
                    raise ValueError(
                        "gradient_variance: GC needs assignment=, the cluster of each example"
                    )
                return StratifiedGradient(
                    gradient, batch_size, generator, assignment, replacement=replacement
                )

    # All are made before the first is measured: what is missing is said at once.
    made = {name: estimator(name) for name in estimators}
    return VarianceTable(
        {
            name: variance_of(_shared_draws(e, processes), num_batches, form=form)
            for name, e in made.items()
        }
    )


def _shared_draws(estimator: GradientEstimator, processes: Processes) -> Callable[[], Tensor]:
    """Its draws: each process draws the examples of all, and ``processes`` estimate in turn."""
    if processes.size == 1:
        return estimator.draw
    indices = (estimator.indices() for _ in count())
    estimates = (estimator.estimate(index).cpu() for index in processes.turns(indices))
    return processes.in_order(estimates).__next__


def variance_of(
    draw: Callable[[], Tensor], num_batches: int, *, form: Form = "corrected"
) -> GradientVariance:
    """Statistics of n = num_batches estimates, each a call of ``draw`` → [P], in one pass.

    The estimates must be independent and of one model. They are not kept: a few vectors [P] float64 are.

    form = "corrected", unbiased where it can be::

        average_variance     1/(P(n-1)) Σ_b ‖g_b - ḡ‖²                     ḡ: their mean
        normalised_variance  tr Ĉov / (1/n Σ_b ‖g_b‖²)                     tr Ĉov = P average_variance
        noise_to_signal      tr Ĉov / (‖ḡ‖² - tr Ĉov/n)

    form = "paper", to compare with published curves, with e the mean of another n estimates, which are
    drawn first::

        average_variance     1/(P n) Σ_b ‖g_b - e‖²                        too large by 1 + 1/n
        normalised_variance  1/P Σ_j Σ_b (g_bj - e_j)² / (Σ_b g_bj² + 1e-7)

    The latter can exceed 1, and the 1e-7 takes over where gradients are small: below 1e-4 or so.
    noise_to_signal and mean_gradient_norm are the same in both forms, of the second n.

    standard_error: Σ_b ‖g_b - ḡ‖² is the sum of the n - 1 terms (b-1)/b ‖g_b - ḡ_{b-1}‖², ḡ_{b-1} the
    mean of those before. Each has expectation tr Cov, and they are independent where the estimates
    are normal (Helmert's contrasts), as means over a mini-batch nearly are: so it is their spread
    over √(n-1). In the paper form it is the spread of ‖g_b - e‖² over √n, e held fixed.

    Equivalent, for g [n, P], to ``g.var(0).mean()`` and so on. Raises ValueError for n < 2, an unknown
    form, and estimates that are not [P] or not finite.
    """
    check_measurement(num_batches, form)
    e = None
    if form == "paper":
        first = _Moments()
        for _ in range(num_batches):
            first.add(_checked_estimate(draw()))
        e = first.mean
        squares, deviations = (
            torch.zeros_like(e),
            torch.zeros_like(e),
        )  # Σ_b g_bj², Σ_b (g_bj - e_j)²
    moments = _Moments()
    against_e: list[Tensor] = []  # ‖g_b - e‖²
    for _ in range(num_batches):
        g = _checked_estimate(draw())
        moments.add(g)
        if e is not None:
            squares += g.square()
            square = (g - e).square()
            deviations += square
            against_e.append(square.sum())

    trace = torch.stack(moments.terms).mean().item()
    mean_square = torch.stack(moments.squares).mean().item()
    signal = moments.mean.square().sum().item()
    p = moments.mean.numel()
    if e is None:
        spread, normalised = moments.terms, trace / mean_square if mean_square > 0 else math.nan
    else:
        spread, normalised = against_e, (deviations / (squares + 1e-7)).mean().item()
    terms = torch.stack(spread).cpu() / p
    deviation = terms.std().item() if len(terms) > 1 else math.nan
    return GradientVariance(
        average_variance=terms.mean().item(),
        standard_error=deviation / math.sqrt(len(terms)),
        normalised_variance=normalised,
        noise_to_signal=_noise_to_signal(trace, signal - trace / num_batches),
        mean_gradient_norm=math.sqrt(signal),
        n=num_batches,
        num_parameters=p,
        form=form,
    )


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class _Moments:
    """Welford's recursion for the mean [P]; of squares the sums over coordinates alone are kept."""

    def __init__(self) -> None:
        self.mean = torch.zeros(())
        self.squares: list[Tensor] = []
        """‖g_b‖² of each"""
        self.terms: list[Tensor] = []
        """(b-1)/b ‖g_b - ḡ_{b-1}‖² from the second on"""

    def add(self, g: Tensor) -> None:
        self.squares.append(g.square().sum())
        b = len(self.squares)
        if b == 1:
            self.mean = g.clone()
            return
        if g.shape != self.mean.shape:
            raise ValueError(
                f"variance_of: estimates must have one shape, got {list(g.shape)} "
                f"after {list(self.mean.shape)}"
            )
        delta = g - self.mean
        self.mean += delta / b
        self.terms.append(delta.square().sum() * ((b - 1) / b))


def _noise_to_signal(trace: float, signal: float) -> float:
    if signal > 0:
        return trace / signal
    return math.inf if trace > 0 else math.nan


def _checked_estimate(g: Tensor) -> Tensor:
    if g.ndim != 1 or len(g) == 0:
        raise ValueError(f"variance_of: draw must return a vector [P], got {list(g.shape)}")
    g = g.detach().double()
    if not bool(g.isfinite().all()):
        j = int(g.isfinite().logical_not().nonzero()[0])
        raise ValueError(f"variance_of: coordinate {j} of an estimate is {g[j].item()}")
    return g


def check_measurement(num_batches: int, form: str) -> None:
    if num_batches < 2:
        raise ValueError(f"a variance needs num_batches of at least 2, got {num_batches}")
    if form not in get_args(Form):
        raise ValueError(f"form must be 'corrected' or 'paper', got {form!r}")


def checked_estimators(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str):
        raise TypeError(f"estimators must be a list of names, got the string {names!r}")
    if unknown := [name for name in names if name not in ESTIMATORS]:
        raise ValueError(
            f"gradient_variance: no estimator {nearest(unknown, ESTIMATORS)}; "
            f"there are {', '.join(ESTIMATORS)}"
        )
    if not names:
        raise ValueError(f"gradient_variance: no estimator; there are {', '.join(ESTIMATORS)}")
    return names
