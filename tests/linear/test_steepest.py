"""Steepest descent in a norm: a step by hand, ties, what it tends to, and many runs against one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems_linear import DUALS, largest_radius, noise_rows
from torch import Tensor
from torch.testing import assert_close

from hrrl_ext.linear import (
    MaxMarginClassifier,
    descend,
    fit_proximal,
    fit_steepest,
    linear_risk,
    radius,
)
from hrrl_ext.linear.steepest import RULES
from hrrl_ext.norms import vector_norm

NAMES = ["l1", "l2", "linf", "l1.5", "fourier-l1"]


def zeros(rows: Tensor) -> Tensor:
    return rows.new_zeros(1, rows.shape[-1])


# --- a step


def direction_by_hand(norm: str, g: list[float]) -> list[float]:
    """-‖∇f‖* v̂ of -∇f = g, as algorithms of their own names take it."""
    match norm:
        case "l2":
            return g
        case "linf":
            total = sum(abs(v) for v in g)
            return [total * ((v > 0) - (v < 0)) for v in g]
        case "l1":
            i = max(range(len(g)), key=lambda j: (abs(g[j]), -j))
            return [v if j == i else 0.0 for j, v in enumerate(g)]
    raise AssertionError(norm)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_constant_steps_are_those_of_the_named_algorithms(norm: str) -> None:
    """Five steps in plain Python: gradient descent, sign descent, coordinate descent, loss mean exp."""
    rows, lr = noise_rows(4, 6), 0.05
    w = [0.0] * 6
    for _ in range(5):
        m = [sum(a * b for a, b in zip(row, w, strict=True)) for row in rows.tolist()]
        p = [math.exp(-v) / 4 for v in m]
        g = [sum(q * row[j] for q, row in zip(p, rows.tolist(), strict=True)) for j in range(6)]
        w = [a + lr * b for a, b in zip(w, direction_by_hand(norm, g), strict=True)]
    went = descend(linear_risk(rows), zeros(rows), norm, lr=lr, steps=5, rule="constant")
    assert_close(went.w[0, 0], torch.tensor(w, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NAMES)
def test_normalised_steps_have_their_length(norm: str) -> None:
    rows = noise_rows(5, 9)
    went = descend(linear_risk(rows), zeros(rows), norm, lr=[0.3, 2.0], steps=1)
    assert_close(vector_norm(norm).size(went.w), torch.tensor([[0.3, 2.0]], dtype=torch.float64))


def test_of_tied_coordinates_the_lowest_moves() -> None:
    """And only that one: the published code moves all of them."""
    rows = torch.tensor([[1.0, 2.0, -2.0], [1.0, 2.0, -2.0]], dtype=torch.float64)
    went = descend(linear_risk(rows), zeros(rows), "l1", lr=1.0, steps=1)
    assert went.w.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "fourier-l1"])
def test_armijo_steps_never_go_up(norm: str, loss: str) -> None:
    """log f after each number of trials, and each step brings a tenth of its slope at least."""
    rows, last = noise_rows(8, 12), math.inf
    for steps in (1, 2, 5, 20, 60):
        went = descend(
            linear_risk(rows, loss), zeros(rows), norm, lr=1000.0, steps=steps, rule="armijo"
        )
        assert went.log_loss.item() <= last
        last = went.log_loss.item()
    assert last < -1


# --- the limit


@pytest.mark.parametrize(
    ("n", "steps"), [(3, 2000), pytest.param(100, 10_000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("norm", "bar"), [("l2", 1e-3), ("l1", 3e-2), ("linf", 1e-2)])
def test_the_margin_comes_near_the_largest_and_stays_below(
    norm: str, bar: float, n: int, steps: int
) -> None:
    """R-T3, against scipy. The rates are among those that fit_steepest tries."""
    rows = noise_rows(n)
    best = largest_radius(rows, norm)
    lengths = torch.tensor([0.1, 0.3, 1.0, 3.0]) / vector_norm(norm).dual.size(rows).max()
    went = descend(
        linear_risk(rows), zeros(rows), norm, lr=lengths, steps=steps, record=[steps // 10]
    )
    # steps that are too long may lead back to w = 0, which has no margin
    gaps = 1 - went.margins[:, 0].nan_to_num(nan=-math.inf).amax(-1) / best
    assert -1e-9 <= gaps[1] <= bar
    assert gaps[1] < gaps[0]
    assert_close(went.margins[-1], radius(went.w, rows[None], DUALS[norm]), equal_nan=True)


def test_constant_steps_are_far_slower() -> None:
    """1/log t: the reason for the other rules."""
    rows = noise_rows(50)
    best = largest_radius(rows, "l2")
    slow, fast = (
        descend(
            linear_risk(rows), zeros(rows), "l2", lr=[0.1, 1.0], steps=1000, rule=rule
        ).margins.max()
        for rule in ("constant", "normalised")
    )
    assert 1 - slow / best > 10 * (1 - fast / best) > 0


def test_margins_of_thousands_do_not_overflow() -> None:
    """In the log domain: exp(-m) of the first is out of range in either direction."""
    rows = 1e4 * noise_rows(5, 8)
    went = descend(linear_risk(rows), zeros(rows), "l2", lr=1.0, steps=50)
    assert went.w.isfinite().all() and went.log_loss < -1e5


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scaling_the_features_scales_the_radius(scale: float) -> None:
    rows = noise_rows(10, 20)
    y = torch.ones(10)
    fits = [fit_steepest(s * rows, y, "l2", fit_intercept=False, steps=500) for s in (1.0, scale)]
    one, other = (
        radius(fit.w[None, None], s * rows[None], "l2")
        for fit, s in zip(fits, (1.0, scale), strict=True)
    )
    assert_close(other, scale * one, rtol=1e-6, atol=0.0)


# --- many runs


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", NAMES)
def test_runs_that_share_a_loop_are_those_of_their_own(norm: str, rule: str) -> None:
    """To the rounding of products of other shapes. One diverges, and leaves the others alone."""
    rows = torch.stack([noise_rows(4, 7, seed) for seed in range(3)])
    lrs = [1e-3, 0.1, 1e200 if rule == "constant" else 1.0]
    together = descend(
        linear_risk(rows), rows.new_zeros(3, 7), norm, lr=lrs, steps=30, rule=rule, record=[7]
    )
    assert together.recorded == (7, 30)
    for p in range(3):
        for r, lr in enumerate(lrs):
            alone = descend(
                linear_risk(rows[p]), zeros(rows[p]), norm, lr=lr, steps=30, rule=rule, record=[7]
            )
            assert_close(together.w[p, r], alone.w[0, 0], rtol=1e-9, atol=1e-9, equal_nan=True)
            assert_close(
                together.margins[:, p, r],
                alone.margins[:, 0, 0],
                rtol=1e-9,
                atol=1e-9,
                equal_nan=True,
            )


# --- an intercept


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("penalise", [False, True])
def test_an_intercept_is_the_exact_solvers(norm: str, penalise: bool) -> None:
    """Far from the origin, where a classifier without one fails. Descent stays below and comes near."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(12, 5, dtype=torch.float64, generator=generator) + torch.tensor(
        [3.0, 0, 0, -1, 0]
    )
    y = torch.sign(X[:, 0] - 3.0)
    X[:, 0] += 0.3 * y
    exact = MaxMarginClassifier(norm, penalise_intercept=penalise).fit(X, y)
    size, lam = vector_norm(norm).size, 0.9 * float(exact.lam_exact_)
    if penalise:
        X = torch.cat([X, torch.ones(12, 1)], 1)
    for name, fit in (
        ("steepest", fit_steepest(X, y, norm, fit_intercept=not penalise, steps=2000)),
        ("hinge", fit_proximal(X, y, norm, lam, fit_intercept=not penalise)),
    ):
        found = ((y * (X @ fit.w + fit.b)).min() / size(fit.w)).item()
        own = torch.from_numpy(exact.coef_[0])
        if penalise:
            own = torch.cat([own, torch.from_numpy(exact.intercept_)])
        best = 1 / size(own).item()
        slack = 8e-2 if name == "steepest" else 1e-6  # 2,000 steps, the margin 1/30 of R
        assert best * (1 - slack) <= found <= best * (1 + 1e-7), name


