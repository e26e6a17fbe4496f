"""TRADES: its divergence, its attack on a linear network in closed form, and a run with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hrrl_ext import HRRLTrainer, resnet18
from hrrl_ext.linear import Trades


class Linear(nn.Module):
    """Two classes, logits ±w·x."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([z, -z], 1)


@pytest.fixture
def case() -> tuple[Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(27, generator=generator, dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(5, 3, 3, 3, generator=generator, dtype=torch.float64)
    return Linear(w), x


def divergence(z: float, moved: float) -> float:
    p, q = (1 / (1 + math.exp(-2 * v)) for v in (z, moved))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_on_a_linear_network_it_is_the_larger_of_two_ends(
    case: tuple[Linear, torch.Tensor],
) -> None:
    """KL of two classes grows away from z on either side: the maximum is at z ± eps ‖w‖₁. The attack goes
    the way that its noise took, and its value is one of the two, to the bit of a float64 model."""
    model, x = case
    eps, beta = 0.01, 3.0
    torch.manual_seed(1)
    logits, penalty = Trades(beta=beta, eps=eps)(model)(model, x)
    assert_close(logits, model(x))
    reach = eps * model.w.abs().sum().item()
    ends = [[divergence(v, v + s * reach) for s in (-1, 1)] for v in logits[:, 0].tolist()]
    low, high = (beta * sum(f(e) for e in ends) / 5 for f in (min, max))
    assert low * (1 - 1e-4) <= penalty.item() <= high * (1 + 1e-4)
    assert low > 1e-3  # it is no small matter


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "fourier"])
def test_the_image_stays_in_ball_and_box(case: tuple[Linear, torch.Tensor], norm: str) -> None:
    model, x = case
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    Trades(eps=0.05, norm=norm, steps=3)(model)(model, x)
    handle.remove()
    moved = seen[-1]  # what the penalty is of
    assert moved.min() >= 0 and moved.max() <= 1 and not torch.equal(moved, x)
    if norm == "linf":
        assert (moved - x).abs().max() <= 0.05 + 1e-12
    if norm == "l2":
        assert (moved - x).flatten(1).norm(dim=1).max() <= 0.05 + 1e-9


def test_a_radius_of_zero_costs_nothing(case: tuple[Linear, torch.Tensor]) -> None:
    model, x = case
    _, penalty = Trades(eps=0.0)(model)(model, x)
    assert penalty.item() == 0
    penalty.backward()
    assert model.w.grad is not None and not model.w.grad.any()


def test_its_gradient_is_the_divergences(case: tuple[Linear, torch.Tensor]) -> None:
    """Through both predictions, the image being a constant; against differences with the same noise."""
    model, x = case
    x = x[:1]

    def value() -> torch.Tensor:
        torch.manual_seed(2)
        return Trades(eps=0.01, steps=2)(model)(model, x)[1]

    (grad,) = torch.autograd.grad(value(), model.w)
    h = 1e-6
    for j in (0, 13):
        with torch.no_grad():
            model.w[j] += h
            up = value()
            model.w[j] -= 2 * h
            down = value()
            model.w[j] += h
        # linf steps are signs, which such a small change of w leaves as they are
        assert_close(grad[j], (up - down) / (2 * h), rtol=1e-4, atol=1e-8)


def test_the_model_is_in_eval_mode_only_while_it_is_attacked() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    modes: list[bool] = []
    model[0].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    Trades(steps=2)(model)(model, torch.rand(4, 3, 2, 2))
    assert modes == [False] * 3 + [True] * 2 and model.training
    assert all(p.grad is None for p in model.parameters())


def test_it_is_a_penalty_of_training(tmp_path: Path) -> None:
    """And with the same seed a run is the same, the noise included."""

    def run(out: str) -> list[float]:
        torch.manual_seed(0)
        trainer = HRRLTrainer(
            resnet18(10, stem="small", width=4), data="digits", concepts="classes", out=tmp_path / out, tau=0.0, epochs=1,
            batch_size=256, progress="off", device="cpu", penalty=Trades(beta=1.0, steps=1),
        )  # fmt: skip
        return [row["penalty"] for row in trainer.fit().history]

    first = run("a")
    assert first == run("b") and first[0] > 0


@pytest.mark.parametrize(
    "settings", [{"beta": -1.0}, {"eps": math.inf}, {"steps": 0}, {"step_size": 0.0}]
)
def test_bad_settings(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"Trades: {name} must be"):
        Trades(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'linff' is not known"):
        Trades(norm="linff")
