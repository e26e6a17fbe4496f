"""InfoNCE against cross-entropy over all K + 1 logits in float64, at its edges, and what it costs."""

from __future__ import annotations

import math

import memory
import pytest
import torch
from contrastive_comparisons import TEMPERATURE, attention_info_nce, in_chunks
from info_nce_cases import by_cross_entropy, check, problem

from hrrl_ext.contrastive import info_nce
from hrrl_ext.contrastive import losses as module


@pytest.mark.parametrize("k", [0, 1, 7, 4096])
@pytest.mark.parametrize("inverse", [1.0, 14.0, -100.0])
def test_equal_logits_are_the_log_of_their_number(k: int, inverse: float) -> None:
    """All of 1/T, or of -1/T, where e^logit is 0 in float32."""
    query = torch.eye(1, 5).expand(3, 5).contiguous().requires_grad_()
    key = math.copysign(1, inverse) * query.detach()
    loss = info_nce(query, key, key[:1].expand(k, 5), temperature=1 / abs(inverse))
    # 1/T + log(K + 1) - 1/T: the last digits of 1/T.
    tolerance = 2**-23 * abs(inverse)
    torch.testing.assert_close(loss, torch.full((3,), math.log(k + 1)), rtol=1e-6, atol=tolerance)
    (grad,) = torch.autograd.grad(loss.sum(), query)
    assert (
        grad.abs() < 10 * tolerance * abs(inverse)
    ).all()  # Σ p_j n_j = k, before it is divided by T


def test_an_empty_queue_is_no_loss() -> None:
    query, key, queue = problem(5, 0, 3)
    loss = info_nce(query, key, queue, temperature=0.1)
    (grad,) = torch.autograd.grad(loss.sum(), query)
    assert (loss == 0).all() and (grad == 0).all()