# --- what cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": [0.1, math.nan]}, "lr must be positive"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rule": "amijo"}, "did you mean 'armijo'"),
        ({"record": [11]}, r"record must be steps from 1 to 10, got \[11\]"),
        ({"norm": "l0"}, "norm 'l0' is not known"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    rows = noise_rows(3, 4)
    with pytest.raises(ValueError, match=message):
        descend(linear_risk(rows), zeros(rows), **({"norm": "l2", "steps": 10} | settings))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3), r"got \[3\]"),
        (torch.zeros(0, 3), r"at least 1, got \[0, 3\]"),
        (torch.ones(2, 2, dtype=torch.int64), "of floats"),
        (torch.tensor([[1.0, math.nan]]), "rows must be finite"),
    ],
)
def test_bad_rows(rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_risk(rows)


def test_rows_that_are_not_separable_have_a_negative_margin() -> None:
    """Opposite labels on equal rows: there is nothing to grow towards."""
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    went = descend(linear_risk(rows), torch.ones(1, 2, dtype=torch.float64), "l2", steps=100)
    assert went.margins[-1] < 0


@pytest.mark.parametrize("fit", [fit_steepest, lambda X, y, norm: fit_proximal(X, y, norm, 0.1)])
def test_labels_that_are_none(fit: Callable[..., object]) -> None:
    X = noise_rows(3, 4)
    with pytest.raises(ValueError, match=r"y \[n\] of ±1, got \[3, 4\] and \[3\] with \[0, 1\]"):
        fit(X, torch.tensor([0, 1, 1]), "l2")
    with pytest.raises(ValueError, match=r"got \[3, 4\] and \[2\]"):
        fit(X, torch.tensor([1, -1]), "l2")
    with pytest.raises(ValueError, match="one class alone"):
        fit(X, torch.ones(3), "l2")
