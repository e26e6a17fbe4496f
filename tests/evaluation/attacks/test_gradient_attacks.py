"""FGSM, PGD, APGD and Square: closed forms on linear models, the borrowed model, the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attack_cases import BALLS, NORMS, Linear, binary, generator, images, right_targets, small
from test_attack_norms import dual
from torch import Tensor, nn
from torch.testing import assert_close

from hrrl_ext.evaluation import perturbation_curve
from hrrl_ext.evaluation.attacks import apgd, fgsm, pgd, random_start, square
from hrrl_ext.evaluation.attacks.apgd import _Halving, _Point, checkpoints
from hrrl_ext.evaluation.attacks.losses import (
    attack_loss,
    difference_of_logits_ratio,
    margin,
    targeted_difference_of_logits_ratio,
)
from hrrl_ext.evaluation.attacks.square import _move_mass
from hrrl_ext.norms import Ball

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "fgsm": fgsm,
    "pgd": lambda *a, **k: pgd(*a, steps=4, **k),
    "apgd": lambda *a, **k: apgd(*a, steps=6, **k),
    "square": lambda *a, **k: square(*a, queries=25, **k),
}
EVERY = [(a, n) for a in ATTACKS for n in BALLS if a != "square" or n in ("linf", "l2")]


def cross_entropy(model, x, target):
    with torch.no_grad():
        return F.cross_entropy(model.eval()(x).double(), target, reduction="none")


# Closed forms: on a linear model the worst margin in the ball is margin - eps ‖w‖*


@pytest.mark.parametrize("name", BALLS)
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
def test_one_step_is_exact_on_a_linear_model(attack, name):
    model, w = binary()
    x = 0.4 + 0.2 * images(5, dtype=torch.float64)
    eps = 0.05 if name in ("linf", "l2") else 0.02 if name != "l1" else 0.3
    target = right_targets(model, x)
    sign = 2.0 * target - 1
    before = sign * (w * (x - 0.5)).sum((1, 2, 3))
    one = {} if attack == "fgsm" else {"steps": 1}
    if attack == "apgd" and name == "l1":
        one = {"steps": 50}  # its steps move many pixels at first
    z = {"fgsm": fgsm, "pgd": pgd, "apgd": apgd}[attack](model, x, target, eps, norm=name, **one)
    after = sign * (w * (z - 0.5)).sum((1, 2, 3))
    gain = eps * dual(name, w[None])
    # l2 and l1 aim 1e-6 inside the radius, Fourier 1e-4; a few sparse steps leave 1 %.
    rtol = 1e-2 if attack == "apgd" and name == "l1" else 2e-4
    assert_close(before - after, gain.expand(5), rtol=rtol, atol=0)
    assert (before - after <= gain * (1 + 1e-6)).all()


def test_in_the_box_the_linear_worst_case_is_a_clamp():
    """For linf the maximum over ball and box is known pixel by pixel."""
    model, w = binary()
    x = images(6, dtype=torch.float64)
    target = right_targets(model, x)
    ascent = (1 - 2.0 * target)[:, None, None, None] * w.sign()
    expected = (x + 0.1 * ascent).clamp(0, 1)
    for z in (fgsm(model, x, target, 0.1), apgd(model, x, target, 0.1, steps=5)):
        assert_close(z, expected, rtol=0, atol=1e-12)


def test_pgd_with_one_step_is_fgsm_with_its_step_size():
    model, x = small(), images(5)
    target = right_targets(model.eval(), x)
    for name, eps in BALLS.items():
        step = pgd(model, x, target, eps, norm=name, steps=1, step_size=eps)
        assert torch.equal(step, fgsm(model, x, target, eps, norm=name))


# Losses


def test_losses_against_a_loop():
    logits = torch.randn(9, 5, generator=generator(), dtype=torch.float64)
    target = torch.arange(9) % 5
    towards = (target + 2) % 5
    m, d, t = [], [], []
    for z, y, k in zip(logits.tolist(), target.tolist(), towards.tolist(), strict=True):
        down = sorted(z, reverse=True)
        m.append(z[y] - max(v for j, v in enumerate(z) if j != y))
        d.append(-m[-1] / (down[0] - down[2]))
        t.append(-(z[y] - z[k]) / (down[0] - (down[2] + down[3]) / 2))
    assert_close(margin(logits, target), torch.tensor(m, dtype=torch.float64))
    assert_close(difference_of_logits_ratio(logits, target), torch.tensor(d, dtype=torch.float64))
    targeted = targeted_difference_of_logits_ratio(logits, target, towards)
    assert_close(targeted, torch.tensor(t, dtype=torch.float64))
    scaled = difference_of_logits_ratio(1e6 * logits + 3, target)
    assert_close(scaled, torch.tensor(d, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_cross_entropy_of_the_confident():
    """In float32 against float64, up to the smallest number of float32; of a single class it is flat."""
    rows = torch.tensor([[30.0, 0, -1], [87, 0, 3], [-40, 2, 1], [7, -math.inf, 4]])
    for label in (0, 2):
        found, expected = (
            rows.to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64)
        )
        target = torch.full((len(rows),), label)
        losses = attack_loss("ce", found, target)
        (grad,) = torch.autograd.grad(losses.sum(), found)
        plain = F.cross_entropy(expected, target, reduction="none")
        (plain_grad,) = torch.autograd.grad(plain.sum(), expected)
        assert_close(losses.double(), plain, rtol=1e-5, atol=1e-15)
        others = [j for j in range(3) if j != label]
        assert_close(grad[:, others].double(), plain_grad[:, others], rtol=1e-5, atol=1e-44)
        assert_close(
            grad.sum(1), torch.zeros(len(rows)), rtol=0, atol=1e-6 * grad.abs().max().item()
        )
        assert (grad.sum(1).abs() <= 1e-6 * grad.abs().amax(1)).all()
    alone = torch.tensor([[5.0], [-2.0]], requires_grad=True)
    losses = attack_loss("ce", alone, torch.zeros(2).long())
    assert losses.tolist() == [0, 0]
    assert torch.autograd.grad(losses.sum(), alone)[0].tolist() == [[0], [0]]


def test_dlr_of_equal_logits_is_finite():
    logits = torch.zeros(2, 4, requires_grad=True)
    loss = difference_of_logits_ratio(logits, torch.tensor([0, 3]))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.tolist() == [0, 0]
    assert grad.isfinite().all()


def test_dlr_needs_three_classes_and_targeted_dlr_four():
    x = images(2)
    zeros = torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"apgd: the loss 'dlr' needs 3 classes, the model has 2"):
        apgd(small(2), x, zeros, 0.1, loss="dlr")
    with pytest.raises(ValueError, match="needs 4 classes, the model has 3"):
        apgd(small(3), x, zeros, 0.1, loss="targeted dlr", towards=zeros + 1)
    with pytest.raises(ValueError, match="go together"):
        apgd(small(), x, zeros, 0.1, loss="targeted dlr")
    with pytest.raises(ValueError, match="loss must be one of ce, "):
        pgd(small(), x, zeros, 0.1, loss="mse")


def test_targeted_dlr_goes_where_it_is_sent():
    model, x = small().eval(), images(8)
    target = right_targets(model, x)
    towards = (target + 1) % 5
    z = apgd(model, x, target, 0.5, loss="targeted dlr", towards=towards, steps=30)
    logits, rows = model(z), torch.arange(8)
    assert (logits[rows, towards] > logits[rows, target]).all()


# APGD


def test_checkpoints_are_those_of_the_paper():
    # 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99
    assert checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    assert checkpoints(10) == {3, 5, 6, 7, 8, 9, 10}
    assert checkpoints(1) == {1}


def test_apgd_against_its_definition():
    """linf, one example at a time, every quantity by name; float64, so that nothing is borderline."""
    model, x = small().double().eval(), images(4, dtype=torch.float64)
    target, eps, steps = right_targets(model, x), 0.1, 30
    ours = apgd(model, x, target, eps, steps=steps)

    def look(z, y):
        leaf = z.clone().requires_grad_()
        logits = model(leaf)
        loss = F.cross_entropy(logits, y)
        return loss.item(), torch.autograd.grad(loss, leaf)[0], bool(logits.argmax(1) != y)

    def project(z, x0):
        return z.clamp(x0 - eps, x0 + eps).clamp(0, 1)

    for i in range(4):
        x0, y = x[i : i + 1], target[i : i + 1]
        z, previous, eta, raised, kept, last = x0, x0, 2 * eps, 0, True, 0
        f, g, fooled = look(z, y)
        f_max = f_max_then = f
        top, g_top = z, g
        found = (fooled, f, z)
        for k in range(1, steps + 1):
            ahead = project(z + eta * g.sign(), x0)
            if k > 1:
                ahead = project(z + 0.75 * (ahead - z) + 0.25 * (z - previous), x0)
            previous, z, before = z, ahead, f
            f, g, fooled = look(z, y)
            raised += f > before
            found = max(found, (fooled, f, z), key=lambda one: one[:2])
            if f > f_max:
                f_max, top, g_top = f, z, g
            if k in checkpoints(steps):
                halve = raised < 0.75 * (k - last) or (kept and f_max <= f_max_then)
                if halve:
                    eta, z, f, g = eta / 2, top, f_max, g_top
                kept, raised, last, f_max_then = not halve, 0, k, f_max
        assert_close(ours[i : i + 1], found[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("raises", "improves", "halved_at"),
    [
        ([True], True, []),
        ([True], False, [22, 57, 80, 93]),  # η was kept and the best did not move
        # 17 of 22, 14 of 19 (below 14.25), 12 of 16 (which is 3/4), 10 of 13, 7 of 10, 5 of 7, 5 of 6, 4 of 6
        ([True, True, True, False], True, [41, 80, 87, 99]),
        ([False], True, [22, 41, 57, 70, 80, 87, 93, 99]),
    ],
)
def test_when_a_step_size_halves(raises, improves, halved_at):
    ball = Ball.around(images(1), 0.1, NORMS["linf"])
    rule = _Halving(ball, 100, torch.zeros(1))
    found, expected = [], 2 * 0.1
    for k in range(1, 101):
        up = raises[k % len(raises)]
        top = _Point(ball.base, torch.tensor([float(k if improves else 0)]), ball.base)
        restart = rule.restarts(k, torch.tensor([up]), top)
        if k in checkpoints(100):
            if restart.item():
                found.append(k)
                expected /= 2
            assert rule.length.item() == pytest.approx(expected)
        else:
            assert restart is None
    assert found == halved_at


@pytest.mark.parametrize("name", BALLS)
def test_more_steps_are_no_weaker(name):
    model, x = small().eval(), images(24)
    target = right_targets(model, x)
    eps = BALLS[name] / 4
    losses = [
        cross_entropy(model, attack, target).mean()
        for attack in (
            x,
            fgsm(model, x, target, eps, norm=name),
            apgd(model, x, target, eps, norm=name, steps=40),
        )
    ]
    assert losses[0] < losses[1] < 1.001 * losses[2]


# Square


def test_square_stops_at_the_first_success_and_counts_its_queries():
    class Counting(nn.Module):
        asked = 0

        def forward(self, x):
            self.asked += len(x)
            return torch.stack([x.sum((1, 2, 3)), x.sum((1, 2, 3)) - 1e-3], 1)

    model, x = Counting(), images(3)
    square(model, x, torch.zeros(3).long(), 0.1, queries=7)
    assert model.asked == 3 + 3 * 7  # once to see who is right; nobody can be fooled
    model = Counting()
    already_wrong = torch.ones(3).long()
    assert torch.equal(square(model, x, already_wrong, 0.1, queries=7), x)
    assert model.asked == 3


@pytest.mark.parametrize("name", ["linf", "l2"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_square_uses_the_whole_radius(name, size):
    x = torch.full((4, 3, size, size), 0.5)
    model = Linear(torch.zeros(2, 3 * size * size), torch.tensor([1.0, 0.0]))
    z = square(model, x, torch.zeros(4).long(), 0.1, norm=name, queries=30)
    assert_close(NORMS[name].size(z - x), torch.full((4,), 0.1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("side", [3, 4])
def test_square_spends_what_is_unused_of_an_l2_radius(side):
    """Whatever the windows: what was in both, and what was left of eps², is in the new one."""
    ball = Ball.around(images(6), 0.5, NORMS["l2"])
    delta = 0.02 * torch.randn(ball.x.shape, generator=generator())
    assert (NORMS["l2"].size(delta) < 0.4).all()
    moved = _move_mass(ball, delta, torch.rand(6, 8, generator=generator(4)), side)
    assert_close(NORMS["l2"].size(moved), torch.full((6,), 0.5))
    assert ((moved == 0) & (delta != 0)).flatten(1).any(1).sum() >= 3  # windows may coincide


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_square_lowers_the_margin(name):
    """On a linear model it comes to a good part of the closed form, and never beyond."""
    model, w = binary()
    x = 0.4 + 0.2 * images(4)
    target = torch.ones(4).long()
    huge = Linear(model.weight, model.bias + torch.tensor([-1e3, 1e3]))  # so that it does not stop
    z = square(huge, x, target, 0.1, norm=name, queries=300)
    gain = (w * (x - z)).sum((1, 2, 3)) / (0.1 * dual(name, w[None]))
    assert (gain > (0.5 if name == "linf" else 0.3)).all()
    assert (gain < 1 + 1e-6).all()


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_square_draws_from_seed_and_index(name):
    model, _ = binary()
    x = images(6, dtype=torch.float64)
    target = right_targets(model, x)
    whole = square(model, x, target, 0.01, norm=name, queries=30, seed=5)
    assert torch.equal(whole, square(model, x, target, 0.01, norm=name, queries=30, seed=5))
    for i in range(6):
        alone = square(model, x[[i]], target[[i]], 0.01, norm=name, queries=30, seed=5, index=[i])
        assert torch.equal(alone[0], whole[i])
    assert not torch.equal(whole, square(model, x, target, 0.01, norm=name, queries=30, seed=6))


# Whatever the attack: the ball, the box, the model


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
@pytest.mark.parametrize(("attack", "name"), EVERY)
def test_results_lie_in_the_ball_and_layouts_do_not_matter(attack, name, layout):
    model, x = small(), images(5)
    target = right_targets(model.eval(), x)
    z = ATTACKS[attack](model, x, target, BALLS[name], norm=name)
    assert (z != x).any()
    assert z.dtype == x.dtype and not z.requires_grad
    assert ((z >= 0) & (z <= 1)).all()
    assert (NORMS[name].size(z - x) <= BALLS[name] * (1 + 1e-6)).all()
    other = x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        other = torch.empty(5, 3, 6, 12)[..., ::2].copy_(x)
    again = ATTACKS[attack](model, other, target, BALLS[name], norm=name)
    assert_close(
        cross_entropy(model, again, target), cross_entropy(model, z, target), rtol=0.05, atol=0.02
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("attack", "name"), [(a, n) for a, n in EVERY if not n.startswith("f")])
def test_half_precision_stays_in_the_ball(attack, name, dtype):
    model, x = small().to(dtype), images(3, dtype=dtype)
    target = torch.zeros(3).long()
    z = ATTACKS[attack](model, x, target, BALLS[name], norm=name)
    assert z.dtype == dtype
    assert (NORMS[name].size(z.double() - x.double()) <= BALLS[name] * (1 + 4e-6)).all()
    assert ((z >= 0) & (z <= 1)).all()


def test_fourier_refuses_half_precision():
    with pytest.raises(ValueError, match=r"'fourier' needs float32 images, got torch.float16"):
        pgd(small().half(), images(2).half(), torch.zeros(2).long(), 0.1, norm="fourier")


@pytest.mark.parametrize(("attack", "name"), EVERY)
def test_radius_zero_and_no_examples_return_x(attack, name):
    model, x = small(), images(3)
    assert ATTACKS[attack](model, x, torch.zeros(3).long(), 0.0, norm=name) is x
    empty = ATTACKS[attack](model, x[:0], torch.zeros(0).long(), 0.1, norm=name)
    assert empty.shape == (0, 3, 6, 6)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(attack, fails):
    model, x = small(), images(4)
    target = right_targets(model.eval(), x)
    model.train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.last.weight.grad = torch.ones_like(model.last.weight)
    calls = []

    def hook(*_):
        calls.append(1)
        if fails and len(calls) == 2:
            raise RuntimeError("mid-way")

    handle = model.last.register_forward_hook(hook)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    rng, copy = torch.get_rng_state(), x.clone()
    if fails and attack != "fgsm":  # which asks once
        with pytest.raises(RuntimeError, match="mid-way"):
            ATTACKS[attack](model, x, target, 0.01)
    else:
        fails = False
        ATTACKS[attack](model, x, target, 0.01)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert torch.equal(model.last.weight.grad, torch.ones_like(model.last.weight))
    assert model.conv.weight.grad is None
    assert list(model.last._forward_hooks.values()) == [hook]
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, copy) and not x.requires_grad and torch.is_grad_enabled()
    handle.remove()


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
def test_a_zero_gradient_leaves_the_image(attack):
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)) * 0 + 1, torch.zeros(len(x))], 1)

    x, target = images(3), torch.zeros(3).long()
    for name, eps in BALLS.items():
        assert torch.equal(ATTACKS[attack](Flat(), x, target, eps, norm=name), x)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_a_model_that_cuts_the_graph_has_a_zero_gradient(attack):
    class Cut(nn.Module):
        """Between the images and its parameters."""

        def __init__(self):
            super().__init__()
            self.last = nn.Linear(108, 2)

        def forward(self, x):
            return self.last(x.detach().flatten(1))

    class Without(Cut):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    x = images(3)
    for model in (Cut(), Without()):
        assert torch.equal(ATTACKS[attack](model, x, model(x).argmax(1), 0.1), x)
        curve = perturbation_curve(model, (x, model(x).argmax(1)), [0.0, 3.0])
        assert curve.correct == [3, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_images_with_logits_that_are_not_finite_are_never_returned(attack, value):
    class Breaks(nn.Module):
        def forward(self, x):
            s = x.sum((1, 2, 3))
            return torch.stack([torch.where(s > 55, value, s - 200), -s], 1)

    x = torch.full((2, 3, 6, 6), 0.5)  # a sum of 54; every attack raises it on the way
    z = ATTACKS[attack](Breaks(), x, torch.ones(2).long(), 0.1)
    assert (z.sum((1, 2, 3)) <= 55).all()


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_one_example_that_is_lost_does_not_touch_the_others(attack):
    class Steep(nn.Module):  # sqrt has an infinite gradient at 0
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)), x[:, 0, 0, 0].sqrt() + 100], 1)

    x = images(3)
    x[:, 0, 0, 0] = torch.tensor([0.5, 0.0, 0.5])
    z = ATTACKS[attack](Steep(), x, torch.zeros(3).long(), 0.1, loss="margin")
    assert torch.equal(z[1], x[1])
    assert (z[[0, 2]] != x[[0, 2]]).flatten(1).any(1).all()


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_the_image_that_fools_wins_over_a_higher_loss(attack):
    """Where the cross entropy is highest the model is right; on the way it is wrong."""

    class Hill(nn.Module):
        def forward(self, x):
            s = 10 * (x.mean((1, 2, 3)) - 0.5)  # target logit 0; the others as s grows
            wrong = torch.where((s > 0.2) & (s < 0.5), 0.1, -1.0) + 0.1 * s
            crowd = torch.where(s > 0.5, -0.2, -9.0) + 0.1 * s
            return torch.stack([torch.zeros_like(s), wrong, *[crowd] * 30], 1)

    x = torch.full((1, 3, 6, 6), 0.5)
    target = torch.zeros(1).long()
    kwargs = (
        {"steps": 20, "step_size": 0.005} if attack == "pgd" else {"steps": 60, "start": x + 0.03}
    )
    z = {"pgd": pgd, "apgd": apgd}[attack](Hill(), x, target, 0.099, **kwargs)
    assert Hill()(z).argmax(1).item() == 1
    assert cross_entropy(Hill(), x + 0.06, target) > cross_entropy(Hill(), z, target)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_a_start_is_projected_and_used(attack):
    model, x = small().eval(), images(4)
    target = right_targets(model, x)
    far = torch.ones_like(x)
    z = {"pgd": pgd, "apgd": apgd}[attack](model, x, target, 0.02, steps=1, start=far)
    assert ((z - x).abs() <= 0.02 + 1e-6).all()
    start = random_start(x, 0.02, seed=1)
    assert not torch.equal(ATTACKS[attack](model, x, target, 0.02, start=start),
                           ATTACKS[attack](model, x, target, 0.02))  # fmt: skip
    with pytest.raises(ValueError, match=r"start must have the shape \[4, 3, 6, 6\]"):
        ATTACKS[attack](model, x, target, 0.02, start=far[:1])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": images(2) + 0.1}, ValueError, r"must lie in \[0, 1\]; image 0 holds values from 0.1"),
        ({"x": images(2) * math.nan}, ValueError, "image 0 holds values from nan"),
        ({"x": (images(2) * 255).byte()}, TypeError, r"got torch.uint8; convert"),
        ({"x": images(2)[0]}, ValueError, r"must be images \[N, 3, H, W\]"),
        ({"target": torch.zeros(3).long()}, ValueError, r"target must be \[2\] integers"),
        ({"target": torch.zeros(2)}, ValueError, "float32"),
        ({"target": torch.tensor([0, 5])}, ValueError, r"target must lie in 0..4.*got 5"),
        ({"target": torch.tensor([0, -1])}, ValueError, "must not be negative, got -1"),
        ({"eps": -0.1}, ValueError, "eps must be finite and not negative, got -0.1"),
        ({"eps": math.nan}, ValueError, "eps must be finite"),
        ({"model": nn.Conv2d(3, 5, 3)}, ValueError, r"logits \[2, num_classes\].*got \[2, 5, 4, 4\]"),
        ({"model": nn.Sequential(small(), nn.Threshold(math.inf, math.nan))}, ValueError, "not finite"),
    ],
    ids=range(12),
)  # fmt: skip
def test_refusals(attack, change, error, message):
    call = {"model": small(), "x": images(2), "target": torch.zeros(2).long(), "eps": 0.1} | change
    with pytest.raises(error, match=message):
        ATTACKS[attack](*call.values())


def test_refused_numbers():
    x, target = images(2), torch.zeros(2).long()
    for call in (pgd, apgd):
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            call(small(), x, target, 0.1, steps=0)
    with pytest.raises(ValueError, match="queries must be at least 1"):
        square(small(), x, target, 0.1, queries=0)
    with pytest.raises(ValueError, match="must be linf or l2, got 'l1'"):
        square(small(), x, target, 0.1, norm="l1")


def test_pixels_that_rounding_put_outside_are_clamped():
    x = images(2)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -3e-8, 1 + 1e-7
    z = pgd(small(), x, torch.zeros(2).long(), 0.1)
    assert ((z >= 0) & (z <= 1)).all()
