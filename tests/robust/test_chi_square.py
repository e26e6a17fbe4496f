"""The chi-square adversary: what it tracks, what its bound says, the edges, and a training run."""

from __future__ import annotations

import math
import warnings
from typing import Any

import cases
import pytest
import torch
from torch import Tensor

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import imbalance, load_images
from hrrl_ext.ops import chi_square_response
from hrrl_ext.robust import ChiSquare, ConceptDistribution, HRRLConfig, HRRLObjective

COUNT = [10, 30, 60]


def batch(losses: list[float], sizes: list[int]) -> tuple[Tensor, Tensor]:
    """ĝ and what seen() says of a batch with so many examples of each concept, all of one loss."""
    concept = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    seen = ChiSquare(COUNT, lam=1.0).seen(concept)
    return seen * torch.tensor(losses, dtype=torch.float64), seen


def test_seen_is_what_losses_of_one_would_give() -> None:
    objective = HRRLObjective(tau=0.0, lam=None, distribution=ChiSquare(COUNT, lam=1.0))
    concept = torch.tensor([2, 0, 2, 2, 1, 0, 2])
    seen = objective.distribution.seen(concept)
    assert seen.tolist() == pytest.approx([2 / 7 / 0.1, 1 / 7 / 0.3, 4 / 7 / 0.6])
    logits = torch.zeros(7, 4, dtype=torch.float64)  # every loss is log 4
    out = objective(logits, torch.zeros(7, dtype=torch.int64), concept)
    torch.testing.assert_close(out.concept_loss, math.log(4) * seen, rtol=1e-14, atol=0.0)
    parts = [objective.distribution.seen(part) * len(part) / 7 for part in concept.split(3)]
    torch.testing.assert_close(torch.stack(parts).sum(0), seen, rtol=1e-14, atol=0.0)
    assert objective.distribution.seen(concept[:0]).tolist() == [0.0] * 3


def test_tracks_the_mean_of_the_last_steps() -> None:
    """By the sums written out: losses over examples, each with the weight of its age; and of the four
    steps, those that are yet to come count as the mean of all."""
    adversary = ChiSquare(COUNT, lam=0.7, rho=0.8, max_weight=2.5, horizon=4)
    steps = [
        ([1.0, 2.0, 0.5], [1, 3, 6]),
        ([0.8, 2.5, 0.4], [3, 2, 5]),
        ([1.3, 0.0, 0.1], [2, 0, 8]),
    ]
    for t in range(1, 4):
        losses, examples = [0.0] * 3, [0.0] * 3
        for age, (loss, sizes) in enumerate(reversed(steps[:t])):
            for k in range(3):
                losses[k] += 0.75**age * sizes[k] * loss[k]
                examples[k] += 0.75**age * sizes[k]
        own = torch.tensor([a / b for a, b in zip(losses, examples, strict=True)]).double()
        overall = sum(losses) / sum(examples)
        mean = overall + (1 - 0.75**t) * (own - overall)
        adversary.update(*batch(*steps[t - 1]))
        torch.testing.assert_close(adversary.mean_loss, mean, rtol=1e-6, atol=0.0)
        expected = chi_square_response(
            adversary.mean_loss, adversary.q0, 0.7, rho=0.8, max_weight=2.5
        )
        assert torch.equal(adversary.q, expected)


