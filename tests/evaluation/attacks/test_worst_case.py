"""The worst case over the ensemble, its warnings, and the largest free radius."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from attack_cases import BALLS, NORMS, Linear, binary, generator, images, right_targets, small
from test_attack_norms import dual
from torch import nn

from hrrl_ext.evaluation.attacks import (
    EPS_GRID,
    apgd,
    checks,
    evaluate_attack,
    max_epsilon,
    radius,
    worst_case,
)

DOCS = Path(__file__).parents[3] / "docs/attacks.md"


def linear(n=40):
    """A binary linear model with points away from the box, their targets, and margins / ‖w‖*."""
    model, w = binary()
    x = 0.5 + 0.1 * (torch.rand(n, 3, 6, 6, generator=generator(2), dtype=torch.float64) - 0.5)
    target = right_targets(model, x)
    margin = (w * (x - 0.5)).sum((1, 2, 3)).abs()
    return model, x, target, margin, w


# On a linear model the points that survive are known


@pytest.mark.parametrize("name", BALLS)
def test_the_survivors_of_a_linear_model_are_those_of_the_closed_form(name):
    model, x, target, margin, w = linear()
    radius = margin / dual(name, w[None])  # at which each point falls
    eps = radius.median().item()
    result = evaluate_attack(model, x, target, f"{name}:{eps}", quick=True, batch_size=16)
    clear = (radius / eps - 1).abs() > 0.03  # nearer ones may go either way: l1 takes sparse steps
    assert clear.sum() > 30
    assert torch.equal(result.survived[clear], (radius > eps)[clear])
    assert result.clean.all()
    assert (result.survived | (model(result.adversarial).argmax(1) != target)).all()
    assert (NORMS[name].size(result.adversarial - x) <= eps * (1 + 1e-5)).all()


def test_each_method_is_run_on_what_is_left():
    model, x = small().eval(), images(24)
    target = right_targets(model, x)
    target[:3] = (target[:3] + 1) % 5
    lines: list[str] = []
    result = evaluate_attack(model, x, target, "linf:0.004", quick=True, progress=lines.append)
    assert result.clean.tolist() == [False] * 3 + [True] * 21
    assert not result.survived[:3].any()
    assert torch.equal(result.adversarial[:3], x[:3])
    left = 21
    for accuracy, points in result.method_accuracy.values():
        assert points == left
        left = round(accuracy * points)
    assert left == int(result.survived.sum())
    assert 0 < left < 21
    assert list(result.method_accuracy) == ["pgd", "apgd-ce", "apgd-dlr", "fgsm", "square"]
    assert len(lines) == 5 and lines[0].startswith("linf:0.004  pgd")
    assert result.clean_accuracy == 21 / 24 and result.accuracy == left / 24


def test_the_full_ensemble_has_targeted_dlr_and_is_no_weaker(monkeypatch):
    monkeypatch.setattr(worst_case, "_APGD_STEPS", (5, 10))
    monkeypatch.setattr(worst_case, "_QUERIES", (20, 30))
    model, x = small().eval(), images(12)
    target = right_targets(model, x)
    full = evaluate_attack(model, x, target, "linf:0.008")
    quick = evaluate_attack(model, x, target, "linf:0.008", quick=True)
    assert list(full.method_accuracy) == ["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fgsm", "square"]
    assert full.accuracy <= quick.accuracy
    assert 0 < full.accuracy < 1


@pytest.mark.parametrize("spec", ["linf:0.004", "l2:0.05", "l1:0.3", "fourier:0.004"])
def test_the_batch_size_does_not_matter(spec, monkeypatch):
    monkeypatch.setattr(worst_case, "_APGD_STEPS", (8, 16))
    monkeypatch.setattr(worst_case, "_QUERIES", (20, 50))
    # Rows of this model do not depend on the batch to the bit, so nothing else may.
    w = torch.randn(4, 108, generator=generator(5))
    model, x = Linear(w, torch.zeros(4)), images(5, dtype=torch.float64)
    target = right_targets(model, x)
    one, three = (
        evaluate_attack(model, x, target, spec, quick=True, batch_size=size, seed=3)
        for size in (1, 3)
    )
    assert torch.equal(one.survived, three.survived)
    if not spec.startswith("f"):  # an FFT of more rows may take other instructions
        assert torch.equal(one.adversarial, three.adversarial)
    assert one.method_accuracy == three.method_accuracy
    again = evaluate_attack(model, x, target, spec, quick=True, batch_size=3, seed=3)
    assert torch.equal(again.adversarial, three.adversarial)


def test_starts_are_drawn_by_the_row_of_a_point(monkeypatch):
    rows = []
    draw = worst_case.random_start

    def recorded(*arguments, index, **settings):
        rows.extend(index)
        return draw(*arguments, index=index, **settings)

    monkeypatch.setattr(worst_case, "random_start", recorded)
    model, x = small().eval(), images(5)
    target = right_targets(model, x)
    target[1] = (target[1] + 1) % 5
    evaluate_attack(model, x, target, "linf:1e-6", quick=True, batch_size=2)
    assert rows == [0, 2, 3, 4]


def test_radius_zero_is_the_clean_accuracy():
    model, x = small().train(), images(8)
    target = torch.arange(8) % 5
    result = evaluate_attack(model, x, target, "l2:0", batch_size=3)
    with torch.no_grad():
        clean = model.eval()(x).argmax(1) == target
    assert torch.equal(result.clean, clean) and torch.equal(result.survived, clean)
    assert torch.equal(result.adversarial, x)
    assert result.method_accuracy == {} and result.accuracy == result.clean_accuracy


def test_the_result_as_json():
    model, x, target, *_ = linear(4)
    row = evaluate_attack(model, x, target, "l1:0.01", quick=True).to_dict()
    assert json.loads(json.dumps(row)) == row
    assert row["spec"] == "l1:0.01" and row["eps"] == 0.01 and row["points"] == 4
    assert row["methods"]["pgd"] == {"accuracy": 1.0, "points": 4}


def test_an_image_outside_the_ball_does_not_count(monkeypatch):
    model, x, target, *_ = linear(4)
    monkeypatch.setattr(worst_case, "fgsm", lambda m, x, y, eps, **_: (x - 0.5).neg() + 0.5)
    result = evaluate_attack(model, x, target, "linf:1e-9", quick=True)
    assert result.survived.all()  # mirrored images are of the other class, and far away
    assert (model(1 - x).argmax(1) != target).all()


def test_refusals():
    model, x, target, *_ = linear(2)
    for call, message in (
        (lambda: evaluate_attack(model, x[:0], target[:0], "linf:0.1"), "there are no points"),
        (lambda: evaluate_attack(model, x, target, "linf"), "NORM:RADIUS"),
        (
            lambda: evaluate_attack(small(1), x.float(), 0 * target, "linf:1"),
            "needs 2 classes, the model has 1",
        ),
        (lambda: evaluate_attack(model, x, target, "linf:1", batch_size=0), "batch_size"),
        (lambda: evaluate_attack(model, x + 1, target, "linf:1"), r"must lie in \[0, 1\]"),
        (lambda: max_epsilon(model, x, target, eps=[]), "needs a radius"),
        (lambda: max_epsilon(model, x, target, eps=[-0.1]), "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_logits_that_are_not_finite_are_refused_in_any_batch():
    model, x = small(), images(5)
    x[3] = 0.0
    spoiled = nn.Sequential(Spoiled(), model)
    with pytest.raises(ValueError, match="logits for example 3 are not finite"):
        evaluate_attack(spoiled, x, torch.zeros(5).long(), "linf:0.01", batch_size=2)


class Spoiled(nn.Module):
    def forward(self, x):
        return torch.where(x.sum((1, 2, 3), keepdim=True) == 0, math.nan, x)


# Warnings


def names(result):
    return {warning.split(":")[0] for warning in result.warnings}


def of(model, n=24, spec="linf:0.01"):
    x = images(n)
    target = right_targets(model.eval(), x)
    return evaluate_attack(model, x, target, spec, quick=True)


def test_an_honest_model_raises_none():
    assert of(small()).warnings == []


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return torch.nn.functional.dropout(self.inner(x), 0.3, training=True)


class Saturated(nn.Module):
    """Logits so large that the cross entropy is 0 to the bit."""

    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x):
        return 1e6 * self.inner(x)


class Shattered(nn.Module):
    """The right class of a bright image is decided by its mean, which the gradient does not see."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        seen = (100 * x[:, 0, 0, 0]).sin() * 0.1
        return torch.stack(
            [(mean > 0.5).float() + seen, (mean <= 0.5).float() + seen, 0 * seen - 9], 1
        )


