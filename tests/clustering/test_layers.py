"""The factors of per-example gradients, from any model, which is as before afterwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrrl_ext.clustering.examples import cross_entropy
from hrrl_ext.clustering.layers import (
    check_independence,
    find_layers,
    layer_gradients,
    parameter_names,
)


class Residual(nn.Module):
    """In-place activations, a residual sum, and a tensor with more than one position per row."""

    def __init__(self, add_in_place: bool = False) -> None:
        super().__init__()
        self.add_in_place = add_in_place
        self.conv = nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular")
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.rows = nn.Linear(6, 5)
        self.line = nn.Conv1d(4, 3, 2, stride=2, padding=1)
        self.head = nn.Linear(3 * 18, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        y = self.block(x)
        if self.add_in_place:
            x += y
        else:
            x = x + y
        x = torch.tanh(self.rows(x))  # [B, 4, 7, 5]
        return self.head(self.line(x.flatten(2)).flatten(1))


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(5, 2, 7, 6, generator=g), torch.randint(7, (5,), generator=g)


def model(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return Residual(**settings).eval()


def test_gradients_of_a_model() -> None:
    """Against autograd, an example at a time; float32 sums of some 100 products."""
    net, (x, target) = model(), batch()
    layers = find_layers(net)
    assert list(layers) == ["conv", "block", "rows", "line", "head"]
    gradients = layer_gradients(net, layers, x, target, cross_entropy)
    for i in range(5):
        net.zero_grad()
        cross_entropy(net(x[i : i + 1]), target[i : i + 1]).sum().backward()
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
            formed = gradient.materialize()[i].flatten(0, 1)
            assert layer.weight.grad is not None
            expected = layer.weight.grad.flatten(1)
            if layer.bias is not None:
                expected = torch.cat([expected, layer.bias.grad[:, None]], 1)
            torch.testing.assert_close(
                formed, expected, rtol=1e-4, atol=1e-6, msg=partial("{}: {}".format, name)
            )


def test_the_model_is_as_before() -> None:
    net, (x, target) = model(), batch()
    x.requires_grad_()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    random = torch.get_rng_state()
    layer_gradients(net, find_layers(net), x, target, cross_entropy)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [p.grad is not None for p in net.parameters()].count(True) == 1
    assert net.head.weight.grad.unique().tolist() == [1.0]
    assert x.grad is None
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(ValueError, match="one loss per example"):
        layer_gradients(net, find_layers(net), x, target, lambda a, b: cross_entropy(a, b).mean())
    assert not any(m._forward_hooks for m in net.modules())


def test_no_gradient_of_a_parameter_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph reaches the outputs of the first layer and no parameter."""
    net, (x, target) = model(), batch()
    seen: list[int] = []
    real = torch.autograd.grad

    def counted(outputs: Tensor, inputs: list[Tensor], **options: Any) -> Any:
        seen.append(len(inputs))
        leaves, todo = set(), [outputs.grad_fn]
        while todo:
            node = todo.pop()
            if node is None:
                continue
            if hasattr(node, "variable"):
                leaves.add(id(node.variable))
            todo += [n for n, _ in node.next_functions]
        assert leaves == {id(t) for t in inputs}
        return real(outputs, inputs, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    layer_gradients(net, find_layers(net), x, target, cross_entropy)
    assert seen == [1]


def test_some_layers() -> None:
    net, (x, target) = model(), batch()
    layers = find_layers(net, ["head", "block"])
    assert parameter_names(layers) == ["head.weight", "head.bias", "block.weight"]
    every = find_layers(net)
    all_of_them = dict(
        zip(every, layer_gradients(net, every, x, target, cross_entropy), strict=True)
    )
    some = layer_gradients(net, layers, x, target, cross_entropy)
    for name, gradient in zip(layers, some, strict=True):
        torch.testing.assert_close(gradient.act, all_of_them[name].act)
        torch.testing.assert_close(gradient.dout, all_of_them[name].dout)


def test_frozen_layers_do_not_count() -> None:
    net = model()
    net.conv.requires_grad_(False)
    assert "conv" not in find_layers(net)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["heads"], "'heads' is not known; did you mean 'head'"),
        (["norm"], "'norm' is a BatchNorm2d"),
        ([], "no layer was named"),
    ],
)
def test_unknown_layers(layers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_layers(model(), layers)


def test_a_model_without_layers() -> None:
    with pytest.raises(ValueError, match=r"has no nn\.Linear"):
        find_layers(nn.Sequential(nn.Flatten(), nn.LayerNorm(84)))


def test_changed_in_place() -> None:
    net, (x, target) = model(add_in_place=True), batch()
    with pytest.raises(ValueError, match="'block' read was changed in place"):
        layer_gradients(net, find_layers(net), x, target, cross_entropy)


def test_used_twice() -> None:
    shared = nn.Linear(84, 84)
    net = nn.Sequential(nn.Flatten(), shared, nn.Tanh(), shared)
    with pytest.raises(ValueError, match="called more than once"):
        layer_gradients(net, find_layers(net), *batch(), cross_entropy)


def test_not_used() -> None:
    net = model()
    net.spare = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="'spare' has no part in the loss"):
        layer_gradients(net, find_layers(net), *batch(), cross_entropy)


def test_the_batch_is_not_the_first_dimension() -> None:
    net = nn.Sequential(nn.Flatten(0, 2), nn.Linear(6, 7), nn.Unflatten(0, (5, -1)), nn.Flatten(1))
    with pytest.raises(ValueError, match=r"'1' reads \[70, 6\]"):
        layer_gradients(net, find_layers(net), *batch(), cross_entropy)


def test_examples_that_depend_on_each_other() -> None:
    net = model()
    check_independence(net)
    net.norm.train()
    with pytest.raises(ValueError, match="norm normalises by the statistics of the batch"):
        check_independence(net)
    with pytest.raises(ValueError, match="statistics of the batch"):
        check_independence(nn.BatchNorm1d(3, track_running_stats=False).eval())
