"""The factors of per-example gradients, from any model, which is as before afterwards."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrrl_ext.clustering import GradientClustering, MeanGradient
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
    with pytest.raises(ValueError, match="'block': what it read was changed in place"):
        layer_gradients(net, find_layers(net), x, target, cross_entropy)


class Tied(nn.Module):
    """Layers that share a weight, and ones that are called twice, at other strides and sizes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, (3, 1), groups=2, padding=1)
        self.again = nn.Conv2d(4, 4, (3, 1), groups=2, stride=2, padding=(0, 1))
        self.again.weight, self.again.bias = self.grouped.weight, self.grouped.bias
        self.line = nn.Conv1d(4, 4, 3, dilation=2)
        self.inner = nn.Linear(4, 4, bias=kind != "no bias")
        self.outer = nn.Linear(4, 4, bias=kind != "no bias")
        self.outer.weight, self.outer.bias = self.inner.weight, self.inner.bias
        self.spare = nn.Conv2d(2, 6, 3, groups=2)
        self.head = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        self.inner(x[:, :, 0, :4])  # called, and without any part in the loss
        x = self.again(torch.tanh(self.grouped(x)))  # [B, 4, 4, 6]
        x = self.line(torch.tanh(self.line(x.flatten(2)))).mean(2)
        return self.head(self.outer(torch.tanh(self.inner(x))))


@pytest.mark.parametrize("kind", ["bias", "no bias"])
def test_layers_that_share_a_weight_or_are_called_twice(kind: str) -> None:
    """One gradient, their sum, as autograd has it; of what is not called it is 0."""
    torch.manual_seed(0)
    net, (x, target) = Tied(kind).eval(), batch()
    layers = find_layers(net)
    assert list(layers) == ["conv", "grouped", "line", "inner", "spare", "head"]
    assert set(parameter_names(layers)) == {name for name, _ in net.named_parameters()}
    gradients = layer_gradients(net, layers, x, target, cross_entropy)
    for i in range(5):
        net.zero_grad()
        cross_entropy(net(x[i : i + 1]), target[i : i + 1]).sum().backward()
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
            formed = gradient.materialize()[i].flatten(0, 1)
            expected = torch.zeros_like(formed)
            if layer.weight.grad is not None:
                expected = layer.weight.grad.flatten(1)
                if layer.bias is not None:
                    expected = torch.cat([expected, layer.bias.grad[:, None]], 1)
            torch.testing.assert_close(
                formed, expected, rtol=1e-4, atol=1e-6, msg=partial("{}: {}".format, name)
            )


def test_one_of_the_layers_that_share_a_weight() -> None:
    net = Tied("bias")
    assert list(find_layers(net, ["outer", "head", "inner"])) == ["inner", "head"]


def test_clusters_of_shared_weights() -> None:
    """All the way: rounds fall, and the parameters are those that the variance is measured of."""
    torch.manual_seed(0)
    net, (x, target) = Tied("bias"), batch()
    clustering = GradientClustering(net, 2, batch_size=2).fit((x, target), rounds=3)
    assert clustering.history[-1]["objective"] <= clustering.history[0]["objective"]
    full = MeanGradient(net, (x, target), parameters=clustering.parameters).full(5)
    square = sum(
        g.materialize().mean(0).square().sum().item()
        for g in layer_gradients(net.eval(), clustering.layers, x, target, cross_entropy)
    )
    assert full.square().sum().item() == pytest.approx(square, rel=1e-4)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x.flatten(2).transpose(1, 2))
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_attention_is_left_out_and_said() -> None:
    net = Attention().eval()
    with pytest.warns(
        UserWarning, match=r"of attention.out_proj \(MultiheadAttention takes its weight"
    ):
        layers = find_layers(net)
    assert list(layers) == ["inside", "head"]
    assert len(layer_gradients(net, layers, *batch(), cross_entropy)) == 2
    with pytest.raises(
        ValueError, match=r"'attention\.out_proj': MultiheadAttention takes its weight"
    ):
        find_layers(net, ["attention.out_proj"])


