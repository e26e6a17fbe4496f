"""A step of APGD against the passes it contains: forward, and backward to the images.

Steps are counted with the pass at the start: n steps are n + 1 forward passes and n backward passes. The
bar is 1.1. What a step does besides goes with the pixels, so a small network shows it most: above all
Fourier-linf, whose projection alternates 16 pairs of FFTs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from places import Place
from torch import Tensor, nn

from hrrl_ext.evaluation.attacks import apgd, find_norm
from hrrl_ext.models import resnet18

CLASSES, SIDE, STEPS, ROUNDS = 10, 32, 5, 5
WIDTHS = {16: 64, 64: 16}  # of ResNet-18, whose own is 64, and images in a batch
BALLS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "fourier": 8 / 255}


def setting(width: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = resnet18(CLASSES, stem="small", width=width).eval().to(device)
    x = torch.rand(WIDTHS[width], 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def bare_passes(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """The passes of STEPS steps, and nothing between them."""

    def passes() -> Tensor:
        for _ in range(STEPS):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(leaf), target, reduction="sum"), leaf)
        with torch.no_grad():
            return F.cross_entropy(model(x), target, reduction="none")

    return passes


@pytest.mark.parametrize("provider", ["passes", "ours"])
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("width", WIDTHS)
def test_apgd_step(
    width: int, norm: str, provider: str, place: Place, measure: Callable[..., None]
) -> None:
    model, x, target = setting(width, place.device)
    eps = BALLS[norm]

    def attack() -> Tensor:
        return apgd(model, x, target, eps, norm=norm, steps=STEPS)

    def check(out: Tensor) -> None:
        if provider == "passes":
            assert out.shape == target.shape
            return
        assert (find_norm(norm).size(out - x) <= eps * (1 + 1e-5)).all()
        with torch.no_grad():  # it climbs
            clean, attacked = (F.cross_entropy(model(z), target) for z in (x, out))
        assert attacked > clean

    measure(
        attack if provider == "ours" else bare_passes(model, x, target),
        check,
        op="apgd_step",
        case=f"{norm}-w{width}",
        provider=provider,
        rounds=ROUNDS,
        shape=tuple(x.shape),
        dtype="fp32",
    )
