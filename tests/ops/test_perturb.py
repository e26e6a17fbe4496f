"""perturb against its plain-PyTorch twin in float64, its identities, and what goes wrong in practice."""

from __future__ import annotations

import math

import cases
import pytest
import torch
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import reference

INF, NAN = math.inf, math.nan


def assert_close_to_oracle(x: Tensor, grad: Tensor, tau: float | Tensor) -> None:
    """No worse than one rounding of the result in its dtype, and 4 of the step τ z_j in float32.

    In float64 the oracle rounds as well: twice that, and a norm that was summed in another order.
    """
    got, norm = ops.perturb(x, grad, tau)
    exact, exact_norm = reference.perturb(x.double(), grad.double(), tau)
    step = (exact - x.double()).abs()
    double = x.dtype == torch.float64
    compute = cases.EPS[torch.float64 if double else torch.float32] * (2 if double else 1)
    size = max(x[0].numel(), 1) if len(x) else 1
    order = size**0.5 * cases.EPS[torch.float64] if double else 0.0
    bound = (
        cases.EPS[x.dtype] * (1 if double else 0.505) * exact.abs() + (4 * compute + order) * step
    )
    assert ((got.double() - exact).abs() - bound).max().item() <= torch.finfo(x.dtype).tiny
    torch.testing.assert_close(norm.double(), exact_norm, rtol=compute + order, atol=0)
    assert got.dtype == x.dtype
    assert got.shape == x.shape


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("size", [*cases.SIZES, 3071, 3072, 12289])
def test_values(size: int, dtype: torch.dtype) -> None:
    assert_close_to_oracle(
        cases.images(5, size, dtype=dtype), cases.gradients(5, size, dtype=dtype), 0.37
    )


@pytest.mark.parametrize("batch", [1, 2, 127, 1001])
def test_batches(batch: int) -> None:
    assert_close_to_oracle(cases.images(batch, 3, 5, 7), cases.gradients(batch, 3, 5, 7), -2.0)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 0), (4, 3, 0, 5), (0,)])
def test_empty(shape: tuple[int, ...]) -> None:
    x_perturbed, norm = ops.perturb(torch.zeros(shape), torch.zeros(shape), 1.0)
    assert x_perturbed.shape == shape
    assert norm.tolist() == [0.0] * shape[0]


def test_one_number_per_example() -> None:
    x, norm = ops.perturb(torch.zeros(3), torch.tensor([2.0, -5.0, 0.0]), 0.5)
    assert x.tolist() == [0.5, -0.5, 0.0]
    assert norm.tolist() == [2.0, 5.0, 0.0]


def test_length_is_tau() -> None:
    x, grad = cases.images(32, 3, 32, 32), cases.gradients(32, 3, 32, 32)
    moved = ops.perturb(x.double(), grad.double(), 0.25)[0] - x.double()
    torch.testing.assert_close(
        moved.flatten(1).norm(dim=1), torch.full((32,), 0.25).double(), rtol=1e-14, atol=0
    )


