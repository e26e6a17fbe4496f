"""ExamplePerturbation: the right direction, and a model that is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import ops
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


class Counted(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.model(x)


@pytest.mark.parametrize("tau", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_projected_steps(steps: int, tau: float) -> None:
    """PGD with the definition's lines in float64: steepest steps of 2.5 τ/steps, back into the ball."""
    model, (x, target) = Counted(network().eval()), batch()
    moved = ExamplePerturbation(tau, steps=steps)(model, x, target)
    assert model.passes == steps and not moved.requires_grad
    oracle, delta = network().eval(), torch.zeros_like(x)
    for _ in range(steps):
        leaf = (x + delta).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(oracle(leaf), target), leaf)
        grad = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta + min(tau, 2.5 * tau / steps) * grad
        norm = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = torch.where(norm > tau, delta * tau / norm, delta)
    torch.testing.assert_close(moved, x + delta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_steps_stay_in_the_ball_and_leave_no_trace(statistics: str) -> None:
    model, (x, target) = network().float().train(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for tau in (1e-3, 0.1, 10.0):
        perturb = ExamplePerturbation(tau, steps=5, batch_norm=statistics)
        images = x.float().contiguous(memory_format=torch.channels_last)
        moved = perturb(model, images, target)
        assert moved.is_contiguous(memory_format=torch.channels_last)
        length = (moved.double() - x.float().double()).flatten(1).norm(dim=1)
        # x̃ is rounded once, by 2^-24 of its size, 1 or τ, at most in each of the 192 values.
        assert length.max() <= tau + 192**0.5 * 2**-24 * max(1.0, tau)
        assert length.min() > 0.5 * tau
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_steps_against_a_linear_model() -> None:
    """Two classes: the gradient has one direction, and all steps end where one does. More classes: the
    loss is convex in x, and from step to step the ascent gains on a single one."""
    g = torch.Generator().manual_seed(0)
    x, target = torch.rand(40, 6, generator=g, dtype=torch.float64), torch.arange(40)
    for classes in (2, 5):
        model = nn.Linear(6, classes).double()
        nn.init.normal_(model.weight, generator=g)
        label, tau = target % classes, 1.0
        one, more = (ExamplePerturbation(tau, steps=steps)(model, x, label) for steps in (1, 10))
        if classes == 2:
            torch.testing.assert_close(more, one, rtol=0, atol=1e-14)
            continue
        there, further = (F.cross_entropy(model(v), label, reduction="none") for v in (one, more))
        assert (further > there * (1 - 1e-12)).all()
        assert further.mean() > 1.001 * there.mean()


def test_one_step_is_line_9_to_the_bit() -> None:
    model, (x, target) = network().float().eval(), batch()
    x, perturb = x.float(), ExamplePerturbation(0.2, steps=1)
    moved, _ = ops.perturb(x, perturb.input_gradient(model, x, target), 0.2)
    assert torch.equal(perturb(model, x, target), moved)


def test_steps_without_a_gradient() -> None:
    """An example that is certain stays as it is, to the bit; so does a batch of none."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    x = torch.tensor([[1000.0, 0.3], [0.7, 0.3]])
    moved = ExamplePerturbation(0.5, steps=3)(model, x, torch.zeros(2).long())
    assert torch.equal(moved[0], x[0]) and not torch.equal(moved[1], x[1])
    none = ExamplePerturbation(0.5, steps=3)(model, x[:0], torch.zeros(0).long())
    assert none.shape == (0, 2)


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
        ({"tau": 1.0, "steps": 0}, "steps must be a whole number, at least 1, got 0"),
        ({"tau": 1.0, "steps": 1.5}, "steps must be a whole number, at least 1, got 1.5"),
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
