"""The best response in the chi-square game: optimality, other routes to it, limits, extremes.

What holds for every problem, with problems drawn by hypothesis, is in test_properties.py.
"""

from __future__ import annotations

import itertools
import math

import cases
import numpy as np
import pytest
import torch
from cases import RESPONSE_CASES, ResponseCase
from scipy.optimize import minimize
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import reference
from hrrl_ext.robust import CVaR

INF, NAN = math.inf, math.nan
KS = [1, 2, 3, 7, 8, 9, 16, 17, 31, 100, 1009]


def distance(q: Tensor, q0: Tensor) -> float:
    return ((q - q0).square() / q0).sum().item()


def value(q: Tensor, loss: Tensor, q0: Tensor, lam: float) -> float:
    return (q @ loss).item() - lam / 2 * distance(q, q0)


@pytest.mark.parametrize("case", RESPONSE_CASES, ids=str)
@pytest.mark.parametrize("k", KS)
def test_conditions_of_a_maximum(k: int, case: ResponseCase) -> None:
    for seed in range(3):
        loss, q0 = ResponseCase.draw(k, seed)
        q = ops.chi_square_response(loss, q0, **case.settings)
        case.check(loss, q0, q)


@pytest.mark.parametrize("case", RESPONSE_CASES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 7, 31])
def test_agrees_with_sorting_and_bisection(k: int, case: ResponseCase) -> None:
    """Both routes end within some roundings of weights up to K; where the ball is nearly as large as
    what the cap allows, λ' follows from a square root of their difference."""
    loss, q0 = ResponseCase.draw(k)
    q = ops.chi_square_response(loss, q0, **case.settings)
    expected = reference.chi_square_response(loss, q0, **case.settings)
    torch.testing.assert_close(q, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", RESPONSE_CASES, ids=str)
def test_no_solver_finds_more(case: ResponseCase) -> None:
    """SciPy's SLSQP, which knows nothing of the form of the solution."""
    lam, rho, cap = case.lam, case.rho, case.max_weight
    loss, q0 = ResponseCase.draw(9)
    ours = ops.chi_square_response(loss, q0, **case.settings)
    loss_, q0_ = loss.numpy(), q0.numpy()
    constraints = [{"type": "eq", "fun": lambda q: q.sum() - 1}]
    if rho is not None:
        ball = lambda q: rho**2 - ((q - q0_) ** 2 / q0_).sum()  # noqa: E731
        constraints.append({"type": "ineq", "fun": ball})
    found = minimize(
        lambda q: -(q @ loss_) + lam / 2 * ((q - q0_) ** 2 / q0_).sum(),
        q0_,
        jac=lambda q: -loss_ + lam * (q - q0_) / q0_,
        bounds=[(0.0, 1.0 if cap is None else min(1.0, cap * share)) for share in q0_],
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-13},
    )
    assert found.success or found.status == 8  # no more progress in the last digits
    best = value(torch.from_numpy(found.x), loss, q0, lam)
    assert value(ours, loss, q0, lam) == pytest.approx(best, abs=1e-7)
    np.testing.assert_allclose(ours.numpy(), found.x, atol=2e-5)


# --- limits


@pytest.mark.parametrize("k", KS)
def test_what_holds_q_at_q0(k: int) -> None:
    loss, q0 = ResponseCase.draw(k)
    for settings in ({"rho": 0.0}, {"max_weight": 1.0}, {"rho": 0.0, "max_weight": 2.0}):
        for lam in (0.0, 1.0):
            assert torch.equal(ops.chi_square_response(loss, q0, lam, **settings), q0)
    assert torch.equal(ops.chi_square_response(torch.full_like(loss, 3.7), q0, 0.0), q0)
    torch.testing.assert_close(ops.chi_square_response(loss, q0, 1e12), q0, rtol=1e-11, atol=0.0)
    near = ops.chi_square_response(loss, q0, 0.0, rho=1e-9)
    if k > 1:
        assert distance(near, q0) ** 0.5 == pytest.approx(1e-9, rel=1e-6)