def test_tau_per_example() -> None:
    x, grad, tau = cases.images(6, 40), cases.gradients(6, 40), torch.linspace(-1, 2, 6)
    assert_close_to_oracle(x, grad, tau)
    whole = ops.perturb(x, grad, tau)[0]
    for i in range(6):
        alone = ops.perturb(x[i : i + 1], grad[i : i + 1], tau[i].item())[0]
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=0)
    torch.testing.assert_close(
        ops.perturb(x, grad, torch.tensor(0.3))[0], ops.perturb(x, grad, 0.3)[0], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_unusable_gradients_leave_their_example_and_no_other(dtype: torch.dtype) -> None:
    x, grad = cases.images(7, 3, 5, 5, dtype=dtype), cases.gradients(7, 3, 5, 5, dtype=dtype)
    clean, _ = ops.perturb(x, grad, 0.5)
    x[1, 0, 0, 0] = -0.0
    grad[1] = 0
    grad[3, 2, 4, 4] = NAN
    grad[4, 0, 0, 0] = -INF
    grad[5, 0, 0, 0], grad[5, 1, 1, 1] = INF, NAN
    got, norm = ops.perturb(x, grad, 0.5)
    for i in (1, 3, 4, 5):
        assert torch.equal(got[i].view(torch.uint8), x[i].view(torch.uint8))  # to the bit
    for i in (0, 2, 6):
        assert torch.equal(got[i], clean[i])
    assert norm[1] == 0
    assert not torch.isfinite(norm[3:6]).any()


def test_tau_zero_is_the_identity() -> None:
    x = cases.images(4, 3, 8, 8) - 0.5
    grad = cases.gradients(4, 3, 8, 8)
    x[0, 0, 0, :2], grad[0, 0, 0, :2] = -0.0, torch.tensor([1.0, -1.0])  # -0.0 + 0.0 is 0.0
    got, _ = ops.perturb(x, grad, 0.0)
    assert torch.equal(got.view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("exponent", [-30, -20, -12, 0, 12, 20, 30])
def test_direction_does_not_depend_on_scale(exponent: int) -> None:
    """The scaled gradients are rounded to float32 themselves, which moves z by 1 eps; our own
    rounding adds 4."""
    x, grad = torch.zeros(9, 3, 16, 16), cases.gradients(9, 3, 16, 16)
    plain, _ = ops.perturb(x, grad, 1.0)
    scaled, _ = ops.perturb(x, grad * 10.0**exponent, 1.0)
    torch.testing.assert_close(scaled, plain, rtol=5 * cases.EPS[torch.float32], atol=0)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_smallest_and_largest_gradients(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    grad = torch.zeros(3, 50, dtype=dtype)
    grad[0, 7] = info.smallest_normal * info.eps  # the smallest subnormal
    grad[1, :4] = info.max
    grad[2, :2] = info.smallest_normal
    moved, norm = ops.perturb(torch.zeros_like(grad), grad, 1.0)
    expected = torch.zeros_like(grad)
    expected[0, 7], expected[1, :4], expected[2, :2] = 1.0, 0.5, 0.5**0.5
    torch.testing.assert_close(moved, expected, rtol=2 * info.eps, atol=0)
    assert norm[0] > 0


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_channels_last_is_the_same_work(dtype: torch.dtype) -> None:
    x, grad = cases.images(4, 3, 9, 5, dtype=dtype), cases.gradients(4, 3, 9, 5, dtype=dtype)
    last = torch.channels_last
    got, norm = ops.perturb(x.to(memory_format=last), grad.to(memory_format=last), 0.7)
    plain, plain_norm = ops.perturb(x, grad, 0.7)
    assert got.is_contiguous(memory_format=last)
    torch.testing.assert_close(norm, plain_norm, rtol=4e-7, atol=0)  # another order of summation
    torch.testing.assert_close(got, plain, rtol=cases.EPS[dtype], atol=cases.EPS[dtype])


LAYOUTS = {
    "transposed": lambda t: t.transpose(2, 3),
    "batch inside": lambda t: t.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
    "every second": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda t: torch.cat([t[:1], t])[1:],
    "flipped storage": lambda t: t.flip(0).contiguous().flip(0),
    "expanded": lambda t: t[:, :1].expand_as(t),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_any_layout(of_x: str, of_grad: str) -> None:
    x, grad = LAYOUTS[of_x](cases.images(4, 3, 6, 6)), LAYOUTS[of_grad](cases.gradients(4, 3, 6, 6))
    before = x.clone(), grad.clone()
    assert_close_to_oracle(x, grad, 0.9)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])
    assert ops.perturb(x, grad, 0.9)[0].stride() == torch.empty_like(x).stride()


def test_gradients_where_asked_for() -> None:
    x = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    tau = torch.rand(3, dtype=torch.float64, requires_grad=True)
    perturbed = lambda *a: ops.perturb(*a)[0]  # noqa: E731
    assert torch.autograd.gradcheck(perturbed, (x, grad, tau))
    assert torch.autograd.gradgradcheck(perturbed, (x, grad, tau))


def test_gradient_formula() -> None:
    """Identity in x, τ/‖g‖ (I - z zᵀ) in grad."""
    x = torch.rand(1, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    in_x, in_grad = torch.autograd.functional.jacobian(
        lambda x, g: ops.perturb(x, g, 0.3)[0], (x, grad)
    )
    z = (grad / grad.norm()).detach()[0]
    torch.testing.assert_close(in_x.view(5, 5), torch.eye(5).double())
    expected = 0.3 / grad.norm() * (torch.eye(5) - torch.outer(z, z))
    torch.testing.assert_close(in_grad.view(5, 5), expected.detach())


def test_gradient_of_an_unusable_example_is_finite() -> None:
    grad = torch.zeros(2, 3, requires_grad=True)
    x = torch.rand(2, 3, requires_grad=True)
    ops.perturb(x, grad, 1.0)[0].sum().backward()
    assert grad.grad is not None
    assert torch.equal(grad.grad, torch.zeros(2, 3))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(2, 3))


def test_costs_no_autograd_in_training() -> None:
    got, norm = ops.perturb(cases.images(2, 3), cases.gradients(2, 3), 1.0)
    assert got.grad_fn is None
    assert norm.grad_fn is None
    with torch.no_grad():
        x = cases.images(2, 3).requires_grad_()
        assert not ops.perturb(x, cases.gradients(2, 3), 1.0)[0].requires_grad


def test_same_bits_for_any_number_of_threads() -> None:
    x, grad = cases.images(64, 3, 32, 32), cases.gradients(64, 3, 32, 32)
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(ops.perturb(x, grad, 0.1)[0])
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_loss_rises_along_the_gradient() -> None:  # convex in x, so a first-order lower bound
    torch.manual_seed(0)
    x, target = torch.rand(64, 20, dtype=torch.float64), torch.randint(5, (64,))
    weights = torch.randn(20, 5, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(leaf @ weights, target, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    for tau in (1e-3, 0.1, 1.0):
        moved, norm = ops.perturb(x, grad, tau)
        after = torch.nn.functional.cross_entropy(moved @ weights, target, reduction="none")
        assert bool((after >= loss.detach() + tau * norm - 1e-12).all())
