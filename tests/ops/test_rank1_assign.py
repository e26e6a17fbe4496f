"""rank1_assign against stored gradients: its plain twin, autograd's own, and both of its routes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn

from hrrl_ext import _products
from hrrl_ext.ops import (
    Convolution,
    LayerGradient,
    Rank1Centre,
    centre_products,
    rank1_assign,
    rank1_products,
    reference,
)

module = importlib.import_module("hrrl_ext.ops.rank1_assign")  # the function has its name


def layer(
    batch: int, *shape: int, conv: Convolution | None = None, bias: bool = False, seed: int = 0
) -> LayerGradient:
    """shape: (J, O), or (channels, channels out, H, W) with conv."""
    g = cases.generator(seed)
    inputs, outputs, *pixels = shape
    act = torch.randn(batch, inputs, *pixels, generator=g, dtype=torch.float64)
    out: Sequence[int] = ()
    if conv is not None:
        kernel = torch.zeros(outputs, inputs // conv.groups, *conv.kernel, dtype=torch.float64)
        out = (
            conv(act[:1], kernel).shape[2:]
            if batch
            else conv(act.new_zeros(1, inputs, *pixels), kernel).shape[2:]
        )
    dout = torch.randn(batch, outputs, *out, generator=g, dtype=torch.float64)
    return LayerGradient(act, dout, conv, bias)


def centres(gradients: Sequence[LayerGradient], clusters: int, rank: int = 1) -> list[Rank1Centre]:
    g = cases.generator(7)
    made = []
    for groups, outputs, inputs in (gradient.shape for gradient in gradients):
        shape = groups, clusters, rank
        made.append(
            Rank1Centre(
                torch.randn(*shape, inputs, generator=g, dtype=torch.float64),
                torch.randn(*shape, outputs, generator=g, dtype=torch.float64),
            )
        )
    return made


def to(items: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [
        item._replace(
            **{k: v.to(dtype) for k, v in item._asdict().items() if isinstance(v, Tensor)}
        )
        for item in items
    ]


SAME = Convolution((3, 3), padding=(1, 1))
LAYERS = {
    "linear": layer(7, 5, 3),
    "linear with bias": layer(7, 5, 3, bias=True),
    "one input": layer(7, 1, 1, bias=True),
    "3x3": layer(7, 3, 5, 6, 7, conv=SAME, bias=True),
    "stride": layer(7, 3, 4, 9, 8, conv=Convolution((3, 2), (2, 3), (2, 1)), bias=True),
    "stride that leaves pixels": layer(7, 2, 3, 8, 8, conv=Convolution((3, 3), (2, 2))),
    "dilation": layer(7, 2, 3, 9, 8, conv=Convolution((3, 2), dilation=(2, 3), padding=(1, 2))),
    "groups": layer(7, 4, 6, 5, 5, conv=SAME._replace(groups=2), bias=True),
    "depthwise": layer(7, 4, 4, 5, 5, conv=SAME._replace(groups=4)),
    "pointwise": layer(7, 3, 2, 5, 5, conv=Convolution((1, 1), (2, 2)), bias=True),
    "whole image": layer(7, 2, 3, 4, 4, conv=Convolution((4, 4)), bias=True),
}
WEIGHT = torch.tensor([3.0, 1.0, 40.0, 2.0])


@pytest.fixture(params=["chosen", "by gradients", "by positions"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "chosen":
        monkeypatch.setattr(module, "_by_gradients", lambda *_: request.param == "by gradients")
    return str(request.param)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", [*LAYERS, "all"])
def test_is_the_twin(name: str, rank: int) -> None:
    """To rounding of float64; the twin subtracts stored gradients of unfolded patches."""
    gradients = list(LAYERS.values()) if name == "all" else [LAYERS[name]]
    at = centres(gradients, 4, rank)
    distance = rank1_products(gradients, at).distance()
    for k in range(4):
        one = [Rank1Centre(c[:, k : k + 1], d[:, k : k + 1]) for c, d in at]
        alone = reference.rank1_assign(gradients, one, WEIGHT[:1]).distance
        torch.testing.assert_close(distance[:, k], alone, rtol=1e-12, atol=1e-12)
    got, expected = (
        rank1_assign(gradients, at, WEIGHT),
        reference.rank1_assign(gradients, at, WEIGHT),
    )
    assert torch.equal(got.assignment, expected.assignment)
    torch.testing.assert_close(got.distance, expected.distance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.gap, expected.gap, rtol=1e-9, atol=1e-12)
    square = sum((g.materialize() ** 2).flatten(1).sum(1) for g in gradients)
    torch.testing.assert_close(rank1_products(gradients, at).square, square, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Products in float32 of the numbers as they are: no loss beyond float32's from half precision.

    A distance is a difference of terms of 100 products each: 100 eps of their size.
    """
    gradients = to(list(LAYERS.values()), dtype)
    at = to(centres(gradients, 4), torch.float32)
    got = rank1_assign(gradients, at, WEIGHT)
    exact = reference.rank1_assign(to(gradients, torch.float64), to(at, torch.float64), WEIGHT)
    assert torch.equal(got.assignment, exact.assignment)
    size = exact.distance.max().item()
    torch.testing.assert_close(got.distance, exact.distance, rtol=0, atol=100 * 1.2e-7 * size)


