"""ExamplePerturbation: the right direction, and a model that is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext.robust import ExamplePerturbation


def network(**batch_norm: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, **batch_norm),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(6 * 36, 4),
    ).double()


def batch(size: int = 7) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(size, 3, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(4, (size,), generator=g)


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("training", [True, False])
def test_moves_along_the_normalised_input_gradient(training: bool, statistics: str) -> None:
    """Against one autograd.grad per example with the statistics in question written out by hand."""
    model, (x, target) = network().train(training), batch()
    moved = ExamplePerturbation(0.2, batch_norm=statistics)(model, x, target)
    oracle = network()
    norm = oracle[1]
    norm.train(training and statistics == "batch")
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(oracle(leaf), target, reduction="mean")  # its scale must not matter
    (grad,) = torch.autograd.grad(loss, leaf)
    z = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(moved, x + 0.2 * z, rtol=0, atol=1e-13)
    assert not moved.requires_grad


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_leaves_no_trace_in_the_model(statistics: str, momentum: float | None) -> None:
    model, (x, target) = network(momentum=momentum).train(), batch()
    model[2].eval()
    model(x)  # statistics of their own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    ExamplePerturbation(0.2, batch_norm=statistics)(model, x, target)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert modes == [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def test_restores_the_model_when_the_pass_fails() -> None:
    model, (x, _) = network().train(), batch()
    with pytest.raises(IndexError):
        ExamplePerturbation(0.2)(model, x, torch.full((7,), 9))
    assert model[1].running_mean is not None
    assert model[1].track_running_stats


def test_instance_norm_and_batch_norm_without_statistics() -> None:
    x, target = batch()
    for layer in (
        nn.InstanceNorm2d(6, track_running_stats=True),
        nn.BatchNorm2d(6, track_running_stats=False),
    ):
        model = network()
        model[1] = layer.double()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        moved = ExamplePerturbation(0.3)(model.train(), x, target)
        lengths = (moved - x).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full((7,), 0.3).double())
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_computes_no_gradient_of_a_weight() -> None:
    """The weight of the first layer is told through a hook that would fire with its gradient."""
    model, (x, target) = network(), batch()
    fired = []
    for p in model.parameters():
        p.register_hook(lambda g: fired.append(g))
    ExamplePerturbation(0.1)(model, x, target)
    assert fired == []


def test_tau_zero_costs_nothing() -> None:
    def fails(x: Tensor) -> Tensor:
        raise AssertionError("the model was called")

    x, target = batch()
    assert ExamplePerturbation(0.0)(fails, x, target) is x


def test_smoothing_and_loss_scale() -> None:
    model, (x, target) = network().eval(), batch()
    plain = ExamplePerturbation(0.2)(model, x, target)
    scaled = ExamplePerturbation(0.2, loss_scale=1024.0)(model, x, target)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-15)
    smoothed = ExamplePerturbation(0.2, label_smoothing=0.5)(model, x, target)
    assert (smoothed - plain).abs().max() > 1e-4


def test_loss_scale_keeps_the_direction_in_half_precision() -> None:
    """Gradients of about 1e-7, in float16 two bits long; 1024 times that has its ten bits."""
    model, (x, target) = network().float().eval(), batch()
    model[-1].weight.data.mul_(1e-5)
    x = x.float()
    exact = ExamplePerturbation(1.0)(model, x, target) - x

    def error(loss_scale: float) -> float:
        with torch.autocast("cpu", dtype=torch.float16):
            moved = ExamplePerturbation(1.0, loss_scale=loss_scale)(model, x, target) - x
        return 1 - F.cosine_similarity(moved.flatten(1), exact.flatten(1)).min().item()

    assert error(1024.0) < 0.01 < error(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": -1.0}, "tau must be finite and not negative, got -1.0"),
        ({"tau": float("inf")}, "tau must be finite"),
        ({"tau": 1.0, "batch_norm": "eval"}, "batch_norm must be 'batch' or 'running', got 'eval'"),
        ({"tau": 1.0, "loss_scale": 0.0}, "loss_scale must be finite and positive"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExamplePerturbation(**arguments)


def test_bad_images() -> None:
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"x must be a floating-point image in \[0, 1\], got torch.uint8"
    ):
        ExamplePerturbation(1.0)(network(), x, torch.zeros(2).long())
