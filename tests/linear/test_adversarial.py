"""Attacks on linear classifiers in closed form, and training against them."""

from __future__ import annotations

import math

import pytest
import torch
from problems_linear import DUALS, largest_radius, noise_rows
from torch.testing import assert_close

from hrrl_ext.linear import (
    attacked,
    descend,
    linear_risk,
    radius,
    radius_by_attack,
    train_adversarially,
)
from hrrl_ext.norms import vector_norm

ATTACKS = ["linf", "l2", "l1", "fourier-linf"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the inner maximum


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("d", [1, 6, 7])
def test_the_closed_form_is_the_risk_of_attacked_examples(attack: str, d: int, loss: str) -> None:
    """R-T2: the risk at ε is that of the attacked rows at 0, and no other perturbation is worse."""
    rows, w, eps = draw(1, 5, d), draw(1, 1, d, seed=1), 0.3
    worst = attacked(w, rows, eps, attack)[:, 0]
    norm = vector_norm(attack)
    assert_close(norm.size(rows - worst), torch.full((1, 5), eps, dtype=torch.float64))
    value, _ = linear_risk(rows, loss, attack=attack, eps=eps)(w)
    assert_close(value, linear_risk(worst, loss)(w)[0])
    for seed in range(20):
        delta = draw(1, 5, d, seed=seed)
        other = rows + eps * delta / norm.size(delta)[..., None]
        assert linear_risk(other, loss)(w)[0] <= value + 1e-12


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_its_direction_is_the_gradient(attack: str, loss: str) -> None:
    """By central differences, where ‖w‖* has no kink."""
    risk = linear_risk(draw(4, 6), loss, attack=attack, eps=0.2)
    w, h = draw(1, 1, 6, seed=2), 1e-6
    _, rise = risk(w)
    for j in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[j] = h
        slope = (risk(w - step)[0] - risk(w + step)[0]) / (2 * h)
        assert_close(rise[0, 0, j], slope[0, 0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", ["l1", "linf", "fourier-l1"])
def test_a_radius_of_zero_is_plain_training(norm: str) -> None:
    """R-T8: to the bit."""
    rows = noise_rows(5, 8)
    start = rows.new_zeros(1, 8)
    plain, zero = (
        descend(risk, start, norm, steps=20)
        for risk in (linear_risk(rows), linear_risk(rows, attack="l1", eps=0.0))
    )
    assert torch.equal(plain.w, zero.w)


# --- measuring


@pytest.mark.parametrize("attack", ATTACKS)
def test_bisection_finds_what_the_margin_says(attack: str) -> None:
    """Two routes to the radius of any classifier, of any scale: the closed form, and attacks."""
    rows = torch.stack([noise_rows(4, 9, seed) for seed in range(2)])
    margins = torch.tensor([[1.0, 2.0, 3.0, 0.5]], dtype=torch.float64)
    w = margins @ torch.linalg.pinv(rows).mT * torch.tensor([[[1e-8]], [[1e8]]]).double()
    by_margin = radius(w, rows, attack)
    assert (by_margin > 0).all()
    assert_close(radius_by_attack(w, rows, attack, tol=1e-6), by_margin, rtol=1e-6, atol=0.0)


def test_who_errs_withstands_nothing_and_who_decides_nothing_has_no_radius() -> None:
    rows = torch.tensor([[[1.0, 0.0], [-0.5, 2.0]]], dtype=torch.float64)
    w = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [math.nan, 1.0]]], dtype=torch.float64)
    assert_close(
        radius(w, rows, "l2"), torch.tensor([[-0.5, math.nan, math.nan]]).double(), equal_nan=True
    )
    found = radius_by_attack(w, rows, "l2")
    assert found[0, 0] == 0 and found[0, 1].isnan() and found[0, 2].isnan()


# --- training


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_it_is_maximal_only_as_its_radius_is(norm: str) -> None:
    """Fig. 5.4a, against scipy: whoever withstands ε in training has it, and above ε* nobody has."""
    rows = noise_rows(12)
    best = largest_radius(rows, norm)
    factors = torch.tensor([0.5, 0.9, 0.99, 1.1], dtype=torch.float64)
    found = train_adversarially(rows, DUALS[norm], factors * best, steps=1000)
    shares = radius(found.w, rows[None], DUALS[norm])[0] / best
    assert (shares[:3] > factors[:3]).all()
    assert (shares.nan_to_num(nan=0.0) <= 1 + 1e-9).all()
    assert shares[2] > 0.99 > shares.nan_to_num(nan=0.0)[3]


def test_the_prox_goes_where_subgradients_go() -> None:
    """Another route to the same problem: descent with the closed form's subgradient, from far longer."""
    rows = noise_rows(3, 20)
    eps = 0.95 * largest_radius(rows, "l2")
    prox = train_adversarially(rows, "l2", eps, steps=1000)
    risk = linear_risk(rows, attack="l2", eps=eps)
    went = descend(risk, rows.new_zeros(1, 20), "l2", lr=[0.03, 0.3], steps=1000)
    best = max(radius(w, rows[None], "l2").max().item() for w in (went.w, prox.w))
    for w in (went.w, prox.w):
        assert radius(w, rows[None], "l2").max() > 0.98 * best


@pytest.mark.parametrize("eps", [-0.1, math.inf, math.nan, "0.1"])
def test_a_radius_that_is_none(eps: object) -> None:
    with pytest.raises(ValueError, match="eps must be at least 0 and finite"):
        linear_risk(noise_rows(2, 3), eps=eps)  # type: ignore[arg-type]