@pytest.mark.usefixtures("route")
def test_layouts() -> None:
    gradients = [LAYERS["3x3"], LAYERS["groups"]]
    at = centres(gradients, 4)
    strange = [
        g._replace(
            act=g.act.to(memory_format=torch.channels_last),
            dout=g.dout.repeat_interleave(2, 0)[::2].transpose(2, 3).contiguous().transpose(2, 3),
        )
        for g in gradients
    ]
    got, expected = rank1_assign(strange, at, WEIGHT), rank1_assign(gradients, at, WEIGHT)
    torch.testing.assert_close(got.distance, expected.distance, rtol=1e-12, atol=0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1, groups=1)
        self.grouped = nn.Conv2d(4, 6, 2, dilation=2, groups=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.grouped(torch.tanh(self.conv(x)))).flatten(1))


def test_gradients_are_those_of_autograd() -> None:
    """Factors by hooks here, gradients by vmap of autograd: nothing in common but the model."""
    torch.manual_seed(0)
    model = Net().double()
    x, target = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(5, (6,))

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(model, p, (x[None],))
        return nn.functional.cross_entropy(out, y[None])

    parameters = {k: v.detach() for k, v in model.named_parameters()}
    stored = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, target)
    acts: dict[str, Tensor] = {}
    outs: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        acts[name], outs[name] = given[0], out

    for name, part in model.named_children():
        part.register_forward_hook(partial(keep, name))
    total = nn.functional.cross_entropy(model(x), target, reduction="sum")
    douts = dict(zip(outs, torch.autograd.grad(total, list(outs.values())), strict=True))
    for name, part in model.named_children():
        conv = None
        if isinstance(part, nn.Conv2d):
            conv = Convolution(
                part.kernel_size, part.stride, part.padding, part.dilation, part.groups
            )
        formed = LayerGradient(acts[name].detach(), douts[name], conv, True).materialize()
        weight, bias = stored[f"{name}.weight"], stored[f"{name}.bias"]
        expected = torch.cat([weight.reshape(6, -1, weight[0, 0].numel()), bias[:, :, None]], 2)
        torch.testing.assert_close(formed.flatten(1, 2), expected, rtol=1e-10, atol=1e-14)