def test_how_often_a_concept_was_drawn_is_not_how_hard_it_is() -> None:
    """Of losses that stand still nothing is left of the draw, which ĝ alone takes for losses."""
    told, untold = (ChiSquare(COUNT, lam=1.0, horizon=50) for _ in range(2))
    g, share = cases.generator(0), torch.tensor(COUNT) / 100
    true = torch.tensor([2.0, 1.5, 1.0], dtype=torch.float64)
    for _ in range(60):
        sizes = torch.multinomial(share, 20, replacement=True, generator=g).bincount(minlength=3)
        gain, seen = batch(true.tolist(), sizes.tolist())
        told.update(gain, seen)
        untold.update(gain)
    off = told.mean_loss - told.mean_loss[2]
    torch.testing.assert_close(off, (1 - 0.98**60) * (true - true[2]), rtol=1e-12, atol=1e-15)
    error = (untold.mean_loss - told.mean_loss).abs()
    assert 0.01 < error.max() < 0.5  # unbiased, and noisy
    mean = told.mean_loss - told.q0 @ told.mean_loss
    torch.testing.assert_close(told.weight, 1 + mean, rtol=1e-12, atol=0.0)  # one more per nat


def test_without_seen_it_is_the_mean_of_g() -> None:
    adversary = ChiSquare(COUNT, lam=1.0, horizon=10)
    losses = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    mean = adversary.q0 @ losses
    for t in range(1, 4):
        adversary.update(losses)
        expected = mean + (1 - 0.9**t) * (losses - mean)
        torch.testing.assert_close(adversary.mean_loss, expected, rtol=1e-14, atol=0.0)


def test_a_concept_that_was_not_seen_yet_has_the_mean_of_the_others() -> None:
    adversary = ChiSquare(COUNT, lam=1.0, horizon=1)
    assert adversary.mean_loss.tolist() == [0.0] * 3
    adversary.update(*batch([0.0, 3.0, 1.0], [0, 4, 4]))
    assert adversary.mean_loss.tolist() == pytest.approx([2.0, 3.0, 1.0])
    assert torch.isfinite(adversary.q).all()


def test_the_pressure_fades_with_the_losses() -> None:
    far = []
    for scale in (1.0, 0.1, 0.01):
        adversary = ChiSquare(COUNT, lam=1.0, horizon=1)
        adversary.update(scale * torch.tensor([3.0, 1.0, 0.5]))
        far.append(adversary.distance.item())
    assert far[0] / far[1] == pytest.approx(10.0, rel=1e-6)
    assert far[1] / far[2] == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("settings", [{"lam": 0.0, "rho": 0.5}, {"lam": 1e-6, "max_weight": 3.0}])
def test_no_loss_passes_the_ball_and_the_cap(settings: dict[str, Any]) -> None:
    adversary = ChiSquare(COUNT, horizon=1, **({"max_weight": None} | settings))
    adversary.update(torch.tensor([1e9, 2.0, 1.0]))
    assert adversary.distance <= settings.get("rho", math.inf) * (1 + 1e-12)
    assert adversary.weight.max() <= settings.get("max_weight", math.inf) * (1 + 1e-12)
    assert adversary.effective_concepts > 1.5
    each = adversary.weight.repeat_interleave(torch.tensor(COUNT))  # of every example
    share = (each.mean() ** 2 / each.square().mean()).item()
    if "rho" in settings:  # which binds
        assert share == pytest.approx(1 / (1 + settings["rho"] ** 2))
    else:
        assert share >= 1 / settings["max_weight"]


