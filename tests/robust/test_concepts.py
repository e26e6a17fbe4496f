"""ConceptDistribution: Algorithm 1's schedule, its limits, its theory, its state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hrrl_ext import ops
from hrrl_ext.robust import ConceptDistribution, slow_phase_divisor, variance_gain

COUNT = [50, 30, 15, 5]
LOSS = torch.tensor([0.2, 0.5, 1.1, 0.7], dtype=torch.float64)


def test_starts_at_the_data_and_weighs_nothing() -> None:
    d = ConceptDistribution(COUNT, lam=1.0)
    assert d.q.tolist() == [0.5, 0.3, 0.15, 0.05]
    assert d.weight.tolist() == [1.0] * 4  # exactly
    assert d.effective_concepts.item() == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in (0.5, 0.3, 0.15, 0.05)))
    )


def test_follows_algorithm_1_step_by_step() -> None:
    """Against a loop over Python floats, across the end of the slow phase."""
    lam, s, c = 2.0, 3, 4.0
    d = ConceptDistribution(COUNT, lam=lam, s=s, c=c)
    q, q0 = [0.5, 0.3, 0.15, 0.05], [0.5, 0.3, 0.15, 0.05]
    for t in range(1, 8):
        gain = [0.3 * t, 1.0, 2.0 / t, 0.1]
        d.update(torch.tensor(gain, dtype=torch.float64))
        eta = 1 / (c * lam * t) if t <= s else 1 / (lam * t)
        v = [a + eta * (g - lam * (a - b)) for a, g, b in zip(q, gain, q0, strict=True)]
        ordered, total, nu = sorted(v, reverse=True), 0.0, 0.0
        for r, value in enumerate(ordered, start=1):
            total += value
            if value - (total - 1) / r > 0:
                nu = (total - 1) / r
        q = [max(value - nu, 0.0) for value in v]
        assert d.q.tolist() == pytest.approx(q, abs=1e-14), t
    assert d.t == 7


def test_limits_of_lam() -> None:
    firm, loose = ConceptDistribution(COUNT, lam=1e9), ConceptDistribution(COUNT, lam=1e-6, c=1.0)
    for _ in range(50):
        firm.update(LOSS)
        loose.update(LOSS)
    torch.testing.assert_close(firm.q, firm.q0, rtol=0, atol=1e-8)
    assert loose.q.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_tends_to_the_inner_optimum() -> None:
    """q* = P_Δ(q0 + ℓ̄/λ), and no other point of the simplex is better."""
    lam = 3.0
    d = ConceptDistribution(COUNT, lam=lam, s=10, c=2.0)
    for _ in range(400):
        d.update(LOSS)
    best = ops.project_simplex(d.q0 + LOSS / lam)
    torch.testing.assert_close(d.q, best, rtol=0, atol=2e-3)

    def value(q: torch.Tensor) -> float:
        return (q @ LOSS - lam / 2 * (q - d.q0).square().sum()).item()

    for seed in range(200):
        r = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert value(r / r.sum()) <= value(best)


def test_is_a_running_mean_without_clipping() -> None:
    torch.manual_seed(0)
    d, lam = ConceptDistribution(COUNT, lam=50.0, c=1.0), 50.0
    d.q.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))  # forgotten at t = 1
    total = torch.zeros(4, dtype=torch.float64)
    for t in range(1, 20):
        gain = torch.rand(4, dtype=torch.float64)
        total += gain
        d.update(gain)
        expected = ops.project_simplex(d.q0 + total / (lam * t))
        torch.testing.assert_close(d.q, expected, rtol=0, atol=1e-14)


def test_fixed_without_lam_and_with_one_concept() -> None:
    fixed = ConceptDistribution(COUNT, lam=None)
    fixed.update(LOSS)
    assert torch.equal(fixed.q, fixed.q0)
    assert fixed.t == 0
    one = ConceptDistribution([17], lam=0.1)
    one.update(torch.tensor([5.0]))
    assert one.q.tolist() == [1.0]


def test_target_mix_as_q0() -> None:
    """q0 = 0 is legal; with lam = None it gives importance weights N q0_k / N_k."""
    d = ConceptDistribution(COUNT, lam=None, q0=[0.0, 0.2, 0.3, 0.5])
    torch.testing.assert_close(d.weight, torch.tensor([0.0, 2 / 3, 2.0, 10.0]).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_overflow_does_not_poison_q(bad: float) -> None:
    d = ConceptDistribution(COUNT, lam=1.0)
    d.update(LOSS)
    before = d.q.clone()
    d.update(torch.tensor([0.1, bad, 0.1, 0.1]))
    assert torch.equal(d.q, before)
    d.update(LOSS)
    assert torch.isfinite(d.q).all()
    assert d.t == 3


def test_state_survives() -> None:
    a = ConceptDistribution(COUNT, lam=1.0, c="auto")
    a.calibrate([LOSS, 2 * LOSS])
    for _ in range(5):
        a.update(LOSS)
    b = ConceptDistribution([1, 1, 1, 1], lam=1.0, c="auto")
    b.load_state_dict(a.state_dict())
    for d in (a, b):
        d.update(LOSS)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert set(a.state_dict()) == {"concept_count", "q0", "q", "t", "c"}


# --- c and h(s)


def test_c_auto() -> None:
    d = ConceptDistribution(COUNT, lam=0.5, s=1000, c="auto")
    with pytest.raises(RuntimeError, match=r"calibrate\(concept_losses\)"):
        d.update(LOSS)
    fresh = ConceptDistribution(COUNT, lam=0.5, s=1000, c="auto")
    fresh.load_state_dict(d.state_dict())
    with pytest.raises(RuntimeError, match="calibrate"):
        fresh.update(LOSS)
    losses = [LOSS * 40, LOSS * 60]
    mu = d.calibrate(losses)
    assert mu == pytest.approx(math.sqrt((1600 + 3600) / 2) * LOSS.norm().item())
    assert d.c.item() == pytest.approx(mu / 0.5 * math.sqrt(math.log(1000) / 2000))
    assert d.q.tolist() == [0.5, 0.3, 0.15, 0.05]
    assert d.t == 0
    assert d.calibrate([LOSS * 1e-3]) < 1
    assert d.c == 1.0  # never below 1
    for wrong in ([], [torch.full((4,), math.nan)]):
        with pytest.raises(ValueError, match="calibrate"):
            d.calibrate(wrong)
    with pytest.raises(ValueError, match="lam is None"):
        ConceptDistribution(COUNT, lam=None, c="auto").calibrate(losses)


def test_c_is_the_best_divisor() -> None:
    """β(c) = (1 - 1/c) μ² log s / (2λ) - (c - 1) s λ is largest at slow_phase_divisor and is h(s)²."""
    s, mu, lam = 500, 300.0, 1.5

    def beta(c: float) -> float:
        return (1 - 1 / c) * mu**2 * math.log(s) / (2 * lam) - (c - 1) * s * lam

    c = slow_phase_divisor(s, mu, lam)
    assert all(beta(c) > beta(c * f) for f in (0.9, 0.99, 1.01, 1.1))
    assert beta(c) == pytest.approx(variance_gain(s, mu, lam) ** 2)
    assert variance_gain(s, mu, lam) == pytest.approx((c - 1) * math.sqrt(s * lam))
    assert slow_phase_divisor(1000, 170.2, 1.0) == pytest.approx(10.0, abs=0.01)  # the paper's c


@pytest.mark.parametrize(("mu", "best"), [(50, 230), (100, 755), (200, 2550), (500, 13177)])
def test_h_peaks_where_figure_2_says(mu: float, best: int) -> None:
    s = torch.arange(1, 40_000, dtype=torch.float64)
    assert int(s[variance_gain(s, mu, 1.0).argmax()]) == pytest.approx(best, abs=1)


def test_theorem_3_bounds_a_game() -> None:
    """max_q (1/T) Σ L(q, θ_t) - L(q_t, θ_t) stays below the bound, against losses that follow q."""
    lam, s, steps = 0.7, 30, 400
    count = torch.ones(6)
    g = torch.Generator().manual_seed(0)
    losses = [torch.rand(6, generator=g, dtype=torch.float64) * 5 for _ in range(steps)]
    # ‖g_q‖ <= ‖ĝ‖ + λ ‖q - q0‖, and ‖q - q0‖² <= 2 on the simplex
    mu = max(loss.norm().item() for loss in losses) + lam * math.sqrt(2)
    d = ConceptDistribution(count, lam=lam, s=s, c=slow_phase_divisor(s, mu, lam))

    def payoff(q: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        return q @ loss - lam / 2 * (q - d.q0).square().sum()

    played = 0.0
    for loss in losses:
        played += payoff(d.q, loss).item()
        d.update(loss)
    mean = torch.stack(losses).mean(0)
    regret = payoff(ops.project_simplex(d.q0 + mean / lam), mean).item() - played / steps
    gain = variance_gain(s, mu, lam) ** 2
    assert 0 < regret <= (mu**2 / (2 * lam) * (math.log(steps) + 1) - gain) / steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concept_count": []}, r"concept_count must have shape \[K\]"),
        ({"concept_count": [[1, 2]]}, r"got \[1, 2\]"),
        (
            {"concept_count": [3, 0, 2]},
            "concept_count must be positive, got 0 for concept 1.*merge",
        ),
        ({"concept_count": [3, math.nan]}, "got nan for concept 1"),
        ({"lam": 0.0}, "lam must be positive and finite, got 0.0; None switches"),
        ({"lam": -1.0}, "lam must be positive"),
        ({"s": -1}, "s must be a whole number"),
        ({"c": 0.5}, "c must be 'auto' or at least 1"),
        ({"q0": [0.5, 0.5]}, r"q0 must have one entry per concept, shape \[4\], got \[2\]"),
        ({"q0": [0.5, 0.5, 0.5, 0.5]}, "q0 must be a distribution.*sum of 2"),
        ({"q0": [1.5, -0.5, 0.0, 0.0]}, "smallest entry of -0.5"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptDistribution(**({"concept_count": COUNT, "lam": 1.0} | arguments))