def test_random_outputs_are_noticed():
    assert "random-outputs" in names(of(Dropping()))


def test_probabilities_are_noticed():
    assert "probabilities" in names(of(nn.Sequential(small(), nn.Softmax(1))))
    assert "probabilities" not in names(of(nn.Sequential(small(), nn.Sigmoid())))


def test_zero_gradients_are_noticed():
    assert "zero-gradients" in names(of(Saturated()))


def test_gradients_that_mislead_are_noticed():
    found = names(of(Shattered(), n=60, spec="linf:0.05"))
    assert {"black-box-stronger", "huge-eps"} <= found


def test_a_weak_attack_is_noticed(monkeypatch):
    """PGD and APGD that do nothing, where one step is enough."""
    monkeypatch.setattr(worst_case, "pgd", lambda m, x, *_, **__: x)
    monkeypatch.setattr(worst_case, "apgd", lambda m, x, *_, **__: x)
    found = names(of(small(), spec="linf:0.02"))
    assert "single-step-stronger" in found


def test_too_few_steps_are_noticed(monkeypatch):
    for weak in ("pgd", "apgd", "fgsm", "square"):
        monkeypatch.setattr(worst_case, weak, lambda m, x, *_, **__: x)
    assert names(of(small(), spec="linf:0.02")) == {"more-steps-help"}