# --- theory (docs/algorithm.md)


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 0.5, "max_weight": None},
        {"lam": 0.5, "max_weight": 1.5},
        {"lam": 0.1, "rho": 0.4},
        {"lam": 0.0, "rho": 0.4},
    ],
    ids=str,
)
def test_regret_is_at_most_the_error_of_tracking(settings: dict[str, Any]) -> None:
    """What the best q of a step has over ours: at most Σ q0 (δ - mean δ)²/(2λ) with δ = ℓ - m, and just
    that where nothing clips; at most 2ρ √Σ q0 (δ - mean δ)² in a ball."""
    g = cases.generator(3)
    count = torch.randint(5, 200, (12,), generator=g)
    adversary = ChiSquare(count, horizon=20, **settings)
    q0, lam, rho = adversary.q0, adversary.lam, adversary.rho
    walk = 1 + torch.rand(12, generator=g, dtype=torch.float64)
    clipped = 0

    def worth(q: Tensor, loss: Tensor) -> float:
        return (q @ loss - lam / 2 * ((q - q0).square() / q0).sum()).item()

    for _ in range(200):
        walk = (0.99 * walk + 0.1 * torch.randn(12, generator=g, dtype=torch.float64)).clamp(min=0)
        loss = walk + 0.2 * torch.randn(12, generator=g, dtype=torch.float64)
        if adversary.seen_sum.any():
            best = chi_square_response(loss, q0, lam, rho=rho, max_weight=adversary.max_weight)
            regret = worth(best, loss) - worth(adversary.q, loss)
            delta = loss - adversary.mean_loss
            square = (q0 @ (delta - q0 @ delta).square()).item()
            assert regret >= -1e-12
            if lam > 0:
                assert regret <= square / (2 * lam) * (1 + 1e-9)
            if rho is not None:
                assert regret <= 2 * rho * square**0.5 * (1 + 1e-9)
            inner = min(best.min(), adversary.q.min()) > 0
            clipped += not inner
            if inner and rho is None and adversary.max_weight is None:
                assert regret == pytest.approx(square / (2 * lam), rel=1e-6)
        adversary.update(loss)
    assert clipped < 199  # the equality above was looked at


def test_what_is_left_of_tracking_losses_that_stand_still() -> None:
    """(K - 1) σ²/(4 H B λ) with q0 = N_k/N: m_k is a mean of some 2 H B p_k losses of variance σ²."""
    count, true = torch.tensor([20, 60, 120]), torch.tensor([1.0, 1.2, 0.9], dtype=torch.float64)
    sigma, size, horizon, lam = 0.5, 40, 30, 2.0
    adversary = ChiSquare(count, lam=lam, horizon=horizon, max_weight=None)
    share, g = count / count.sum(), cases.generator(1)
    squares = []
    for t in range(6000):
        concept = torch.multinomial(share, size, replacement=True, generator=g)
        losses = true[concept] + sigma * torch.randn(size, generator=g, dtype=torch.float64)
        gain = torch.zeros(3, dtype=torch.float64).index_add_(0, concept, losses) / size / share
        adversary.update(gain, adversary.seen(concept))
        if t > 10 * horizon:
            delta = true - adversary.mean_loss
            squares.append((adversary.q0 @ (delta - adversary.q0 @ delta).square()).item())
    measured = sum(squares) / len(squares) / (2 * lam)
    # Over 190 horizons and 2 directions: some 5 % either way, and 1/(2H) for 1/(2H - 1).
    expected = 2 * sigma**2 / (4 * horizon * size * lam)
    assert measured == pytest.approx(expected, rel=0.2)


# --- edges


def test_losses_that_are_not_finite_leave_everything() -> None:
    def make() -> ChiSquare:
        return ChiSquare(COUNT, lam=1.0, rho=0.5)

    adversary = make()
    adversary.update(torch.tensor([1.0, 2.0, 3.0]))
    before = {name: value.clone() for name, value in adversary.state_dict().items()}
    assert {"q", "q0", "concept_count", "loss_sum", "seen_sum"} == set(before)
    adversary.update(torch.tensor([1.0, math.nan, 3.0]))
    adversary.update(torch.tensor([math.inf, 0.0, 3.0]), torch.ones(3))
    assert all(torch.equal(before[k], v) for k, v in adversary.state_dict().items())
    fresh = make()
    fresh.load_state_dict(before)
    for one in (adversary, fresh):
        one.update(torch.tensor([3.0, 2.0, 1.0]))
    assert torch.equal(adversary.q, fresh.q)


