"""Inner products by either way, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrrl_ext import _products
from hrrl_ext._products import inner_products
from hrrl_ext.contrastive import info_nce
from hrrl_ext.retrieval import sum_hinge

needs_onednn = pytest.mark.skipif(
    not _products._onednn_answers(), reason="this torch has no oneDNN to call"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What oneDNN was asked for, as on the machines that it is faster on."""
    asked: list[Tensor] = []
    of_onednn = _products._of_onednn

    def asks(x: Tensor, y: Tensor, constant: Tensor | None) -> Tensor:
        asked.append(x)
        return of_onednn(x, y, constant)

    monkeypatch.setattr(_products, "_onednn_is_faster", lambda contiguous: True)
    monkeypatch.setattr(_products, "_of_onednn", asks)
    return asked


def factors(n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g, dtype=dtype), torch.randn(m, d, generator=g, dtype=dtype)


@needs_onednn
@pytest.mark.parametrize("turned", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("shape", [(257, 131, 127), (512, 64, 128), (1, 2**11, 2**11)], ids=str)
def test_onednn_agrees_with_float64(
    calls: list[Tensor], shape: tuple[int, int, int], turned: tuple[int, ...]
) -> None:
    pair = [t.T.contiguous().T if i in turned else t for i, t in enumerate(factors(*shape))]
    x, y = pair
    constant = y[:, 0].contiguous()
    out = inner_products(x, y, constant)
    assert len(calls) == 1 and out.is_contiguous()
    exact = x.double() @ y.double().T + constant
    # A sum of D products errs by at most D u Σ|x_k y_k|, in any order; about √D u of it by chance.
    bound = math.sqrt(shape[2]) * 2**-23 * (x.abs().double() @ y.abs().double().T + constant.abs())
    assert ((out - exact).abs() <= bound).all()
    assert torch.equal(out, inner_products(x, y, constant)), "the same bits each time"


@needs_onednn
def test_what_is_no_number_stays_in_its_row(calls: list[Tensor]) -> None:
    x, y = factors(512, 64, 128)
    x[3, 5], x[7, 0] = torch.nan, torch.inf
    out = inner_products(x, y)
    assert calls and out[3].isnan().all() and not out[7].isfinite().any()
    assert out.isfinite().all(1).sum() == 510


@pytest.mark.parametrize(
    ("n", "m", "d"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (64, 64, 64)]
)
def test_few_products_are_torchs(calls: list[Tensor], n: int, m: int, d: int) -> None:
    x, y = factors(n, m, d)
    assert torch.equal(inner_products(x, y), x @ y.T) and not calls


def test_other_dtypes_and_gradients_are_torchs(calls: list[Tensor]) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x, y = factors(512, 64, 128, dtype)
        assert torch.equal(inner_products(x, y), x @ y.T)
    x, y = factors(512, 64, 128)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(inner_products(x, y).sum(), x)
    torch.testing.assert_close(grad, y.sum(0).expand_as(x))
    assert not calls


@needs_onednn
@pytest.mark.parametrize(
    ("cpu", "faster"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", [True, True]),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", [True, False]),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\n", [False, False]),
    ],
    ids=["Zen 5", "Zen 4", "Intel"],
)
def test_processors(monkeypatch: pytest.MonkeyPatch, cpu: str, faster: list[bool]) -> None:
    """Of a first factor that is contiguous, and of one that is not."""
    monkeypatch.setattr(_products.Path, "read_text", lambda _: cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    found = [_products._onednn_is_faster.__wrapped__(layout) for layout in (True, False)]
    assert found == [wanted and torch.backends.mkl.is_available() for wanted in faster]


@pytest.mark.parametrize("missing", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_it_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, missing: type[Exception]
) -> None:
    def refuses(x: Tensor, y: Tensor, constant: Tensor | None) -> Tensor:
        raise missing("no such operator")

    monkeypatch.setattr(_products, "_of_onednn", refuses)
    assert not _products._onednn_answers()


@needs_onednn
@pytest.mark.parametrize("there", [True, False], ids=["oneDNN", "none"])
def test_losses_are_the_same_without_it(
    calls: list[Tensor], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Products large enough for it, of what asks for them: by either way float64's, to the rounding of
    float32. Where the operator is gone the machine's answer is torch's product, and nothing is raised."""
    if not there:
        monkeypatch.undo()
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
        fresh = _products._onednn_is_faster.__wrapped__  # not what was found for this machine
        monkeypatch.setattr(_products, "_onednn_is_faster", fresh)
    query, queue = (F.normalize(t) for t in factors(64, 1500, 64))
    key = F.normalize(query + 0.1 * queue[:64])
    assert _products._large(query, queue, None)
    found = [loss(query, key, queue) for loss in (by_queue, by_pairs)]
    exact = [loss(query.double(), key.double(), queue.double()) for loss in (by_queue, by_pairs)]
    for got, want in zip(found, exact, strict=True):
        for one, other in zip(got, want, strict=True):
            # Sums of 512 products, of which a pair's own is as large as all others together
            bound = 2e-6 * other.abs().max().item()
            torch.testing.assert_close(one.double(), other, rtol=0, atol=bound)
    plain = torch.equal(inner_products(query, queue), F.linear(query, queue))
    assert plain if not there else calls


def by_queue(query: Tensor, key: Tensor, queue: Tensor) -> list[Tensor]:
    query = query.clone().requires_grad_()
    loss = info_nce(query, key, queue, temperature=0.2)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), query)]


def by_pairs(query: Tensor, key: Tensor, queue: Tensor) -> list[Tensor]:
    pairs = [rows.clone().requires_grad_() for rows in (queue[:512], queue[512:1024])]
    loss = sum_hinge(*pairs)
    return [loss.detach(), *torch.autograd.grad(loss, pairs)]
