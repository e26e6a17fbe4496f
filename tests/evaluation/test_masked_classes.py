"""Logits of -inf: classes that are masked, measured as if the model did not have them."""

from __future__ import annotations

import math

import pytest
import torch
from attack_cases import Small, images, small
from torch import Tensor, nn

from hrrl_ext import HRRLObjective
from hrrl_ext.data import ArrayImages
from hrrl_ext.evaluation import Predictions, evaluate, perturbation_curve, predict
from hrrl_ext.evaluation.attacks import apgd, evaluate_attack, pgd
from hrrl_ext.evaluation.calibration import LIMITS, fit_temperature, negative_log_likelihood

KEPT = [0, 2, 3, 5]


class Masked(nn.Module):
    """A network of 7 classes, of which 4 are left."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Small = small(7)
        self.eval()
        self.register_buffer("masked", torch.tensor([k not in KEPT for k in range(7)]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.masked_fill(self.masked, -math.inf)


class Kept(Masked):
    """The same network of these 4 classes."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)[:, KEPT]
        return logits


X = images(24)
Y = Kept()(X).argmax(1)  # in 0 .. 3
OF_7 = torch.tensor(KEPT)[Y]
Y[0], OF_7[0] = (Y[0] + 1) % 4, torch.tensor(KEPT)[(Y[0] + 1) % 4]  # one is wrong


def test_predictions_and_the_curve() -> None:
    masked, kept = predict(Masked(), (X, OF_7)), predict(Kept(), (X, Y))
    assert (
        torch.equal(masked.logits[:, KEPT], kept.logits) and masked.logits[:, 1].max() == -math.inf
    )
    assert torch.equal(masked.correct, kept.correct)
    torch.testing.assert_close(masked.confidence, kept.confidence)
    steps = [0.0, 0.2, 1.0]
    curves = [perturbation_curve(m, (X, y), steps) for m, y in ((Masked(), OF_7), (Kept(), Y))]
    assert curves[0] == curves[1]


def test_calibration() -> None:
    masked, kept = predict(Masked(), (X, OF_7)), predict(Kept(), (X, Y))
    assert fit_temperature(masked) == pytest.approx(fit_temperature(kept), rel=1e-9)
    assert negative_log_likelihood(masked) == pytest.approx(negative_log_likelihood(kept), rel=1e-6)
    never = Predictions(masked.logits, masked.labels.clone())
    never.labels[3] = 1  # of a masked class: no temperature helps, and the others decide
    rest = Predictions(*(t[torch.arange(24) != 3] for t in masked))
    assert fit_temperature(never) == fit_temperature(rest)
    assert negative_log_likelihood(never) == math.inf
    assert fit_temperature(Predictions(masked.logits, torch.ones(24).long())) == LIMITS[1]


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_step_of_an_attack_is_that_without_the_masked(loss: str) -> None:
    found = [pgd(m, X, y, 0.03, steps=3, loss=loss) for m, y in ((Masked(), OF_7), (Kept(), Y))]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_the_dlr_loss_climbs() -> None:
    """Its divisor, a difference to the third largest, would be infinite where two classes are left."""
    for kept in (KEPT, [0, 3]):
        model = Masked()
        model.masked = torch.tensor([k not in kept for k in range(7)])
        y = model(X).argmax(1)
        moved = apgd(model, X, y, 0.3, steps=10, loss="dlr")
        clear = (moved - X).flatten(1).abs().amax(1) > 0
        assert clear.all()
        assert (model(moved).argmax(1) != y).float().mean() > 0.5


def test_the_worst_case_counts_like_without_them() -> None:
    """To the point: the methods differ in their scales alone."""
    masked, kept = (
        evaluate_attack(m, X, y, "linf:0.02", quick=True)
        for m, y in ((Masked(), OF_7), (Kept(), Y))
    )
    assert torch.equal(masked.clean, kept.clean) and not masked.clean[0]
    assert abs(int(masked.survived.sum()) - int(kept.survived.sum())) <= 1
    assert 0 < masked.survived.sum() < masked.clean.sum()
    assert masked.warnings == kept.warnings == []


def test_training_on_them() -> None:
    objective = HRRLObjective(tau=0.1, lam=None)
    moved = [objective.perturb(m, X, y) for m, y in ((Masked(), OF_7), (Kept(), Y))]
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-6)
    losses = [objective(m(X), y).loss for m, y in ((Masked(), OF_7), (Kept(), Y))]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_whole_report() -> None:
    report = evaluate(
        Masked(),
        ArrayImages(X, OF_7, classes=list("abcdefg")),
        preset="quick",
        corruptions=["none"],
        attacks=["linf:0.01"],
    )
    assert report.accuracy["accuracy"] == pytest.approx(23 / 24)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_mask_is_refused(value: float) -> None:
    class Spoiled(Kept):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x).clone()
            logits[5 % len(x), 2] = value
            return logits

    class Nothing(Kept):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(torch.arange(len(x))[:, None] == 5, -math.inf)

    for model in (Spoiled(), Nothing()):
        with pytest.raises(ValueError, match="logits of example 5 are not finite"):
            predict(model, (X, Y))
        with pytest.raises(ValueError, match="logits for example 5 are not finite"):
            evaluate_attack(model, X, Y, "linf:0.02")
