"""The projection onto the simplex and the adversary's step: optimality, precision, extremes.

What holds for every vector, with vectors drawn by hypothesis, is in test_properties.py.
"""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import reference

INF = math.inf
KS = [1, 2, 3, 4, 5, 7, 8, 31, 100, 1009, 100_003]


def draw(k: int, scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(k, generator=cases.generator(k), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("k", KS)
def test_agrees_with_sorting(k: int, scale: float) -> None:
    """Both thresholds are sums of up to k float64 terms of size at most 1 + the shifted entries."""
    v = draw(k, scale)
    p = ops.project_simplex(v)
    torch.testing.assert_close(p, reference.project_simplex(v), rtol=1e-9, atol=1e-14 * (1 + scale))
    assert p.sum().item() == pytest.approx(1.0, abs=1e-11)
    assert (p >= 0).all()


@pytest.mark.parametrize("k", KS)
def test_is_the_nearest_point(k: int) -> None:
    """KKT with one ν; (v - p)·(r - p) <= 0 for points r of the simplex; idempotent."""
    v = draw(k, 2.0)
    p = ops.project_simplex(v)
    gap = v - p
    nu = gap[p > 0].mean()
    torch.testing.assert_close(gap[p > 0], nu.expand((p > 0).sum()), rtol=1e-12, atol=1e-12)
    assert (v[p == 0] <= nu + 1e-12).all()
    for seed in range(5):
        r = torch.rand(k, generator=cases.generator(seed), dtype=torch.float64) ** 8
        assert gap @ (r / r.sum() - p) <= 1e-12
    torch.testing.assert_close(ops.project_simplex(p), p, rtol=0, atol=1e-15)


def test_literal_values() -> None:
    def project(*values: float, radius: float = 1.0) -> list[float]:
        return ops.project_simplex(
            torch.tensor(values, dtype=torch.float64), radius=radius
        ).tolist()

    assert project(-7.0) == [1.0]
    assert project(5.0, radius=3.0) == [3.0]
    assert project(2.0, 2.0) == [0.5, 0.5]
    assert project(0.2, 0.3, 0.5) == pytest.approx([0.2, 0.3, 0.5], abs=1e-16)
    assert project(3.0, 0.0, 0.0) == [1.0, 0.0, 0.0]
    assert project(1e30, -1e30, 0.0) == [1.0, 0.0, 0.0]
    assert project(1e30, 1e30, -1e30) == [0.5, 0.5, 0.0]
    assert project(0.0, -INF) == [1.0, 0.0]  # -inf gets nothing
    for bad in ((math.nan, 1.0), (INF, 0.0), (-INF, -INF), (0.0, 1.0, math.nan)):
        assert all(math.isnan(p) for p in project(*bad)), bad


def test_ties_and_steps() -> None:
    for k in (2, 3, 1000):
        tied = torch.full((k,), 1e6, dtype=torch.float64)
        assert ops.project_simplex(tied).tolist() == [1 / k] * k
    staircase = torch.arange(1000, dtype=torch.float64) / 100
    torch.testing.assert_close(
        ops.project_simplex(staircase), reference.project_simplex(staircase), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 7), (0, 4), (65, 33)])
def test_batched_along_any_dimension(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    v = torch.randn(shape, generator=cases.generator(3)).to(dtype)
    for dim in range(-len(shape), len(shape)):
        if v.shape[dim] == 0:
            with pytest.raises(ValueError, match="at least one entry"):
                ops.project_simplex(v, dim=dim)
            continue
        got = ops.project_simplex(v, dim=dim, radius=2.0)
        truth = reference.project_simplex(v.double(), dim=dim, radius=2.0)
        assert got.dtype == dtype
        # float64 inside: one rounding of the result
        torch.testing.assert_close(
            got.double(), truth, rtol=cases.EPS[dtype], atol=torch.finfo(dtype).tiny + 1e-15
        )


def test_a_bad_row_spoils_no_other() -> None:
    v = torch.randn(5, 9)
    clean = ops.project_simplex(v)
    v[2, 4] = math.nan
    got = ops.project_simplex(v)
    assert torch.isnan(got[2]).all()
    keep = torch.arange(5) != 2
    assert torch.equal(got[keep], clean[keep])


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, INF])
def test_bad_radius(radius: float) -> None:
    with pytest.raises(ValueError, match="radius must be positive and finite"):
        ops.project_simplex(torch.zeros(3), radius=radius)