def test_layers_add_up_in_any_order() -> None:
    gradients = [LAYERS["linear with bias"], LAYERS["3x3"], LAYERS["groups"]]
    at = centres(gradients, 1)
    one = torch.ones(1)
    whole = rank1_assign(gradients, at, one).distance
    parts = sum(rank1_assign([g], [c], one).distance for g, c in zip(gradients, at, strict=True))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    back = rank1_assign(gradients[::-1], at[::-1], one).distance
    torch.testing.assert_close(whole, back, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_centres_that_are_the_gradients(dtype: torch.dtype) -> None:
    """As many centres as distinct gradients: each finds its own, at a distance of rounding."""
    (gradient,) = to([LAYERS["linear with bias"]], dtype)
    at = Rank1Centre(
        nn.functional.pad(gradient.act, (0, 1), value=1.0)[None, :, None],
        gradient.dout[None, :, None],
    )
    again = gradient._replace(act=gradient.act.repeat(3, 1), dout=gradient.dout.repeat(3, 1))
    got = rank1_assign([again], [at], torch.full((7,), 2.0))
    assert got.assignment.tolist() == [*range(7)] * 3
    eps, products = torch.finfo(dtype).eps, rank1_products([again], [at])
    assert (got.distance <= 20 * eps * products.square).all()
    assert (got.gap > 0.01).all()
    zero = products.distance(rtol=20 * eps) == 0
    assert torch.equal(zero, torch.eye(7, dtype=torch.bool).repeat(3, 1))


def test_the_weight_decides() -> None:
    """‖g‖² does not cancel when clusters weigh differently: the nearest centre need not win."""
    act, dout = torch.ones(1, 1), torch.ones(1, 1)
    at = Rank1Centre(torch.tensor([2.0, 4.0]).view(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
    for weight, expected in [([1, 1], 0), ([8, 1], 0), ([10, 1], 1)]:  # distances 1 and 9
        got = rank1_assign([LayerGradient(act, dout)], [at], torch.tensor(weight).double())
        assert got.assignment.item() == expected
        assert got.distance.item() == (1.0, 9.0)[expected]


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales(scale: float) -> None:
    """Relative throughout: gradients 24 orders of magnitude apart are assigned alike."""
    gradients = to([LAYERS["linear with bias"], LAYERS["3x3"]], torch.float32)
    at = to(centres(gradients, 4), torch.float32)
    expected = rank1_assign(gradients, at, WEIGHT)
    scaled = rank1_assign(
        [g._replace(dout=g.dout * scale) for g in gradients],
        [c._replace(centre_out=c.centre_out * scale) for c in at],
        WEIGHT,
    )
    assert torch.equal(scaled.assignment, expected.assignment)
    torch.testing.assert_close(scaled.distance / scale**2, expected.distance, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("route")
def test_does_not_depend_on_the_batch() -> None:
    """Nor on how much is in work at a time."""
    gradients = list(LAYERS.values())
    at = centres(gradients, 4)
    whole = rank1_assign(gradients, at, WEIGHT)
    for i in range(7):
        alone = rank1_assign([g.part(slice(i, i + 1)) for g in gradients], at, WEIGHT)
        assert alone.assignment[0] == whole.assignment[i]
        torch.testing.assert_close(alone.distance[0], whole.distance[i], rtol=1e-12, atol=0)


def test_chunks(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    gradients = list(LAYERS.values())
    at = centres(gradients, 4, 2)
    expected = rank1_assign(gradients, at, WEIGHT)
    for size in (1, 200):  # an example and a centre at a time; several of some layers
        monkeypatch.setitem(module._CHUNK, "cpu", size)
        got = rank1_assign(gradients, at, WEIGHT)
        torch.testing.assert_close(got.distance, expected.distance, rtol=1e-12, atol=0)


def test_known_squares() -> None:
    gradients = list(LAYERS.values())
    at = centres(gradients, 4)
    expected = rank1_assign(gradients, at, WEIGHT)
    known = rank1_products(gradients, centres(gradients, 3)).square
    got = rank1_assign(gradients, at, WEIGHT, square=known)
    torch.testing.assert_close(got.distance, expected.distance, rtol=1e-12, atol=0)
    assert rank1_assign(gradients, at, WEIGHT, square=0 * known).distance.ne(got.distance).all()


@pytest.mark.parametrize("onednn", [True, False])
def test_large_products(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    """By oneDNN and by the BLAS: each to the rounding of float32, 2e-6 of sums of 4,096 products."""
    there = onednn and _products._onednn_answers()
    monkeypatch.setattr(_products, "_onednn_is_faster", lambda contiguous: there)
    (gradient,) = to([layer(8, 4096, 1024, bias=True)], torch.float32)
    exact, at = to([gradient], torch.float64), centres([gradient], 131)
    got, expected = rank1_products([gradient], at), rank1_products(exact, at)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6 * other.abs().max().item())


@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_no_example(name: str) -> None:
    empty = [LAYERS[name].part(slice(0, 0))]
    got = rank1_assign(empty, centres(empty, 4), WEIGHT)
    assert [t.shape for t in got] == [(0,)] * 3


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["act", "dout"])
def test_a_gradient_that_is_not_finite(factor: str, bad: float) -> None:
    """Is marked, and no other example is touched."""
    gradients = [LAYERS["linear with bias"], LAYERS["3x3"]]
    at = centres(gradients, 4)
    expected = rank1_assign(gradients, at, WEIGHT)
    spoilt = getattr(gradients[1], factor).clone()
    spoilt[3, 0, 2, 2] = bad
    got = rank1_assign([gradients[0], gradients[1]._replace(**{factor: spoilt})], at, WEIGHT)
    assert got.assignment[3] == -1
    assert got.distance[3].isnan()
    others = [i for i in range(7) if i != 3]
    assert torch.equal(got.assignment[others], expected.assignment[others])
    torch.testing.assert_close(got.distance[others], expected.distance[others], rtol=1e-12, atol=0)


def test_zero_gradients() -> None:
    gradient = LAYERS["3x3"]._replace(dout=torch.zeros_like(LAYERS["3x3"].dout))
    at = centres([gradient], 4)
    got = rank1_assign([gradient], at, torch.ones(4))
    products = centre_products(at).diagonal()
    assert got.assignment.tolist() == [int(products.argmin())] * 7
    torch.testing.assert_close(got.distance, products.min().expand(7), rtol=1e-12, atol=0)


def test_centre_products() -> None:
    gradients = list(LAYERS.values())
    for rank in (1, 2):
        at = centres(gradients, 4, rank)
        whole = [torch.einsum("gkro,gkrj->kgoj", d, c).flatten(1) for c, d in at]
        expected = sum(c @ c.T for c in whole)
        torch.testing.assert_close(centre_products(at), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, c, w: ([], [], w), "at least one"),
        (lambda g, c, w: (g, c[:1], w), "as many centres as gradients"),
        (lambda g, c, w: (g, c, w[:3]), r"weight must be \[4\]"),
        (lambda g, c, w: (g, [c[0], c[0]], w), r"centre_in \[1, 4, R, 28\]"),
        (lambda g, c, w: (g, c, w[None]), r"weight must be \[4\]"),
        (lambda g, c, w: (g, [Rank1Centre(a[:, :0], b[:, :0]) for a, b in c], w[:0]), "K >= 1"),
        (lambda g, c, w: ([g[0], g[1].part(slice(0, 3))], c, w), "the same 7 examples"),
        (lambda g, c, w: ([g[0]._replace(bias=False), g[1]], c, w), "5 inputs"),
    ],
)
def test_refusals(change: Any, message: str) -> None:
    gradients = [LAYERS["linear with bias"], LAYERS["3x3"]]
    with pytest.raises(ValueError, match=message):
        rank1_assign(*change(gradients, centres(gradients, 4), WEIGHT))
