"""Norms: steepest steps attain the dual norm, projections land in the ball and the box."""

from __future__ import annotations

import math

import pytest
import torch
from attack_cases import BALLS, NORMS, generator, images
from torch.testing import assert_close

from hrrl_ext.evaluation.attacks import FourierLinf, find_norm, parse_threat, random_start
from hrrl_ext.norms import Ball


def gradients(n=7, size=6):
    return torch.randn(n, 3, size, size, generator=generator(3))


def full_dft(delta):
    """By the definition: a matrix product in float64, all frequencies."""
    n = delta.shape[2]
    k = torch.arange(n, dtype=torch.float64)
    f = torch.exp(-2j * math.pi * k[:, None] * k / n) / math.sqrt(n)
    return f @ delta.to(torch.complex128) @ f.T


def sizes(name, delta):
    d = delta.double().flatten(1)
    if name == "linf":
        return d.abs().amax(1)
    if name in ("l1", "l2"):
        return d.norm(p=int(name[1]), dim=1)
    return full_dft(delta).abs().flatten(1).amax(1)


def dual(name, g):
    """sup of ⟨g, d⟩ over ‖d‖ ≤ 1, in closed form."""
    g = g.double()
    if name == "linf":
        return g.abs().sum((1, 2, 3))
    if name == "l2":
        return g.flatten(1).norm(dim=1)
    if name == "l1":
        return g.abs().amax((1, 2, 3))
    return (full_dft(g).abs() * band(name, g.shape[2])).sum((1, 2, 3))


def band(name, n):
    f = torch.tensor([min(i, n - i) / n for i in range(n)])
    low = f[:, None] ** 2 + f**2 <= 0.25**2
    return {"fourier": torch.ones(n, n), "fourier-low": low, "fourier-high": ~low}[name].double()


def free(delta):
    """A box that is never reached."""
    return torch.full_like(delta, -1e3), torch.full_like(delta, 1e3)


