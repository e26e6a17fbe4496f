"""Theorem2Perturbation: lengths gradient/(3 L_x), and an L_x that is what it is measured to be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.robust import HRRLConfig, HRRLObjective, Theorem2Perturbation

R = math.sqrt(3 * 8 * 8) / (8 * 255)  # an eighth of a grey level in each value


class Quadratic(Theorem2Perturbation):
    """ℓ = h/2 ‖x‖², whose gradient h x changes by h per unit everywhere."""

    def input_gradient(self, model: nn.Module, x: Tensor, target: object) -> Tensor:
        return 7.0 * x * self.loss_scale


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4)).double()


def batch(size: int = 7) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(size, 3, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(4, (size,), generator=g)


def lengths(moved: Tensor, x: Tensor) -> Tensor:
    return (moved - x).flatten(1).norm(dim=1)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("size", [1, 7])
def test_a_loss_whose_smoothness_is_known(size: int, scale: float) -> None:
    """gradient/(3 L) = x/3 whatever h is; float64 differences of 7 x at distance R keep 1e-12 of it."""
    x, target = batch(size)
    perturb = Quadratic(2.0, loss_scale=scale)
    assert perturb(nn.Identity(), x, target) is not x
    torch.testing.assert_close(
        perturb(nn.Identity(), x, target), x, rtol=0, atol=0
    )  # not known yet
    assert perturb.l_x.isnan()
    perturb.update()
    assert perturb.l_x.item() == pytest.approx(7.0, rel=1e-12)
    moved = perturb(nn.Identity(), x, target)
    torch.testing.assert_close(moved, x + 2 * x / 3, rtol=1e-12, atol=0)
    torch.testing.assert_close(lengths(moved, x), perturb.lengths, rtol=1e-12, atol=0)


def test_against_gradients_by_hand() -> None:
    """One example at a time, and the mean over them written out."""
    model, (x, target) = network(), batch()
    perturb = Theorem2Perturbation()
    perturb(model, x, target)
    perturb.update()

    def gradient(x: Tensor, target: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(leaf[None]), target[None]), leaf)[0]

    weighted = weights = 0.0
    for image, label in zip(x, target, strict=True):
        grad = gradient(image, label)
        change = gradient(image + R * grad / grad.norm(), label) - grad
        weighted += (grad.norm() * change.norm() / R).item() ** 2
        weights += grad.norm().item() ** 2
    l_x = math.sqrt(weighted / weights)
    assert perturb.l_x.item() == pytest.approx(l_x, rel=1e-9)
    moved = perturb(model, x, target)
    grad = torch.stack([gradient(image, label) for image, label in zip(x, target, strict=True)])
    torch.testing.assert_close(moved, x + grad / (3 * l_x), rtol=0, atol=1e-12)
    assert perturb.lengths.max() > 1.1 * perturb.lengths.min()


def test_parts_of_a_batch_are_the_whole() -> None:
    model, (x, target) = network(), batch()
    whole, parts = Theorem2Perturbation(), Theorem2Perturbation()
    whole(model, x, target)
    for rows in (slice(0, 2), slice(2, 2), slice(2, 7)):
        parts(model, x[rows], target[rows])
    whole.update()
    parts.update()
    assert parts.l_x.item() == pytest.approx(whole.l_x.item(), rel=1e-12)


def test_when_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, target) = network(), batch(2)
    perturb, passes = Theorem2Perturbation(), list[Any]()
    gradient = perturb.input_gradient

    def counted(*arguments: Any) -> Tensor:
        passes[-1] += 1
        return gradient(*arguments)

    monkeypatch.setattr(perturb, "input_gradient", counted)
    for _ in range(100):
        passes.append(0)
        perturb(model, x, target)
        perturb.update()
    assert [step for step, n in enumerate(passes, 1) if n == 2] == [1, 2, 3, 5, 9, 17, 33, 65, 97]
    assert sum(passes) == 109


def test_a_new_estimate_counts_half() -> None:
    x, target = batch()
    perturb = Quadratic()
    perturb.l_x.fill_(3.0)
    perturb(nn.Identity(), x, target)
    perturb.update()
    assert perturb.l_x.item() == pytest.approx(5.0, rel=1e-12)


# --- edges


def test_no_gradient_moves_nothing_and_says_nothing_of_smoothness() -> None:
    model, (x, target) = network(), batch()
    nn.init.zeros_(model[3].weight)
    perturb = Theorem2Perturbation()
    for _ in range(3):
        assert torch.equal(perturb(model, x, target), x)
        perturb.update()
    assert perturb.l_x.isnan()
    assert torch.equal(perturb.lengths, torch.zeros(7, dtype=torch.float64))


def test_a_constant_gradient_keeps_what_is_known() -> None:
    class Linear(Theorem2Perturbation):
        def input_gradient(self, model: nn.Module, x: Tensor, target: object) -> Tensor:
            return torch.ones_like(x)

    x, target = batch()
    perturb = Linear()
    perturb.l_x.fill_(5.0)
    perturb(nn.Identity(), x, target)
    perturb.update()
    assert perturb.l_x.item() == 5.0


def test_an_example_that_is_not_finite_touches_no_other() -> None:
    x, target = batch()
    whole, rest = Theorem2Perturbation(), Theorem2Perturbation()
    broken = x.clone()
    broken[3] = math.nan
    others = [0, 1, 2, 4, 5, 6]
    model = network()
    for _ in range(2):
        moved = whole(model, broken, target)
        expected = rest(model, x[others], target[others])
        torch.testing.assert_close(moved[others], expected, rtol=1e-12, atol=0)
        assert whole.lengths[3] == 0
        whole.update()
        rest.update()
    assert whole.l_x.item() == pytest.approx(rest.l_x.item(), rel=1e-12)


def test_bad_input() -> None:
    x, target = batch()
    with pytest.raises(ValueError, match=r"floating-point image.*uint8"):
        Theorem2Perturbation()(network(), x.to(torch.uint8), target)
    for multiple in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tau_multiple must be"):
            Theorem2Perturbation(multiple)
    with pytest.raises(ValueError, match="tau_multiple must be positive"):
        HRRLConfig(tau="theorem2", tau_multiple=0)
    with pytest.raises(ValueError, match=r"tau_multiple=3 is of .* and tau is 0.1; leave"):
        HRRLConfig(tau=0.1, tau_multiple=3)
    assert HRRLConfig(tau=0, tau_multiple=3).tau == 0  # without the level, as a baseline is
    with pytest.raises(ValueError, match=r"theorem2.*example_level='stored' keeps directions"):
        HRRLConfig(tau="theorem2", example_level="stored")
    with pytest.raises(ValueError, match=r"example_steps=3 .* tau=.theorem2. is one step"):
        HRRLConfig(tau="theorem2", example_steps=3)


# --- in training


def test_in_a_loop_of_ones_own() -> None:
    model, (x, target) = network(), batch()
    objective = HRRLObjective(tau="theorem2", lam=None, tau_multiple=2.0)
    assert torch.equal(objective.perturb(model, x, target), x)
    objective.update(torch.zeros(1))
    moved = objective.perturb(model, x, target)
    torch.testing.assert_close(lengths(moved, x), objective.perturbation.lengths)
    again = HRRLObjective(tau="theorem2", lam=None, tau_multiple=2.0)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.perturb(model, x, target), moved)


def test_a_run_tells_lengths_and_smoothness() -> None:
    trainer = HRRLTrainer(
        data=load_images("digits", split="train").subset(range(64)), concepts="classes", lam=None,
        tau="theorem2", tau_multiple=3.0, epochs=1, batch_size=32, width=4, progress="off",
    )  # fmt: skip
    seen = []

    def look(trainer: HRRLTrainer, step: int) -> None:
        seen.append(trainer.objective.perturbation.lengths)

    trainer.after_step = look
    row = trainer.fit().last
    assert seen[0].sum() == 0 and (seen[1] > 0).all()
    assert row["mean_tau"] == pytest.approx(torch.cat(seen).mean().item(), rel=1e-12)
    assert row["l_x"] == trainer.objective.perturbation.l_x.item() > 0
