"""Losses of margins, against their definitions in arbitrary precision, and far beyond what exp can hold."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hrrl_ext.linear.losses import (
    Exponential,
    FreeExponential,
    Hinge,
    Logistic,
    LogOf,
    MarginLoss,
    tail_loss,
)

getcontext().prec = 60
ROWS = {
    "near 0": [0.3, -0.7, 2.0],
    "one": [1.5],
    "overflow": [-800.0, -1200.0],
    "underflow": [900.0, 901.0, 5000.0],
    "both": [-800.0, 900.0],
    "where softplus becomes its tail": [36.999, 37.001, 40.0],
}
SMOOTH = {"exponential": Exponential(), "logistic": Logistic()}


def log_mean(name: str, m: list[float]) -> float:
    """log mean ζ with 50 digits at least."""
    terms = [(-Decimal(v)).exp() for v in m]
    if name == "logistic":
        terms = [(1 + t).ln() if t > Decimal("1e-25") else t - t * t / 2 for t in terms]
    return float((sum(terms) / len(terms)).ln())


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("m", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", SMOOTH)
def test_log_value_is_the_definition(name: str, m: list[float]) -> None:
    # absolute: log f near 0 is a difference
    assert_close(SMOOTH[name].log_value(f64(m)), f64(log_mean(name, m)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("m", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", SMOOTH)
def test_log_shares_are_its_slopes(name: str, m: list[float]) -> None:
    """Central differences of the definition, with steps that 60 digits can take."""
    shares, h = SMOOTH[name].log_shares(f64(m)), 1e-4
    assert (shares >= 0).all() and shares.isfinite().all()
    for i in range(len(m)):
        up, down = ([*m[:i], m[i] + s, *m[i + 1 :]] for s in (h, -h))
        slope = (log_mean(name, down) - log_mean(name, up)) / (2 * h)
        assert shares[i].item() == pytest.approx(slope, abs=1e-7 + 1e-11 * abs(m[i]) / h)


def test_a_loss_far_away_is_not_lost() -> None:
    """exp(-900) is 0 in float64: without the log domain there would be no direction."""
    m = f64([900.0, 902.0])
    assert torch.exp(-m).sum() == 0
    for loss in SMOOTH.values():
        assert_close(loss.log_shares(m), torch.softmax(-m, 0))
    assert_close(Logistic().log_shares(f64([-900.0, 0.0])), f64([1, 0.5]) / (900 + math.log(2)))


@pytest.mark.parametrize(
    "loss", [*SMOOTH.values(), Hinge(), LogOf(Exponential())], ids=lambda x: x.name
)
def test_shares_are_the_gradient(loss: MarginLoss) -> None:
    m = f64([[0.3, -0.7, 2.0], [0.9, 1.1, -3.0]]).requires_grad_()
    (grad,) = torch.autograd.grad(loss.value(m).sum(), m)
    assert_close(loss.shares(m), -grad)


@pytest.mark.parametrize("loss", [*SMOOTH.values(), Hinge()], ids=lambda x: x.name)
def test_the_lower_bound_is_below_and_attained(loss: MarginLoss) -> None:
    """D(u) ≤ f(m) + u·m for any m, and equal at the shares of m (Fenchel and Young)."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    u = loss.shares(m)
    assert_close(loss.dual(u), loss.value(m) + (u * m).sum(-1))
    other = 3 * torch.randn(50, 4, dtype=torch.float64, generator=generator)
    assert (loss.dual(u) <= loss.value(other) + (u * other).sum(-1) + 1e-12).all()
    assert loss.dual(torch.zeros(4, dtype=torch.float64)) == 0


def test_a_free_bias_is_the_best_one() -> None:
    """Against a fine search over b; the slopes against autograd."""
    y, m = f64([1, 1, -1, 1, -1]), f64([0.4, -1.0, 2.0, 0.1, -0.3])
    loss, bias = FreeExponential(y), torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    searched = Exponential().log_value(m + y * bias[:, None]).min()
    assert_close(loss.log_value(m), searched, rtol=1e-9, atol=1e-9)  # the grid's step is 5e-5
    m = m.requires_grad_()
    (grad,) = torch.autograd.grad(loss.log_value(m), m)
    assert_close(loss.log_shares(m.detach()), -grad)
    # moving all of a class is what b undoes
    assert_close(loss.log_value(m + 7 * y), loss.log_value(m))


def test_the_kink_of_the_hinge() -> None:
    assert Hinge().shares(f64([1.0, 1 - 1e-12])).tolist() == [0, 0.5]


def test_a_loss_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="'logstic' is not known; did you mean 'logistic'"):
        tail_loss("logstic")