def test_gradient() -> None:
    v = torch.randn(4, 6, dtype=torch.float64, generator=cases.generator(0)).requires_grad_()
    for dim in (0, 1):
        project = lambda v, dim=dim: ops.project_simplex(v, dim=dim)  # noqa: E731
        assert torch.autograd.gradcheck(project, (v,))
        assert torch.autograd.gradgradcheck(project, (v,))
    (grad,) = torch.autograd.grad(ops.project_simplex(v).square().sum(), v)
    (plain,) = torch.autograd.grad(reference.project_simplex(v).square().sum(), v)
    torch.testing.assert_close(grad, plain)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 1009])
def test_backward_is_the_mean_of_the_support_taken_out(k: int, dtype: torch.dtype) -> None:
    """Whole vectors and every tail; entries that are not in the support are never seen, whatever they are."""
    p = ops.project_simplex(draw(3 * k, 2.0 / k, dtype).view(3, k))
    grad = draw(3 * k + 1, 1.0, dtype)[1:].view(3, k)
    p[1], grad[2] = math.nan, torch.where(p[2] > 0, grad[2], math.nan)
    moved = ops.project_simplex_backward(p, grad)
    support = p > 0
    wide = torch.where(support, grad.double(), 0.0)
    exact = wide - wide.sum(1, True) / support.sum(1, True)
    assert torch.equal(moved != 0, support & (moved != 0)) and not moved[1].any()
    torch.testing.assert_close(
        moved[support].double(),
        exact[support],
        rtol=cases.EPS[dtype],
        atol=1e-15 * k + torch.finfo(dtype).tiny * cases.EPS[dtype],
    )


def test_backward_without_rows_and_bad_input() -> None:
    none = torch.zeros(0, 4)
    assert ops.project_simplex_backward(none, none).shape == (0, 4)
    for p, grad, message in (
        (torch.zeros(3), torch.zeros(1, 3), r"grad must have the shape of p, \[3\], got \[1, 3\]"),
        (torch.zeros(3), torch.zeros(3).double(), "grad must have the dtype of p"),
        (torch.zeros(2, 0), torch.zeros(2, 0), "p must have at least one entry"),
        (torch.zeros(3).long(), torch.zeros(3).long(), "p must be float16"),
    ):
        with pytest.raises(ValueError, match=f"^project_simplex_backward: {message}"):
            ops.project_simplex_backward(p, grad)


@pytest.mark.slow
def test_a_million_entries() -> None:
    v = draw(10**6, 1e-3, torch.float32)
    p = ops.project_simplex(v.double())
    torch.testing.assert_close(p, reference.project_simplex(v.double()), rtol=1e-8, atol=1e-13)


# --- update_distribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lam", [0.0, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("k", [1, 2, 11, 1009])
def test_update_is_ascent_then_projection(k: int, lam: float, dtype: torch.dtype) -> None:
    q, q0 = (ops.project_simplex(draw(k, s, dtype)) for s in (0.1, 0.05))
    gain = 7 * torch.rand(k, generator=cases.generator(k), dtype=torch.float64)
    for eta in (0.0, 0.01, 1 / (10 * max(lam, 0.1))):
        got = ops.update_distribution(q, gain, q0, eta, lam)
        assert got.dtype == dtype
        truth = reference.project_simplex(
            q.double() + eta * (gain - lam * (q.double() - q0.double()))
        )
        torch.testing.assert_close(
            got.double(), truth, rtol=cases.EPS[dtype], atol=1e-15 * (1 + eta * 7)
        )
        on_device = ops.update_distribution(
            q, gain, q0, torch.tensor(eta, dtype=torch.float64), lam
        )
        torch.testing.assert_close(on_device, got, rtol=1e-15, atol=1e-15)


