"""Linear convolutional networks: what they compute, which classifier they are, where descent takes them."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from problems_linear import noise_rows
from torch.testing import assert_close

from hrrl_ext.linear import (
    LinearConvolution,
    circular_convolution,
    convolution_risk,
    descend,
    fourier_quasi_norm,
    initial_filters,
    linear_risk,
    linearised,
    primal_dual,
    radius,
)
from hrrl_ext.norms import vector_norm

SIZES = [1, 2, 5, 8]  # alone, even, odd


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", SIZES)
def test_convolution_is_the_sum(d: int) -> None:
    """[w ⋆ x]_i = 1/√d Σ_k w_k x_{i-k}, the thesis's sum with [w]_{-k}[x]_{i+k}, by hand."""
    w, x = draw(d), draw(d, seed=1)
    by_hand = [
        sum((w[-k % d] * x[(i + k) % d]).item() for k in range(d)) / math.sqrt(d) for i in range(d)
    ]
    assert_close(circular_convolution(w, x), torch.tensor(by_hand, dtype=torch.float64))


@pytest.mark.parametrize("d", SIZES)
def test_the_transform_is_unitary_and_turns_convolution_into_a_product(d: int) -> None:
    """R-T5, with F(w)_j = 1/√d Σ_k w_k e^{-2πi jk/d} written out."""

    def transform(v: torch.Tensor) -> list[complex]:
        return [
            sum(v[k].item() * cmath.exp(-2j * math.pi * j * k / d) for k in range(d)) / math.sqrt(d)
            for j in range(d)
        ]

    w, x = draw(d), draw(d, seed=1)
    assert sum(abs(v) ** 2 for v in transform(w)) == pytest.approx(w.square().sum().item())
    product = [a * b for a, b in zip(transform(w), transform(x), strict=True)]
    assert transform(circular_convolution(w, x)) == pytest.approx(product)
    assert fourier_quasi_norm(w, 2).item() == pytest.approx(sum(map(abs, transform(w))))
    assert fourier_quasi_norm(w, 3).item() == pytest.approx(
        sum(abs(v) ** (2 / 3) for v in transform(w)) ** 1.5
    )
    assert_close(fourier_quasi_norm(w, 1), w.norm())


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_network_is_its_linear_classifier(d: int, layers: int) -> None:
    """With every layer but the last flipped. Without flips norms agree, and predictions do not."""
    model = LinearConvolution(d, layers, seed=3).double()
    x = draw(6, d)
    assert_close(model(x), x @ model.linear())
    unflipped = model.filters[0]
    for w in model.filters[1:]:
        unflipped = circular_convolution(w, unflipped)
    norm = vector_norm("fourier-l1")
    assert_close(norm.size(unflipped), norm.size(model.linear()))
    if layers > 1 and d > 2:  # of two entries flip moves none
        assert not torch.allclose(model(x), x @ unflipped, rtol=0.1)


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_gradient_is_autograds(d: int, layers: int, loss: str) -> None:
    """Through the network as it is defined, layer by layer."""
    rows, theta = draw(2, 4, d), draw(2, 3, layers * d, seed=1)
    risk = convolution_risk(rows, layers, loss)
    value, rise = risk(theta)
    model = LinearConvolution(d, layers).double()
    for p in range(2):
        for r in range(3):
            model.filters.data = theta[p, r].view(layers, d)
            model.zero_grad()
            m = model(rows[p])
            zeta = torch.exp(-m) if loss == "exponential" else torch.nn.functional.softplus(-m)
            zeta.mean().log().backward()
            assert_close(value[p, r], zeta.mean().log().detach())
            assert model.filters.grad is not None
            assert_close(rise[p, r], -model.filters.grad.flatten())


def test_a_single_layer_is_a_linear_classifier() -> None:
    rows = noise_rows(4, 6)
    start = draw(1, 6)
    network, plain = (
        descend(risk, start, "l2", steps=20)
        for risk in (convolution_risk(rows, 1), linear_risk(rows))
    )
    assert_close(network.w, plain.w)


@pytest.mark.parametrize("d", [20, 21])
def test_two_layers_come_near_the_least_fourier_norm(d: int) -> None:
    """R-T3 for Fourier: against the hinge's exact solution, from below, nearer with every decade."""
    rows = noise_rows(4, d)
    best = radius(primal_dual(rows, "fourier-l1", 1e-3).w, rows[None], "fourier-linf").item()
    start = initial_filters(d, 2).flatten()[None]
    went = descend(
        convolution_risk(rows), start, "l2", lr=[0.01, 0.1, 1.0], steps=2000, record=[20, 200],
        margin_norm="fourier-l1",
    )  # fmt: skip
    gaps = 1 - went.margins[:, 0].amax(-1) / best
    assert gaps[0] > gaps[1] > gaps[2] >= -1e-9
    assert gaps[2] < 5e-2
    assert_close(went.w, linearised(went.theta.unflatten(-1, (2, d))))
    # while gradient descent on w itself stays where its norm takes it
    plain = descend(linear_risk(rows), rows.new_zeros(1, d), "l2", lr=0.1, steps=2000)
    assert radius(plain.w, rows[None], "fourier-linf").item() < 0.9 * best


def test_filters_are_drawn_from_a_stream_of_their_own() -> None:
    state = torch.get_rng_state()
    one, same, other = (initial_filters(9, 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.norm(dim=1).mean() == pytest.approx(1, abs=0.5)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        convolution_risk(noise_rows(2, 3), 0)
    with pytest.raises(ValueError, match=r"got \[2, 0\]"):
        LinearConvolution(0)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        fourier_quasi_norm(torch.ones(3), 0)