def test_a_transformer_keeps_its_layers() -> None:
    """torch's fast path, which calls none of them, is not taken."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Flatten(2), nn.Linear(42, 8), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(16, 7)).eval()  # fmt: skip
    with pytest.warns(UserWarning, match=r"2\.layers\.0\.self_attn\.out_proj .* do not count"):
        layers = find_layers(net)
    gradients = layer_gradients(net, layers, *batch(), cross_entropy)
    assert all(g.dout.abs().sum() > 0 for g in gradients)


def head_of(net: nn.Module) -> nn.Linear:
    assert isinstance(net.head, nn.Linear)
    return net.head


def shares_with_an_embedding(net: nn.Module) -> None:
    net.table = nn.Embedding(7, 54)
    net.table.weight = head_of(net).weight


def has_a_bias_of_its_own(net: nn.Module) -> None:
    net.other = nn.Linear(54, 7)
    net.other.weight = head_of(net).weight


def is_parametrised(net: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(net.head)


@pytest.mark.parametrize(
    "change", [shares_with_an_embedding, has_a_bias_of_its_own, is_parametrised]
)
def test_factors_that_do_not_give_the_gradient(change: Callable[[nn.Module], None]) -> None:
    net = model()
    change(net)
    with pytest.warns(UserWarning, match=r"the gradients of head \("):
        assert list(find_layers(net)) == ["conv", "block", "rows", "line"]
    with pytest.raises(ValueError, match=r"'head': it.* leave it out of layers"):
        find_layers(net, ["head"])


def test_a_weight_that_is_taken_from_its_layer() -> None:
    """As attention of one's own may: the layer is not called, and yet it is no spare one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(84, 9), nn.Linear(9, 7))
    net.forward = lambda x: torch.nn.functional.linear(net[1](net[0](x)), net[2].weight)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="'2': the model takes its weight and does not call it"):
        layer_gradients(net, find_layers(net), *batch(), cross_entropy)


def test_without_any_part() -> None:
    net = model()
    net.spare = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="none of them has a part in the loss"):
        layer_gradients(net, find_layers(net, ["spare"]), *batch(), cross_entropy)


def test_the_batch_is_not_the_first_dimension() -> None:
    net = nn.Sequential(nn.Flatten(0, 2), nn.Linear(6, 7), nn.Unflatten(0, (5, -1)), nn.Flatten(1))
    with pytest.raises(ValueError, match=r"'1': it reads \[70, 6\]"):
        layer_gradients(net, find_layers(net), *batch(), cross_entropy)


class Windows(nn.Module):
    """As Swin's: a layer within windows, each a row of it (timm), one whose weight alone is taken
    (torchvision), and one whose input is added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.within, self.taken, self.mlp, self.fc = (
            nn.Linear(n, m) for n, m in ((6, 6), (6, 6), (6, 6), (6, 6), (6, 7))
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(len(x), -1, 6))  # [B, 14, 6]
        windows = self.within(tokens.view(-1, 7, 6)).view_as(tokens)  # [2 B, 7, 6]
        windows = nn.functional.linear(windows, self.taken.weight)
        read = windows.clone()
        windows = self.mlp(read)
        read += 1
        return self.fc((windows + tokens).mean(1))


def test_layers_without_gradients_of_examples_are_left_out() -> None:
    torch.manual_seed(0)
    net, data = Windows(), batch()
    clustering = GradientClustering(net, 2)
    with pytest.warns(UserWarning, match="do not count") as told:
        clustering.fit(data, rounds=1).fit(data, rounds=1)
    (message,) = [str(w.message) for w in told]  # once
    assert re.fullmatch(
        r"layers: the gradients of within \(it reads \[6, 7, 6\], whose first dimension is not that of "
        r"the 3 examples\), mlp \(.* in place afterwards.*\), taken \(the model takes its weight and does "
        r"not call it\) do not count",
        message,
    )
    names = [f"{layer}.{p}" for layer in ("embed", "fc") for p in ("weight", "bias")]
    assert clustering.parameters == names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = GradientClustering(net, 2, layers=["embed", "fc"]).fit(data, rounds=2)
        again = GradientClustering(net, 2)
        again.load_state_dict(clustering.state_dict())
        again.fit(data, rounds=0)
    assert torch.equal(named.assignment, clustering.assignment)
    assert torch.equal(named.distance, clustering.distance)
    assert again.parameters == names
    with pytest.raises(ValueError, match=r"'within': it reads .* leave it out of layers"):
        GradientClustering(net, 2, layers=["within"]).fit(data)


def test_no_layer_is_left() -> None:
    net = nn.Sequential(nn.Flatten(0, 2), nn.Linear(6, 7), nn.Unflatten(0, (5, -1)), nn.Flatten(1))
    net[2] = nn.Unflatten(0, (-1, 14))
    with pytest.raises(
        ValueError,
        match=r"none of Sequential gives the gradients of single examples, such as 1: it",
    ):
        GradientClustering(net, 2).fit(batch())


def test_examples_that_depend_on_each_other() -> None:
    net = model()
    check_independence(net)
    net.norm.train()
    with pytest.raises(ValueError, match="norm normalises by the statistics of the batch"):
        check_independence(net)
    with pytest.raises(ValueError, match="statistics of the batch"):
        check_independence(nn.BatchNorm1d(3, track_running_stats=False).eval())