def test_unclipped_weights_are_one_more_per_nat() -> None:
    """What lam means, whatever the number of concepts and their sizes."""
    for k in (2, 20, 300):
        _, q0 = ResponseCase.draw(k)
        loss = torch.linspace(1, 2, k, dtype=torch.float64)
        weight = ops.chi_square_response(loss, q0, 2.0) / q0
        torch.testing.assert_close(weight, 1 + (loss - q0 @ loss) / 2.0, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.07, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("k", [2, 3, 10, 101])
def test_a_cap_alone_is_cvar(k: int, alpha: float) -> None:
    """By the greedy of hrrl_ext.robust.CVaR; and a small lam comes near."""
    loss, _ = ResponseCase.draw(k)
    count = torch.arange(1, k + 1)
    greedy = CVaR(count, alpha=alpha, momentum=0.0)
    greedy.update(loss)
    q = ops.chi_square_response(loss, greedy.q0, 0.0, max_weight=1 / alpha)
    torch.testing.assert_close(q, greedy.q, rtol=1e-12, atol=1e-14)
    near = ops.chi_square_response(loss, greedy.q0, 1e-7, max_weight=1 / alpha)
    torch.testing.assert_close(near, q, rtol=1e-12, atol=1e-12)


def test_literal_values() -> None:
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)

    def respond(loss: list[float], q0: Tensor, lam: float, **settings: float) -> list[float]:
        loss_ = torch.tensor(loss, dtype=torch.float64)
        return ops.chi_square_response(loss_, q0, lam, **settings).tolist()

    assert respond([5.0], torch.ones(1, dtype=torch.float64), 0.3) == [1.0]
    assert respond([1.0, 2.0], half, 1.0) == [0.25, 0.75]
    assert respond([1.0, 2.0], half, 1.0, max_weight=1.25) == [0.375, 0.625]
    assert respond([1.0, 2.0], half, 1.0, rho=0.25) == [0.375, 0.625]
    assert respond([1.0, 2.0], half, 0.0) == [0.0, 1.0]
    assert respond([1.0, 2.0], half, 0.0, rho=0.25) == [0.375, 0.625]
    assert respond([1.0, 2.0], half, 0.0, rho=9.0) == [0.0, 1.0]
    assert respond([2.0, 2.0, 1.0], third, 0.0) == pytest.approx([0.5, 0.5, 0.0])
    assert respond([2.0, 1.0, 1.0], third, 0.0, max_weight=2.0) == pytest.approx(
        [2 / 3, 1 / 6, 1 / 6]
    )
    # With a ball that has room for what the losses that are equal can share, and none for more.
    assert respond([2.0, 2.0, 1.0], third, 0.0, rho=2.0) == pytest.approx([0.5, 0.5, 0.0])


def test_concepts_without_a_share_have_no_part() -> None:
    """Whatever their losses."""
    loss, q0 = ResponseCase.draw(9)
    for case in RESPONSE_CASES:
        plain = ops.chi_square_response(loss, q0, **case.settings)
        for other in (-1e308, 0.0, 1e308):
            loss_ = torch.cat([loss[:4], torch.tensor([other], dtype=torch.float64), loss[4:]])
            q0_ = torch.cat([q0[:4], torch.zeros(1, dtype=torch.float64), q0[4:]])
            q = ops.chi_square_response(loss_, q0_, **case.settings)
            assert q[4] == 0
            torch.testing.assert_close(torch.cat([q[:4], q[5:]]), plain, rtol=1e-12, atol=1e-14)


# --- extremes


@pytest.mark.parametrize("case", RESPONSE_CASES, ids=str)
@pytest.mark.parametrize("scale", [1e-305, 1e-150, 1e-9, 1e9, 1e150, 1e305])
def test_any_scale(scale: float, case: ResponseCase) -> None:
    """q of ℓ and λ is q of both times a constant, and does not change with a constant added to ℓ."""
    loss, q0 = ResponseCase.draw(11)
    plain = ops.chi_square_response(loss, q0, **case.settings)
    scaled = ops.chi_square_response(
        scale * loss, q0, **(case.settings | {"lam": scale * case.lam})
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-11, atol=1e-13)
    power = 2.0**20  # the sums below are exact
    loss = (loss * power).round() / power
    plain = ops.chi_square_response(loss, q0, **case.settings)
    moved = ops.chi_square_response(loss + 2.0**30, q0, **case.settings)
    assert torch.equal(moved, plain)