def test_dlr_is_left_out_with_a_reason():
    result = of(small(2))
    assert "dlr-left-out: the model has 2 classes; DLR needs 3, targeted DLR 4" in result.warnings
    assert "apgd-dlr" not in result.method_accuracy
    result = of(small(3))
    assert "dlr-left-out: the model has 3 classes; targeted DLR needs 4" in result.warnings
    assert "apgd-dlr" in result.method_accuracy


def test_every_warning_has_a_name_and_a_paragraph():
    emitted = set(re.findall(r'f?"([a-z-]+): ', Path(checks.__file__).read_text()))
    emitted |= set(re.findall(r'_stronger\("([a-z-]+)"', Path(checks.__file__).read_text()))
    assert emitted - {"name"} == set(checks.NAMES)
    assert set(re.findall(r"^\*\*`([a-z-]+)`\*\*", DOCS.read_text(), re.MULTILINE)) == set(
        checks.NAMES
    )


# The largest free radius


@pytest.mark.parametrize("name", ["linf", "l2", "fourier"])
def test_the_largest_free_radius_of_a_linear_model(name):
    model, x, target, margin, w = linear(50)
    radius = (margin / dual(name, w[None])).sort().values
    grid = [0.0, *(r.item() * f for r in radius[[2, 10, 30]] for f in (0.97, 1.03))]
    curve = max_epsilon(model, x, target, norm=name, eps=grid, steps=4, cost=0.05)
    expected = [(radius > e).double().mean().item() for e in sorted(grid)]
    assert list(curve.accuracy) == pytest.approx(expected)
    allowed = [e for e, a in zip(sorted(grid), expected, strict=True) if 1 - a <= 0.05]
    assert curve.max_epsilon == max(allowed) and curve.norm == name
    assert json.loads(json.dumps(curve.to_dict()))["eps"] == sorted(grid)


def test_the_curve_never_rises_and_starts_at_the_clean_accuracy():
    model, x = small().eval(), images(20)
    target = right_targets(model, x)
    target[0] = (target[0] + 1) % 5
    lines: list[str] = []
    curve = max_epsilon(
        model,
        x,
        target,
        eps=[0.004, 0, 0.001, 0.002, 0.001],
        steps=5,
        batch_size=6,
        progress=lines.append,
    )
    assert curve.eps == (0, 0.001, 0.002, 0.004)
    assert curve.accuracy[0] == curve.clean_accuracy == 0.95
    assert list(curve.accuracy) == sorted(curve.accuracy, reverse=True)
    assert curve.accuracy[-1] < curve.accuracy[0] and len(lines) == 4


def test_a_larger_radius_starts_where_the_smaller_one_ended(monkeypatch):
    seen = []

    def recorded(model, x, target, eps, *, start, **options):
        seen.append((start, apgd(model, x, target, eps, start=start, **options)))
        return seen[-1][1]

    monkeypatch.setattr(radius, "apgd", recorded)
    model, x = small().eval(), images(3)
    target = right_targets(model, x)
    target[1] = (target[1] + 1) % 5  # lost from the start
    max_epsilon(model, x, target, eps=[1e-6, 2e-6], steps=2)
    assert torch.equal(seen[0][0], x[[0, 2]])
    assert len(seen) == 4  # two losses at two radii
    assert all(
        torch.equal(start, before) for (start, _), (_, before) in zip(seen[1:], seen, strict=False)
    )


def test_the_default_grid_is_that_of_the_thesis():
    assert len(EPS_GRID) == 17
    assert (
        EPS_GRID[0] == 0
        and math.isclose(EPS_GRID[1], 0.5 / 255)
        and math.isclose(EPS_GRID[-1], 8 / 255)
    )


def test_no_free_radius_is_zero():
    model, x, target, margin, w = linear(10)
    huge = 2 * (margin / dual("linf", w[None])).max().item()
    assert max_epsilon(model, x, target, eps=[huge], steps=2).max_epsilon == 0
