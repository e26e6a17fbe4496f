"""Training steps of ResNet-18 to compare: plain, HRRL's (Algorithm 1), and the same written by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext.data import Augmentation
from hrrl_ext.models import resnet18
from hrrl_ext.ops import ConceptLoss, reference
from hrrl_ext.processes import Processes
from hrrl_ext.robust import (
    ExamplePerturbation,
    HRRLObjective,
    StoredDirections,
    StoredPerturbation,
)

Step = Callable[[], Tensor]
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]

CLASSES, CONCEPTS = 100, 20
# Long enough for the loss at x̃ to differ from that at x; the time does not depend on it.
TAU, LAM = 0.3, 20.0
# ResNet-18 against float64: some 20 layers, sums of up to 4608 products, kept with 24 bits or 8.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
_TF32 = 2e-3  # 11 bits a product: what cuDNN's convolutions keep of float32 unless told otherwise


@dataclass(frozen=True)
class StepCase:
    width: int
    dtype: str
    channels_last: bool
    batch: int = 64
    side: int = 32

    def __str__(self) -> str:
        size = (
            "" if (self.batch, self.side) == (64, 32) else f"-{self.batch}x{self.side}x{self.side}"
        )
        return f"resnet18-w{self.width}{size}-{self.dtype}-{self.layout}"

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    @property
    def facts(self) -> dict[str, Any]:
        shape = (self.batch, 3, self.side, self.side)
        return {"shape": shape, "dtype": self.dtype, "layout": self.layout}

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return resnet18(CLASSES, stem="small" if self.side <= 64 else "imagenet", width=self.width)

    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, 3, self.side, self.side, generator=g)
        target = torch.randint(CLASSES, (self.batch,), generator=g)
        return x, target, target % CONCEPTS

    def setting(self, device: str) -> Setting:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = self.model().to(device)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        x, target, concept = self.images()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        x = x.to(device, memory_format=layout)
        return Setting(
            model, optimizer, x, target.to(device), concept.to(device), self.dtype == "bf16"
        )


@dataclass
class Setting:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    target: Tensor
    concept: Tensor
    half: bool

    @property
    def held(self) -> list[Tensor]:
        return [*self.model.state_dict().values(), self.x, self.target, self.concept]

    def autocast(self) -> AbstractContextManager[object]:
        """Of the forward passes, as HRRLTrainer's precision="bf16"; losses are float32."""
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.half)

    def descend(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def erm_step(here: Setting, compiler: Compiler = as_it_is) -> Step:
    def mean_loss() -> Tensor:
        with here.autocast():
            logits = here.model(here.x)
        return F.cross_entropy(logits.float(), here.target)

    mean_loss = compiler(mean_loss)
    return lambda: here.descend(mean_loss())


def hrrl_step(here: Setting, compiler: Compiler = as_it_is) -> Step:
    """Both levels, in the order of HRRLTrainer.train_step."""
    count = [500] * CONCEPTS
    objective = HRRLObjective(count, tau=TAU, lam=LAM).to(here.x.device)

    def losses() -> ConceptLoss:
        with here.autocast():
            x = objective.perturb(here.model, here.x, here.target)
            logits = here.model(x)
        out: ConceptLoss = objective(logits, here.target, here.concept)
        return out

    losses = compiler(losses)

    def step() -> Tensor:
        out = losses()
        here.descend(out.loss)
        objective.update(out.concept_loss)
        return out.loss.detach()

    return step


def stored_step(here: Setting) -> Step:
    """Both levels with example_level="stored": directions of 8 bits, as many images as a batch.

    They begin as those of Algorithm 1, so that the first loss is at the same x̃. All of an image is in its
    view, some are flipped; how it is moved takes the same time wherever it goes.
    """
    device, count = here.x.device, len(here.x)
    objective = HRRLObjective([500] * CONCEPTS, tau=0.0, lam=LAM).to(device)
    augment, row = Augmentation(4), torch.arange(count, device=device)
    view = augment.draw(count, torch.Generator().manual_seed(0))
    view[:, :2] = augment.crop_padding
    view = view.to(device)
    directions = StoredDirections(count, here.x.shape[1:], 8, device)
    stored = StoredPerturbation(TAU, directions, augment, Processes())
    grad = ExamplePerturbation(TAU).input_gradient(here.model, here.x, here.target)
    directions.put(row, grad, view, augment.crop_padding)

    def step() -> Tensor:
        with here.autocast():
            x = stored.perturb(here.x, row, view)
            logits = here.model(x)
        out: ConceptLoss = objective(logits, here.target, here.concept)
        here.descend(out.loss)
        objective.update(out.concept_loss)
        stored.learn()
        return out.loss.detach()

    return step


def by_hand_step(here: Setting) -> Step:
    """The example level as it is often written: loss.backward() for the gradient of the input.

    That also computes the gradients of all weights, which are then thrown away.
    """

    def step() -> Tensor:
        x = here.x.clone().requires_grad_()
        with here.autocast():
            logits = here.model(x)
        F.cross_entropy(logits.float(), here.target).backward()
        assert x.grad is not None
        x_perturbed = peers.eager_perturb(x.detach(), x.grad, TAU)
        with here.autocast():
            logits = here.model(x_perturbed)
        return here.descend(F.cross_entropy(logits.float(), here.target))

    return step


def bare_passes(here: Setting) -> Step:
    """The passes alone, with nothing of ours: to the input of the clean images, and a step of ERM.

    5/3 supposes that the forward pass and both halves of the backward pass take equally long. What
    they take here is the floor that the step of HRRL can be held to.
    """
    erm = erm_step(here)

    def step() -> Tensor:
        x = here.x.clone().requires_grad_()
        with here.autocast():
            logits = here.model(x)
        torch.autograd.grad(F.cross_entropy(logits.float(), here.target, reduction="sum"), x)
        return erm()

    return step


STEPS: dict[str, Callable[[Setting, Compiler], Step]] = {
    "erm": lambda here, _: erm_step(here),
    "ours": lambda here, _: hrrl_step(here),
    "stored": lambda here, _: stored_step(here),
    "by_hand": lambda here, _: by_hand_step(here),
    "passes": lambda here, _: bare_passes(here),
    "erm_compile": erm_step,
    "compile": hrrl_step,
}


def tolerance(case: StepCase, device: str) -> float:
    """Relative, of the first loss."""
    tf32 = case.dtype == "fp32" and device == "cuda" and torch.backends.cudnn.allow_tf32
    return _TF32 if tf32 else TOLERANCE[case.dtype]


def expected_losses(case: StepCase, device: str = "cpu") -> tuple[float, float]:
    """The loss of the first step in float64: at q0 the plain mean; at x, and at x̃."""
    return _expected_losses(case.width, case.batch, case.side, device)


@lru_cache
def _expected_losses(width: int, batch: int, side: int, device: str) -> tuple[float, float]:
    case = StepCase(width, "fp32", False, batch, side)
    model = case.model().double().to(device)
    images, target, _ = (t.to(device) for t in case.images())
    x = images.double().requires_grad_()
    loss = F.cross_entropy(model(x), target)
    perturbed = reference.perturb(x.detach(), torch.autograd.grad(loss, x)[0], TAU)[0]
    with torch.no_grad():
        there = float(F.cross_entropy(model(perturbed), target))
    assert (
        there > 1.01 * loss.item()
    )  # else a step without the perturbation would pass for one with
    return loss.item(), there