def test_large_first_steps_keep_their_precision() -> None:
    """ĝ ~ 7, λ = 1e-3 and t = 1 move q by thousands before the projection; in float32 that would
    cost q three digits."""
    gain = torch.tensor([7.0, 7.0001, 6.9999], dtype=torch.float64)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    got = ops.update_distribution(third, gain, third, 1e3, 1e-3)
    expected = reference.project_simplex(1000 * (gain - 7) + third * 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_update_extremes_and_borrowing() -> None:
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    huge = ops.update_distribution(third, torch.tensor([0.0, 1e30, 0.0]), third, 1.0, 1.0)
    assert huge.tolist() == [0.0, 1.0, 0.0]
    assert torch.equal(third, torch.full((3,), 1 / 3, dtype=torch.float64))
    back = ops.update_distribution(huge, torch.zeros(3), third, 0.5, 1.0)  # 0 is no trap
    assert (back > 0).all()
    bad = ops.update_distribution(third, torch.tensor([0.0, math.nan, 0.0]), third, 1.0, 1.0)
    assert torch.isnan(bad).all()
    assert not ops.update_distribution(
        third.clone().requires_grad_(), torch.zeros(3), third, 1.0, 1.0
    ).requires_grad


# --- step_distribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 2, 11, 1009])
def test_steps_are_updates_on_the_schedule(k: int, dtype: torch.dtype) -> None:
    """To the bit, across the end of the slow phase; the losses of one step throw q out and are refused."""
    lam, s, c = 0.3, 2, torch.tensor(3.0)
    q, q0 = (ops.project_simplex(draw(k, scale, dtype)) for scale in (0.1, 0.05))
    t, by_hand = torch.tensor(0), q.clone()
    for step in range(1, 6):
        gain = 7 * torch.rand(k, generator=cases.generator(step))
        if step == 4:
            gain[-1] = math.inf
        version = (q._version, t._version)
        ops.step_distribution(q, t, gain, q0, c, lam=lam, s=s)
        assert q._version > version[0] and t._version > version[1]
        eta = 1 / (lam * step) / (3 if step <= s else 1)
        if step != 4:
            by_hand = ops.update_distribution(by_hand, gain, q0, eta, lam)
        assert t == step and torch.equal(q, by_hand), step


BAD = {
    "concept_loss": ({"concept_loss": torch.zeros(2)}, r"concept_loss.*\[3\], got \[2\]"),
    "q0": ({"q0": torch.zeros(3, 1)}, r"q0.*\[3\], got \[3, 1\]"),
    "q": ({"q": torch.zeros(0)}, r"q must have shape \[K\]"),
    "q dtype": ({"q": torch.zeros(3).half()}, "q must be float32 or float64"),
    "ids": ({"concept_loss": torch.zeros(3).long()}, "concept_loss must be a floating-point"),
    "eta": ({"eta": -0.1}, "eta must be finite and not negative, got -0.1"),
    "eta shape": ({"eta": torch.ones(2)}, r"eta must be a number or a tensor of one entry, got \[2\]"),
    "lam": ({"lam": math.nan}, "lam must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    change, message = BAD[name]
    good = {"q": torch.ones(3) / 3, "concept_loss": torch.zeros(3), "q0": torch.ones(3) / 3}
    with pytest.raises(ValueError, match=f"^update_distribution: {message}"):
        ops.update_distribution(**({"eta": 0.1, "lam": 1.0} | good | change))


BAD_STEPS = {
    "q": ({"q": torch.ones(6)[::2]}, "q must be contiguous"),
    "q of a graph": ({"q": torch.ones(3, requires_grad=True)}, "q is written to in place and carries no"),
    "q0": ({"q0": torch.zeros(2)}, r"q0 must have the shape of q, \[3\], got \[2\]"),
    "t": ({"t": torch.tensor(0.0)}, "t must be an int64 scalar"),
    "t shape": ({"t": torch.tensor([0])}, r"t must be an int64 scalar, got \[1\]"),
    "c": ({"c": torch.tensor(1)}, "c must be a floating-point scalar"),
    "lam": ({"lam": 0.0}, "lam must be positive, got 0"),
    "s": ({"s": -1}, "s must not be negative, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_steps(name: str) -> None:
    change, message = BAD_STEPS[name]
    good: dict[str, Any] = {"q": torch.ones(3) / 3, "t": torch.tensor(0)}
    good |= {"concept_loss": torch.zeros(3)}
    good |= {"q0": torch.ones(3) / 3, "c": torch.tensor(1.0), "lam": 1.0, "s": 1}
    arguments = good | change
    with pytest.raises(ValueError, match=f"^step_distribution: {message}"):
        ops.step_distribution(**arguments)
    assert (good["t"] == 0).all() and (good["q"] == 1 / 3).all()
