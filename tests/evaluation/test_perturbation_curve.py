"""The curve of Figure 4: on linear models by hand, on a network against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext.evaluation import perturbation_curve, predict
from hrrl_ext.evaluation.perturbation_curve import default_steps
from hrrl_ext.models import resnet18


class TwoSided(nn.Module):
    """Logits ±w·x: the margin of an example falls by 2 step ‖w‖ along its own gradient."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, -score], 1)


def test_a_linear_model_by_hand() -> None:
    """An example with y w·x = m is right up to the step m/‖w‖, from which on it is wrong."""
    w = torch.zeros(12)
    w[:2] = torch.tensor([3.0, 4.0])
    x = torch.zeros(4, 3, 2, 2)
    x[:, 0, 0, 1] = torch.tensor([0.125, 0.25, -0.5, 0.5])  # distances to the boundary × 4/5
    target = torch.tensor([0, 0, 1, 1])
    curve = perturbation_curve(TwoSided(w), (x, target), [0, 0.09, 0.11, 0.19, 0.21, 0.39, 0.41])
    assert curve.correct == [3, 3, 2, 2, 1, 1, 0]  # the last example is wrong from the beginning
    assert curve.accuracy == [n / 4 for n in curve.correct]
    assert perturbation_curve(TwoSided(w), (x, target), [-0.39, -0.41]).correct == [3, 4]


@pytest.mark.parametrize(("dtype", "lead"), [(torch.float32, 25.0), (torch.float16, 18.0)])
def test_a_confident_example_moves_along_its_whole_gradient(
    dtype: torch.dtype, lead: float
) -> None:
    """That of both logits, though in float32 the label's probability is 1, and in float16 the rest is 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, 0], model[1].weight[1, 1] = 64.0, 64.0
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 0] = lead / 64
    boundary = lead / 64 / math.sqrt(2)
    steps = [0.95 * boundary, 1.05 * boundary]
    curve = perturbation_curve(model.to(dtype), (x, torch.tensor([0])), steps)
    assert curve.correct == [1, 0]


def plain_curve(model: nn.Module, x: Tensor, target: Tensor, steps: list[float]) -> list[int]:
    correct = [0] * len(steps)
    for image, label in zip(x, target, strict=True):
        leaf = image[None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), label[None]), leaf)
        for number, step in enumerate(steps):
            moved = image[None] + step * grad / grad.norm()
            correct[number] += int(model(moved).argmax() == label)
    return correct


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_network_against_a_loop_over_examples(batch_size: int) -> None:
    torch.manual_seed(0)
    model = resnet18(5, stem="small", width=2).double()
    x = torch.rand(13, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        model(x)  # running statistics other than their first values
    target = model.eval()(x).argmax(1)
    target[:3] = (target[:3] + 1) % 5
    steps = [0.0, 0.05, 0.3, 1.0, -0.3]
    expected = plain_curve(model, x, target, steps)
    assert len(set(expected)) > 2  # it says something
    model.train()
    assert perturbation_curve(model, (x, target), steps, batch_size=batch_size).correct == expected


def test_step_0_is_the_clean_accuracy_also_without_a_gradient() -> None:
    torch.manual_seed(0)
    model = resnet18(5, stem="small", width=2)
    data = (torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20) % 5)
    clean = int(predict(model, data).correct.sum())
    assert perturbation_curve(model, data, [0.0]).correct == [clean]
    constant = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    nn.init.zeros_(constant[1].weight)  # its gradient is 0 everywhere
    found = perturbation_curve(constant, data, [0.0, 3.0])
    assert found.correct[0] == found.correct[1] == int(predict(constant, data).correct.sum())


def test_the_model_comes_back_as_it_was() -> None:
    model = resnet18(3, stem="small", width=2).train()
    model.fc.eval()
    model.fc.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(5, 3, 8, 8)
    kept = x.clone()
    perturbation_curve(model, (x, torch.zeros(5).long()), [0.1])
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.fc.parameters()] == [False, True]
    assert model.training
    assert not model.fc.training


def test_default_steps_are_root_mean_squares_of_a_pixel() -> None:
    steps = default_steps((3, 8, 8))
    assert steps[0] == 0
    for step, levels in zip(steps, (0, 0.25, 0.5, 1, 2, 4, 8, 16), strict=True):
        assert step == pytest.approx(torch.full((3, 8, 8), levels / 255).norm().item(), rel=1e-6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    data = (torch.rand(2, 3, 8, 8), torch.arange(2))
    assert perturbation_curve(model, data).steps == steps


@pytest.mark.parametrize("steps", [[], [math.nan], [0.0, math.inf]])
def test_bad_steps(steps: list[float]) -> None:
    with pytest.raises(ValueError, match="steps must be finite numbers"):
        perturbation_curve(nn.Flatten(), (torch.rand(2, 3, 2, 2), torch.arange(2)), steps)


def test_labels_of_other_classes() -> None:
    with pytest.raises(ValueError, match=r"perturbation_curve: labels must lie in 0\.\.11"):
        perturbation_curve(nn.Flatten(), (torch.rand(2, 3, 2, 2), torch.tensor([0, 12])), [0.1])
