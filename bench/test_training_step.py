"""One step of HRRL (Algorithm 1) against one of plain training, and against the step written by hand.

HRRL needs two forward passes, a backward pass to the input and one to the weights: 5 units of work where
ERM needs 3, so 5/3 is the floor of their ratio. The bar is 1.85.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import peers
import pytest
import torch
import torch.nn.functional as F
from places import Place
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from hrrl_ext.models import resnet18
from hrrl_ext.ops import ConceptLoss, reference
from hrrl_ext.robust import HRRLObjective

Step = Callable[[], Tensor]

CLASSES, CONCEPTS, BATCH, SIDE = 100, 20, 64, 32
# Long enough for the loss at x̃ to differ from that at x; the time does not depend on it.
TAU, LAM = 0.3, 20.0
# ResNet-18 in float32 against float64: some 20 layers, each with sums of up to 4608 products.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class StepCase:
    width: int
    channels_last: bool

    def __str__(self) -> str:
        return f"resnet18-w{self.width}-{'channels_last' if self.channels_last else 'contiguous'}"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return resnet18(CLASSES, stem="small", width=self.width)

    def setting(self, device: str) -> Setting:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = self.model().to(device)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        x, target, concept = batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        x = x.to(device, memory_format=layout)
        return Setting(model, optimizer, x, target.to(device), concept.to(device))


@dataclass
class Setting:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    target: Tensor
    concept: Tensor


def batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, SIDE, SIDE, generator=g)
    target = torch.randint(CLASSES, (BATCH,), generator=g)
    return x, target, target % CONCEPTS


def erm_step(here: Setting) -> Step:
    def step() -> Tensor:
        loss = F.cross_entropy(here.model(here.x), here.target)
        here.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        here.optimizer.step()
        return loss.detach()

    return step


def hrrl_step(here: Setting) -> Step:
    """Both levels, in the order of HRRLTrainer.train_step."""
    count = [500] * CONCEPTS
    objective = HRRLObjective(count, tau=TAU, lam=LAM).to(here.x.device)

    def step() -> Tensor:
        x = objective.perturb(here.model, here.x, here.target)
        out: ConceptLoss = objective(here.model(x), here.target, here.concept)
        here.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        here.optimizer.step()
        objective.update(out.concept_loss)
        return out.loss.detach()

    return step


def by_hand_step(here: Setting) -> Step:
    """The example level as it is often written: loss.backward() for the gradient of the input.

    That also computes the gradients of all weights, which are then thrown away.
    """

    def step() -> Tensor:
        x = here.x.clone().requires_grad_()
        F.cross_entropy(here.model(x), here.target).backward()
        assert x.grad is not None
        x_perturbed = peers.eager_perturb(x.detach(), x.grad, TAU)
        loss = F.cross_entropy(here.model(x_perturbed), here.target)
        here.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        here.optimizer.step()
        return loss.detach()

    return step


STEPS = {"erm": erm_step, "ours": hrrl_step, "by_hand": by_hand_step}


@lru_cache
def expected_loss(width: int, tau: float) -> float:
    """The loss of the first step in float64: at q0 the plain mean, at x̃ = x for tau = 0."""
    model = StepCase(width, channels_last=False).model().double()
    images, target, _ = batch()
    x = images.double().requires_grad_(tau > 0)
    if tau > 0:
        loss = F.cross_entropy(model(x), target)
        x = reference.perturb(x.detach(), torch.autograd.grad(loss, x)[0], tau)[0]
    with torch.no_grad():
        return float(F.cross_entropy(model(x), target))


@pytest.fixture(scope="module")
def erm_seconds() -> dict[str, float]:
    """The fastest ERM step of each case and place so far."""
    return {}


@pytest.mark.parametrize(
    ("case", "provider"),
    [
        pytest.param(case, provider, id=f"{case}-{provider}")
        for case in (StepCase(width, last) for width in (16, 64) for last in (False, True))
        for provider in STEPS
    ],
)
def test_training_step(
    case: StepCase,
    provider: str,
    place: Place,
    measure: Callable[..., None],
    benchmark: BenchmarkFixture,
    erm_seconds: dict[str, float],
) -> None:
    plain, perturbed = expected_loss(case.width, 0.0), expected_loss(case.width, TAU)
    assert perturbed > 1.01 * plain  # else a step without the perturbation would pass for one with

    def check(loss: Tensor) -> None:
        expected = plain if provider == "erm" else perturbed
        assert loss.item() == pytest.approx(expected, rel=TOLERANCE)

    measure(
        STEPS[provider](case.setting(place.device)),
        check,
        op="training_step",
        case=case,
        provider=provider,
        rounds=15 if case.width == 16 else 3,
        shape=(BATCH, 3, SIDE, SIDE),
        dtype="fp32",
        layout="channels_last" if case.channels_last else "contiguous",
    )
    if benchmark.stats is None:
        return  # --benchmark-disable
    fastest, key = benchmark.stats.stats.min, f"{case} {place}"
    if provider == "erm":
        erm_seconds[key] = fastest
    elif key in erm_seconds:
        benchmark.extra_info["ratio_to_erm"] = fastest / erm_seconds[key]