@pytest.mark.parametrize(
    ("b", "k", "d"), [(1, 1, 1), (1, 7, 3), (5, 13, 7), (31, 64, 16), (7, 4097, 128)]
)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("at_once", [1, 40, 2**17])
def test_loss_and_gradient(
    b: int, k: int, d: int, temperature: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the queue is cut."""
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    if at_once == 1 and k > 100:
        k = 101  # a piece per key takes its time
    for dtype in (torch.float64, torch.float32):
        query, key, queue = problem(b, k, d, dtype)
        loss = info_nce(query, key, queue, temperature=temperature)
        weight = torch.linspace(0.5, 2, b, dtype=dtype)
        (grad,) = torch.autograd.grad(loss @ weight, query)
        check((query, key, queue), temperature, loss, grad, weight)


def test_agrees_with_cross_entropy_to_a_millionth() -> None:
    """At MoCo's temperature and a batch's size: of the largest loss and the largest gradient."""
    query, key, queue = problem(256, 4096, 128)
    loss = info_nce(query, key, queue, temperature=0.2)
    (grad,) = torch.autograd.grad(loss.sum(), query)
    for got, want in zip((loss, grad), by_cross_entropy(query, key, queue, 0.2), strict=True):
        assert (got.double() - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize(
    ("k", "count"), [(1, 64), (7, 1), (40, 64), (1000, 3), (1000, 64), (4096, 64)]
)
def test_attention_in_chunks_is_the_same(k: int, count: int) -> None:
    """The peer of the benchmarks, whatever its last chunk lacks: as near as eager's float32, some 1e-7 of
    the largest, however many chunks."""
    query, key, queue = problem(33, k, 16)
    chunks = in_chunks(queue, count)
    assert len(chunks) <= min(k, count)
    found = attention_info_nce(query, key, chunks)
    loss, grad = by_cross_entropy(query, key, queue, TEMPERATURE)
    for got, want in zip(found, (loss.mean(), grad / 33), strict=True):
        assert (got.double() - want).abs().max() <= 5e-7 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype: torch.dtype) -> None:
    query, key, queue = problem(9, 50, 16, dtype)
    wide = query.detach().float().requires_grad_()
    loss = info_nce(query, key, queue, temperature=0.1)
    expected = info_nce(wide, key.float(), queue.float(), temperature=0.1)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    grads = (torch.autograd.grad(x.sum(), y)[0] for x, y in ((loss, query), (expected, wide)))
    got, want = grads
    assert got.dtype == dtype and torch.equal(got, want.to(dtype))


def test_autocast_changes_no_bit() -> None:
    query, key, queue = problem(9, 50, 16)
    expected = info_nce(query, key, queue, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(query, key, queue, temperature=0.1), expected)


def test_keys_and_queue_have_no_gradient() -> None:
    query, key, queue = problem(3, 5, 4)
    key.requires_grad_()
    queue.requires_grad_()
    info_nce(query, key, queue, temperature=0.1).sum().backward()
    assert query.grad is not None and key.grad is None and queue.grad is None


@pytest.mark.parametrize("scale", [1e3, 1e18])
def test_logits_of_any_size(scale: float) -> None:
    """A positive that is far ahead costs nothing, one that is far behind its distance."""
    query = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    key, queue = torch.tensor([[scale, 0.0]] * 2), torch.zeros(3, 2)
    loss = info_nce(query, key, queue, temperature=1.0)
    torch.testing.assert_close(loss, torch.tensor([0.0, scale + math.log(3)]))
    (grad,) = torch.autograd.grad(loss.sum(), query)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0], [-scale, 0.0]]))


@pytest.mark.parametrize("ahead", [30.0, 87.0, 100.0, 1e4])
@pytest.mark.parametrize("length", [1.0, 1e18])
def test_a_late_negative_that_is_far_ahead(
    ahead: float, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what float32 has of the exponential of what the first piece is lessened by."""
    monkeypatch.setattr(module, "_AT_ONCE", 6)
    query, key, queue = problem(3, 11, 4)
    with torch.no_grad():
        queue[8] = query[1] * ahead / query[1].square().sum()
        query, key, queue = query / length, key * length, queue * length
    query.requires_grad_()
    loss = info_nce(query, key, queue, temperature=1.0)
    (grad,) = torch.autograd.grad(loss.sum(), query)
    expected, slope = by_cross_entropy(query, key, queue, 1.0)
    # Exponentials of differences up to 87, each to 24 bits of itself.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), slope, rtol=0, atol=1e-5 * slope.abs().max().item())


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    arguments = problem(5, 13, 4)
    compiled = torch.compile(lambda *rows: info_nce(*rows, temperature=0.1), fullgraph=True)
    found, expected = compiled(*arguments), info_nce(*arguments, temperature=0.1)
    torch.testing.assert_close(found, expected)
    got, want = (torch.autograd.grad(x.sum(), arguments[0])[0] for x in (found, expected))
    torch.testing.assert_close(got, want)


def test_what_is_no_number_shows() -> None:
    query, key, queue = problem(3, 5, 4)
    queue[2, 1] = math.nan
    loss = info_nce(query, key, queue, temperature=0.1)
    assert loss.isnan().all() and torch.autograd.grad(loss.sum(), query)[0].isnan().all()


def test_no_matrix_of_logits() -> None:
    """Beside its arguments: the gradient, as large as query twice (the sum, and what is handed back), and
    a piece of the logits; where eager has [256, 20000] several times."""
    query, key, queue = problem(256, 20_000, 8)

    def step() -> None:
        info_nce(query, key, queue, temperature=0.1).sum().backward()

    step()  # query.grad is there
    held = [query, key, queue, query.grad]
    arguments = sum(4 * t.numel() for t in held if t is not None)
    peak = memory.peak_bytes(step, [t for t in held if t is not None], None) - arguments
    assert 0 < peak < 4 * 2**17 + 4 * query.numel() * 4 < 4 * 256 * 20_000 / 10


def test_bad_input() -> None:
    query, key, queue = problem(3, 5, 4)
    with pytest.raises(ValueError, match=r"query and key must be \[B, D\] both, got \[3, 4\] and"):
        info_nce(query, key[:2], queue, temperature=0.1)
    with pytest.raises(ValueError, match=r"queue must be \[K, 4\], as wide as query, got \[5, 3\]"):
        info_nce(query, key, queue[:, :3], temperature=0.1)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            info_nce(query, key, queue, temperature=temperature)