@pytest.mark.parametrize("size", [1, 2, 5, 6])  # one frequency, Nyquist and DC alone, odd, even
@pytest.mark.parametrize("name", BALLS)
def test_the_steepest_step_gains_the_dual_norm(name, size):
    g = gradients(size=size)
    step = NORMS[name].move(torch.zeros_like(g), g, 0.3, *free(g))
    gain = (step.double() * g.double()).sum((1, 2, 3))
    assert_close(gain, 0.3 * dual(name, g), rtol=1e-5, atol=1e-6)  # sums in float32
    assert (sizes(name, step) <= 0.3 * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", BALLS)
def test_sizes_are_those_of_the_definition(name):
    d = gradients()
    if name.startswith("fourier-"):  # outside the band 1 % of eps is what is allowed
        d = NORMS[name].move(torch.zeros_like(d), d, 0.7, *free(d))
    assert_close(NORMS[name].size(d).double(), sizes(name, d), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", BALLS)
def test_the_scale_of_a_gradient_does_not_matter(name, scale):
    g = gradients()
    expected = NORMS[name].move(torch.zeros_like(g), g, 1.0, *free(g))
    step = NORMS[name].move(torch.zeros_like(g), g * scale, 1.0, *free(g))
    assert_close(step, expected, rtol=1e-3, atol=1e-4)  # g * scale is rounded


@pytest.mark.parametrize("name", BALLS)
def test_a_zero_gradient_moves_nothing(name):
    delta = gradients()
    assert torch.equal(NORMS[name].move(delta, torch.zeros_like(delta), 0.5, *free(delta)), delta)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("name", BALLS)
def test_projections_land_in_both_sets_and_keep_what_is_in_them(name, scale):
    x = images(7)
    ball = Ball.around(x, BALLS[name], NORMS[name])
    z = ball.image(ball.project(scale * gradients()))
    assert ((z >= 0) & (z <= 1)).all()
    assert (NORMS[name].size(z - x) <= BALLS[name] * (1 + 1e-6)).all()
    if "-" not in name:  # another projection also takes back what the box spilled out of a band
        again = ball.image(ball.project(z - x))
        assert_close(again, z, rtol=0, atol=2e-4 * BALLS[name])  # Fourier aims 1e-4 inside


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_projections_are_the_nearest_point(name):
    """⟨v - P(v), y - P(v)⟩ ≤ 0 for every y of both sets (which is what nearest means)."""
    x = images(5)
    ball = Ball.around(x, BALLS[name], NORMS[name])
    v = 0.3 * gradients(5)
    p = ball.project(v).double()
    for seed in range(20):
        y = ball.project(torch.randn(x.shape, generator=generator(seed))).double()
        product = ((v - p) * (y - p)).sum((1, 2, 3))
        assert (
            product <= 1e-5 * ((v - p).flatten(1).norm(dim=1) * (y - p).flatten(1).norm(dim=1))
        ).all()


def test_the_l1_projection_solves_its_equation():
    """Against a bisection in float64 by hand, one example and one pixel after the other."""
    x, v = images(3), 0.2 * gradients(3)
    ball = Ball.around(x, 4.0, NORMS["l1"])
    for p, values, pixels in zip(ball.project(v), v.double(), x.double(), strict=True):
        cap = torch.where(values > 0, 1 - pixels, pixels)
        low, high = 0.0, 10.0
        for _ in range(80):
            middle = (low + high) / 2
            if (values.abs() - middle).clamp(min=0).minimum(cap).sum() > 4.0:
                low = middle
            else:
                high = middle
        expected = (values.abs() - high).clamp(min=0).minimum(cap) * values.sign()
        assert_close(p.double(), expected, rtol=0, atol=1e-5)


def test_an_l1_step_fills_pixels_to_the_end_of_the_box():
    x = torch.full((1, 1, 1, 4), 0.75)
    ball = Ball.around(x, 1.0, NORMS["l1"])
    g = torch.tensor([3.0, -2.0, 1.0, 0.0]).view_as(x)
    step = NORMS["l1"].move(torch.zeros_like(x), g, 1.0, ball.low, ball.high)
    assert step.flatten().tolist() == [0.25, -0.75, 0.0, 0.0]
    step = NORMS["l1"].move(torch.zeros_like(x), g, 1.125, ball.low, ball.high)
    assert step.flatten().tolist() == [0.25, -0.75, 0.125, 0.0]


@pytest.mark.parametrize("name", BALLS)
def test_what_happens_to_an_example_depends_on_it_alone(name):
    x, v = images(4), gradients(4)
    ball = Ball.around(x, BALLS[name], NORMS[name])
    whole = ball.image(ball.move(torch.zeros_like(x), v, BALLS[name]))
    for i in range(4):
        one = Ball.around(x[i : i + 1], BALLS[name], NORMS[name])
        alone = one.image(one.move(torch.zeros_like(x[:1]), v[i : i + 1], BALLS[name]))
        assert_close(alone[0], whole[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_rounding_to_a_storage_type_stays_inside(name, dtype):
    x = images(7, dtype=dtype)
    ball = Ball.around(x, BALLS[name], NORMS[name])
    z = ball.image(ball.move(torch.zeros_like(ball.base), gradients().to(ball.base), 1e3))
    assert z.dtype == dtype
    assert (z != x).any()
    assert ((z >= 0) & (z <= 1)).all()
    # In float64, of what is stored; the ulp of float32 is that of x, at 1.
    assert (sizes(name, z.double() - x.double()) <= BALLS[name] * (1 + 4e-6)).all()


# Fourier


def test_a_perturbation_stays_in_its_band():
    x = images(3, size=8) * 0.5 + 0.25  # away from the box
    for name in ("fourier-low", "fourier-high"):
        z = random_start(x, 0.01, norm=name)
        spectrum = full_dft(z - x).abs()
        outside = band(name, 8) == 0
        assert spectrum[..., outside].max() < 1e-6
        assert spectrum[..., ~outside].min() > 0.0049


def test_the_bands_share_out_all_frequencies():
    g = gradients(size=8)
    low, high, all_of_them = (
        NORMS[n].move(torch.zeros_like(g), g, 1.0, *free(g))
        for n in ("fourier-low", "fourier-high", "fourier")
    )
    assert_close(low + high, all_of_them, rtol=0, atol=1e-5)


def test_a_mask_bounds_each_frequency():
    mask = torch.rand(6, 6, generator=generator())
    mask = (mask + mask.flip((0, 1)).roll((1, 1), (0, 1))) / 2
    norm, g = FourierLinf(mask), gradients()
    step = norm.move(torch.zeros_like(g), g, 0.1, *free(g))
    assert_close(full_dft(step).abs(), 0.1 * mask.double().expand(7, 3, 6, 6), rtol=1e-4, atol=1e-7)
    projected = norm.project(10 * g, 0.1, *free(g))
    assert (full_dft(projected).abs() <= 0.1 * mask.double() * (1 + 1e-5) + 1e-7).all()


def test_the_imaginary_part_that_is_dropped_is_rounding():
    g = gradients(size=6)
    spectrum = full_dft(g)
    step = NORMS["fourier"].move(torch.zeros_like(g), g, 1.0, *free(g))
    f = full_dft(step)
    assert_close(f, spectrum / spectrum.abs(), rtol=0, atol=1e-5)  # hence DC and Nyquist are ±1


def test_refused_masks():
    mask = torch.ones(4, 4)
    mask[0, 1] = 0.5
    with pytest.raises(ValueError, match=r"m_i = m_-i.*at \[0, 1\] it is 0.5, at its mirror 1"):
        FourierLinf(mask)
    mask[0, 3] = 0.5
    FourierLinf(mask)
    for bad, message in (
        (-torch.ones(4, 4), "not negative"),
        (torch.full((4, 4), math.nan), "finite"),
        (torch.ones(4), "must be \\[H, W\\]"),
        ("middle", "'low', 'high' or None"),
    ):
        with pytest.raises(ValueError, match=message):
            FourierLinf(bad)
    with pytest.raises(ValueError, match=r"mask must be \[6, 6\].*got \[4, 4\]"):
        random_start(images(2), 0.1, norm=FourierLinf(mask))


# Names and starts


@pytest.mark.parametrize(
    ("spec", "norm", "eps"),
    [
        ("linf:8/255", "linf", 8 / 255),
        ("l2:0.5", "l2", 0.5),
        ("l1:12", "l1", 12.0),
        ("fourier-low:45/255", "fourier-low", 45 / 255),
        (" fourier:1e-2 ", "fourier", 0.01),
        ("linf:.5/2.", "linf", 0.25),
        ("l2:0", "l2", 0.0),
    ],
)
def test_threats_are_parsed(spec, norm, eps):
    threat = parse_threat(spec)
    assert (threat.norm, threat.eps, threat.spec) == (norm, eps, spec.strip())


@pytest.mark.parametrize(
    "spec",
    ["", "linf", "linf:", "linf:-1", "linf:8/0", "linf:inf", "linf:nan", "linf:1/2/3", "l3:1", "8/255",
     "linf:__import__('os')", "linf:1e999"],
)  # fmt: skip
def test_refused_threats(spec):
    with pytest.raises(ValueError, match=r"NORM:RADIUS|norm 'l3' is not known"):
        parse_threat(spec)


def test_the_nearest_norm_is_named():
    with pytest.raises(ValueError, match=r"norm 'Linf' is not known; did you mean 'linf'\?"):
        find_norm("Linf")


@pytest.mark.parametrize("name", BALLS)
def test_random_starts_come_from_seed_and_index(name):
    x = images(4)
    whole = random_start(x, BALLS[name], norm=name, seed=3)
    part = random_start(x[2:], BALLS[name], norm=name, seed=3, index=[2, 3])
    assert_close(part, whole[2:], rtol=0, atol=1e-6)
    other = random_start(x, BALLS[name], norm=name, seed=4)
    assert ((other != whole).flatten(1).any(1)).all()
    same = random_start(x[:1].expand(4, -1, -1, -1), BALLS[name], norm=name)
    assert len({tuple(z.flatten().tolist()) for z in same}) == 4
    assert (NORMS[name].size(whole - x) <= BALLS[name] * (1 + 1e-6)).all()
    with pytest.raises(ValueError, match="one entry per example, 4, got 2"):
        random_start(x, 0.1, index=[0, 1])