def test_differences_of_any_size_together() -> None:
    """Losses 1e-12 apart beside others 1 apart: the ball and the cap still tell them apart."""
    loss = torch.tensor([0.0, 1.0, 1.0 + 2e-12, 1.0 + 4e-12, 9.0], dtype=torch.float64)
    q0 = torch.tensor([0.3, 0.2, 0.2, 0.2, 0.1], dtype=torch.float64)
    for case in (
        ResponseCase(1e-12, None, 2.0),
        ResponseCase(2e-11, None, 2.0),
        ResponseCase(0.0, 0.9, 2.0),
    ):
        q = ops.chi_square_response(loss, q0, **case.settings)
        expected = reference.chi_square_response(loss, q0, **case.settings)
        torch.testing.assert_close(q, expected, rtol=1e-9, atol=1e-12)
    q = ops.chi_square_response(loss, q0, 9e-13, max_weight=2.0)
    assert q.tolist() == pytest.approx([0.0, 0.0, 0.4, 0.4, 0.2], abs=1e-12)
    assert 0 < ops.chi_square_response(loss, q0, 2e-11, max_weight=2.0)[1] < 0.4


def test_ties() -> None:
    """Concepts of equal loss weigh the same, whoever they are; and relabelling permutes q."""
    g = cases.generator(5)
    loss = torch.randint(4, (60,), generator=g).double()
    _, q0 = ResponseCase.draw(60)
    order = torch.randperm(60, generator=g)
    for case in RESPONSE_CASES:
        q = ops.chi_square_response(loss, q0, **case.settings)
        case.check(loss, q0, q)
        weight = q / q0
        for level in range(4):
            of_level = weight[loss == level]
            torch.testing.assert_close(
                of_level, of_level[:1].expand_as(of_level), rtol=1e-12, atol=1e-14
            )
        moved = ops.chi_square_response(loss[order], q0[order], **case.settings)
        torch.testing.assert_close(moved, q[order], rtol=1e-11, atol=1e-13)


def test_at_the_edges_of_the_cap() -> None:
    """Some units in the last place around a share that the cap fills exactly, and cap and mass that
    meet: rounding must neither go round for ever nor give a concept too much."""
    ulps = torch.arange(-4, 5, dtype=torch.float64) * cases.EPS[torch.float64]
    loss = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    for ulp, lam in itertools.product(ulps, (0.0, 1e-9, 0.5, 1.0, 2.0, 4.0)):
        q0 = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
        q0[0] += ulp / 4
        for cap in (4.0, 2.0, 4 / 3, 1.0):
            for rho in (None, (cap - 1) ** 0.5 or 0.1):
                q = ops.chi_square_response(loss, q0, lam, rho=rho, max_weight=cap)
                assert q.sum().item() == pytest.approx(q0.sum().item(), rel=1e-14)
                assert (q <= cap * q0 * (1 + 1e-15)).all() and (q >= 0).all()
                assert rho is None or distance(q, q0) <= rho**2 * (1 + 1e-13)


@pytest.mark.parametrize("k", [10_007, 100_003])
def test_many_concepts(k: int) -> None:
    loss, q0 = ResponseCase.draw(k)
    for case in (ResponseCase(1.0), ResponseCase(0.2, None, 4.0), ResponseCase(0.0, 0.8, 3.0)):
        q = ops.chi_square_response(loss, q0, **case.settings)
        case.check(loss, q0, q)


def test_geometric_losses() -> None:
    """A thousand of them, each half of the next: the order of what is left and right of a threshold can
    only be found step by step."""
    loss = 2.0 ** torch.arange(-500, 500, dtype=torch.float64)
    q0 = torch.full((1000,), 1e-3, dtype=torch.float64)
    for sign in (1, -1):
        q = ops.chi_square_response(sign * loss, q0, 0.0, max_weight=2.5)
        top = q[600:] if sign > 0 else q[:400]
        torch.testing.assert_close(top, torch.full_like(top, 2.5e-3), rtol=1e-12, atol=0.0)
        assert q.sum().item() == pytest.approx(1.0, rel=1e-13)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_numbers_that_are_not_finite(bad: float) -> None:
    loss, q0 = ResponseCase.draw(11)
    for k, lam in itertools.product((0, 4, 10), (0.0, 1.0)):
        spoiled = loss.clone()
        spoiled[k] = bad
        assert ops.chi_square_response(spoiled, q0, lam, rho=0.5).isnan().all()
        spoiled = q0.clone()
        spoiled[k] = bad
        assert ops.chi_square_response(loss, spoiled, lam, max_weight=3.0).isnan().all()
    for q0_ in (torch.zeros_like(q0), -q0, q0 - 2 * torch.eye(11, dtype=torch.float64)[3] * q0):
        assert ops.chi_square_response(loss, q0_, 1.0).isnan().all()
        assert reference.chi_square_response(loss, q0_, 1.0).isnan().all()