def test_one_concept_and_a_reference_with_a_zero() -> None:
    alone = ChiSquare([7], lam=1.0)
    alone.update(torch.tensor([5.0]))
    assert (alone.q.tolist(), alone.distance.item(), alone.spread.item()) == ([1.0], 0.0, 0.0)
    without = ChiSquare(COUNT, lam=1.0, horizon=1, q0=[0.0, 0.4, 0.6])
    without.update(torch.tensor([9.0, 2.0, 1.0]))
    assert without.q[0] == 0 and without.q[1] > 0.4
    assert without.distance.item() == pytest.approx((0.4 * 0.6**2 + 0.6 * 0.4**2) ** 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": -1.0}, "lam must be finite and not negative, got -1"),
        ({"lam": math.nan}, "lam must be finite"),
        ({"lam": 1.0, "rho": 0.0}, "rho must be positive and finite, got 0"),
        ({"lam": 1.0, "max_weight": 1.0}, "max_weight must be above 1"),
        ({"lam": 1.0, "max_weight": math.inf}, "max_weight must be above 1.*None is without"),
        ({"lam": 0.0, "max_weight": None}, "neither a ball nor a cap"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChiSquare(COUNT, **settings)
    with pytest.raises(ValueError, match=message):
        HRRLConfig(adversary="chi_square", **settings)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="horizon must be at least 1 step, got 0"):
        ChiSquare(COUNT, lam=1.0, horizon=0)
    with pytest.raises(
        ValueError, match=r"rho is the radius of .*got rho=0.5 with adversary='hrrl'"
    ):
        HRRLConfig(rho=0.5)
    with pytest.raises(ValueError, match="with adversary='chi_square' and lam=None"):
        HRRLConfig(adversary="chi_square", rho=0.5, lam=None)
    with pytest.raises(ValueError, match="q0 is what q is held at, and adversary='cvar'"):
        HRRLConfig(adversary="cvar", q0=[0.5, 0.5])


# --- in training

SETTINGS: dict[str, Any] = {
    "concepts": "classes", "adversary": "chi_square", "tau": 0.0, "epochs": 2, "batch_size": 32,
    "width": 4, "crop_padding": 1, "progress": "off",
}  # fmt: skip


def test_in_the_trainer() -> None:
    """Concepts of unequal size. The running sums are over an epoch, or 100 steps."""
    digits = load_images("digits", split="train")
    source = imbalance(digits, digits.target, [1.0, 0.2] * 5, seed=0).subset(range(300))
    trainer = HRRLTrainer(data=source, lam=0.5, **SETTINGS)
    adversary = trainer.objective.distribution
    assert isinstance(adversary, ChiSquare) and adversary.horizon == 100
    result = trainer.fit()
    assert result.last["lam"] == 0.5
    assert result.last["distance"] == pytest.approx(adversary.distance.item())
    assert result.last["distance"] > 0 and 1 < result.last["largest_weight"] <= 4.0
    # In two epochs every example is seen twice, so that the counts end near what was expected.
    assert (adversary.seen_sum / (1 - 0.99**20) - 1).abs().max() < 0.1
    assert not torch.equal(adversary.seen_sum, adversary.seen_sum[:1].expand(10))
    long = HRRLTrainer(data=source, lam=0.5, **(SETTINGS | {"batch_size": 2}))
    assert long.objective.distribution.horizon == len(long.batches) == 150
    assert "s" not in result.last and "c" not in result.last


def test_without_lam_it_is_plain_training() -> None:
    digits = load_images("digits").subset(range(100))
    trainer = HRRLTrainer(data=digits, lam=None, **SETTINGS)
    assert isinstance(trainer.objective.distribution, ConceptDistribution)
    assert trainer.fit().last["largest_weight"] == 1.0


def test_warns_where_it_is_held_too_loosely() -> None:
    digits = load_images("digits").subset(range(200))
    loose = {"lam": 1e-6, "max_weight": None}
    with pytest.warns(
        UserWarning, match=r"q has concentrated .*Raise lam .*, or lower rho or max_w"
    ):
        HRRLTrainer(data=digits, **(SETTINGS | loose)).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HRRLTrainer(data=digits, **(SETTINGS | {"lam": 1.0})).fit()
