"""The divergence between views, and training with AugMix against the same lines written out."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import AugMix, load_images
from hrrl_ext.robust import HRRLConfig, jensen_shannon
from hrrl_ext.transfer import L2SP

DIGITS = load_images("digits", split="train").subset(range(90))
SETTINGS: dict[str, Any] = {
    "data": DIGITS, "concepts": "classes", "tau": 0.0, "batch_size": 32, "epochs": 2, "lr": 0.1,
    "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "crop_padding": 1, "device": "cpu",
    "progress": "off",
}  # fmt: skip


def logits(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(4 * torch.randn(count, 6, 5, generator=generator, dtype=dtype))


def by_definition(views: list[Tensor]) -> Tensor:
    p = [view.softmax(1) for view in views]
    mean = sum(p) / len(p)
    return sum(
        (F.kl_div(mean.log(), q, reduction="batchmean") for q in p), mean.new_zeros(())
    ) / len(p)


# --- the divergence


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_it_is_its_definition_with_its_gradient(count: int) -> None:
    ours, theirs = ([x.requires_grad_() for x in logits(count)] for _ in range(2))
    got, want = jensen_shannon(*ours), by_definition(theirs)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got, ours), torch.autograd.grad(want, theirs), strict=True):
        torch.testing.assert_close(a, b)


def test_it_lies_between_0_and_log_3() -> None:
    a, b, c = logits(3)
    assert abs(jensen_shannon(a, a, a)) < 1e-15
    assert 0 < jensen_shannon(a, b, c) < math.log(3)
    certain = (
        200 * torch.eye(3, dtype=torch.float64)[:, None]
    )  # three views, each of another opinion
    torch.testing.assert_close(jensen_shannon(*certain), torch.tensor(math.log(3)).double())
    for order in itertools.permutations((a, b, c)):
        torch.testing.assert_close(jensen_shannon(*order), jensen_shannon(a, b, c))
    shifted = [view + 7 * n for n, view in enumerate((a, b, c))]
    torch.testing.assert_close(jensen_shannon(*shifted), jensen_shannon(a, b, c))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Also where probabilities underflow: exp(-200) is 0 in float32, and log of it is not."""
    views = [(25 * view).to(dtype).requires_grad_() for view in logits(3)]
    got = jensen_shannon(*views)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), by_definition([v.detach().double() for v in views]), rtol=1e-5, atol=0
    )
    got.backward()
    assert all(view.grad.isfinite().all() for view in views)


# --- training


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10))
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.layers(x)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("jsd", [0.0, 12.0])
def test_a_run_is_these_lines(jsd: float, accumulate: int) -> None:
    """But for rounding: a batch in parts sums in another order; and the divergence is a difference of
    logarithms near 2, which float32 has to 2e-7."""
    trainer = HRRLTrainer(Net(), **SETTINGS, lam=None, augmix=3, jsd=jsd, accumulate=accumulate)
    model, seen, added, losses = Net(), 0, 0.0, 0.0
    for batch in (b for epoch in range(2) for b in trainer.batches.epoch(epoch)):
        x, target, _, *mixtures = batch
        assert len(mixtures) == (2 if jsd else 0)
        views = [model(v) for v in (x, *mixtures)]
        loss, divergence = (
            F.cross_entropy(views[0], target),
            by_definition([v.double() for v in views]),
        )
        grads = torch.autograd.grad(loss + jsd * divergence, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(0.1 * g)
        seen += len(x)
        if seen > len(DIGITS):  # the second epoch
            losses += loss.item() * len(x)
            added += jsd * divergence.item() * len(x)
    trainer.model.calls.clear()
    row = trainer.fit().last
    parts = len(trainer.model.calls)
    assert parts == 2 * len(trainer.batches) * accumulate  # one forward pass for all views
    assert sum(trainer.model.calls) == 2 * len(DIGITS) * (3 if jsd else 1)
    for got, want in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert row["loss"] == pytest.approx(losses / len(DIGITS), rel=1e-5)
    assert ("penalty" in row) is (jsd > 0)
    assert row.get("penalty", 0) == pytest.approx(added / len(DIGITS), abs=jsd * 2e-7)


def test_both_levels_see_the_image_itself() -> None:
    """With jsd ĝ and x̃ are those of the image, not of its mixtures."""
    trainer = HRRLTrainer(Net(), **SETTINGS | {"tau": 0.2}, lam=20.0, augmix=3, jsd=12.0)
    x, target, concept, *mixtures = next(trainer.batches.epoch(0))
    model = Net()
    moved = trainer.objective.perturb(model, x, target)
    assert not torch.equal(moved, x)
    want = trainer.objective(model(moved), target, concept).concept_loss
    got = trainer.train_step(x, target, concept, *mixtures)
    torch.testing.assert_close(got, want)


def test_validation_is_not_mixed() -> None:
    trainer = HRRLTrainer(Net(), **SETTINGS, validation=DIGITS, lam=None, augmix=3, jsd=1.0)
    assert trainer.batches.augmix == AugMix(3)
    assert trainer.validation.augmix is None
    assert len(next(trainer.validation.epoch(0))) == 3


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmix": 0.05}, "AugMix: severity must lie between 0.1 and 10, got 0.05"),
        ({"augmix": -1.0}, "AugMix: severity must lie between 0.1 and 10, got -1"),
        ({"augmix": math.nan}, "AugMix: severity must lie between 0.1 and 10, got nan"),
        ({"augmix": 3, "jsd": -1.0}, "jsd must not be negative, got -1"),
        ({"jsd": 12.0}, "jsd compares an image with mixtures of it, which augmix makes"),
        (
            {"augmix": 3, "tau": 0.1, "example_level": "stored"},
            "a mixture of augmix has none of these",
        ),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HRRLConfig(**settings)


def test_stored_directions_that_are_not_used_do_not_matter() -> None:
    assert HRRLConfig(augmix=3, tau=0.0, example_level="stored").mixing == AugMix(3)


def test_another_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"jsd and penalty L2SP.* give one of the two"):
        HRRLTrainer(Net(), **SETTINGS, lam=None, augmix=3, jsd=1.0, penalty=L2SP())


def test_a_step_without_the_mixtures() -> None:
    trainer = HRRLTrainer(Net(), **SETTINGS, lam=None, augmix=3, jsd=1.0)
    x, target, concept, *_ = next(trainer.batches.epoch(0))
    with pytest.raises(
        ValueError, match=r"jsd needs two mixtures of the images, .* got 0 of these 2"
    ):
        trainer.train_step(x, target, concept)