# --- types, borrowing, refusals


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_any_type_of_loss(dtype: torch.dtype) -> None:
    loss, q0 = ResponseCase.draw(13)
    for q0_dtype in (torch.float32, torch.float64):
        q = ops.chi_square_response(loss.to(dtype), q0.to(q0_dtype), 0.7, rho=0.6, max_weight=3.0)
        assert q.dtype == q0_dtype
        wide = ops.chi_square_response(
            loss.to(dtype).double(), q0.to(q0_dtype).double(), 0.7, rho=0.6, max_weight=3.0
        )
        assert torch.equal(q, wide.to(q0_dtype))  # float64 inside: one rounding


def test_borrows_and_carries_no_gradient() -> None:
    loss, q0 = ResponseCase.draw(5)
    before = loss.clone(), q0.clone()
    q = ops.chi_square_response(loss.requires_grad_(), q0.requires_grad_(), 1.0)
    assert not q.requires_grad
    assert torch.equal(loss, before[0]) and torch.equal(q0, before[1])
    assert not reference.chi_square_response(loss, q0, 1.0).requires_grad


def test_is_the_gradient_of_the_maximum() -> None:
    """Danskin: by central differences of step 1e-6, whose error is far below 1e-8."""
    loss, q0 = ResponseCase.draw(7)
    for case in (ResponseCase(0.5), ResponseCase(0.2, 0.6, 2.5), ResponseCase(0.0, 0.4)):
        solve = lambda v: ops.chi_square_response(v, q0, **case.settings)  # noqa: B023, E731
        for k in range(7):
            step = 1e-6 * torch.eye(7, dtype=torch.float64)[k]
            up, down = (value(solve(v), v, q0, case.lam) for v in (loss + step, loss - step))
            assert (up - down) / 2e-6 == pytest.approx(solve(loss)[k].item(), abs=1e-8)


BAD = {
    "concept_loss": ({"concept_loss": torch.zeros(2)}, r"concept_loss.*\[3\], got \[2\]"),
    "q0": ({"q0": torch.zeros(3, 1)}, r"q0 must have shape \[K\] with K >= 1, got \[3, 1\]"),
    "no concepts": ({"q0": torch.zeros(0)}, r"q0 must have shape \[K\]"),
    "q0 dtype": ({"q0": torch.zeros(3).half()}, "q0 must be float32 or float64"),
    "ids": ({"concept_loss": torch.zeros(3).long()}, "concept_loss must be a floating-point"),
    "lam": ({"lam": -0.1}, "lam must be finite and not negative, got -0.1"),
    "lam inf": ({"lam": INF}, "lam must be finite"),
    "rho": ({"rho": -1.0}, "rho must be None or not negative, got -1"),
    "rho nan": ({"rho": NAN}, "rho must be None or not negative, got nan"),
    "max_weight": ({"max_weight": 0.5}, "max_weight must be None or at least 1 .*, got 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    change, message = BAD[name]
    good = {"concept_loss": torch.zeros(3), "q0": torch.ones(3) / 3, "lam": 1.0}
    with pytest.raises(ValueError, match=f"^chi_square_response: {message}"):
        ops.chi_square_response(**(good | change))


def test_a_cap_of_one_leaves_q0_whatever_its_sum_rounds_to() -> None:
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        q0 = torch.rand(37, generator=generator, dtype=torch.float64)
        q0, loss = q0 / q0.sum(), torch.randn(37, generator=generator, dtype=torch.float64)
        for response in (ops.chi_square_response, reference.chi_square_response):
            q = response(loss, q0, 0.0, max_weight=1.0)
            torch.testing.assert_close(q, q0, rtol=1e-12, atol=0.0)
