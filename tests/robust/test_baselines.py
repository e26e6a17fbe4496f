"""Group DRO and CVaR against their definitions, at the edges, and in a training run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.robust import ConceptDistribution, CVaR, GroupDRO, HRRLObjective

COUNT = [10, 30, 60]


def test_group_dro_is_the_papers_update() -> None:
    dro = GroupDRO(COUNT, eta_q=0.3, adjustment=2.0)
    q = [1 / 3] * 3
    losses = torch.tensor([[1.0, 0.5, 2.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    for loss in losses.tolist():
        dro.update(torch.tensor(loss))
        raised = [
            q_k * math.exp(0.3 * (g + 2.0 / math.sqrt(n)))
            for q_k, g, n in zip(q, loss, COUNT, strict=True)
        ]
        q = [value / sum(raised) for value in raised]
    assert dro.q.tolist() == pytest.approx(q, rel=1e-12)


def test_group_dro_neither_overflows_nor_loses_a_concept_for_good() -> None:
    dro = GroupDRO([1, 1], eta_q=1.0)
    dro.update(torch.tensor([5000.0, 0.0]))
    assert dro.q.tolist() == [1.0, 0.0]
    dro.update(torch.tensor([0.0, 5001.0]))
    assert dro.q[1].item() == pytest.approx(1 / (1 + math.exp(-1)))


def worst_mixture(loss: Tensor, alpha: float) -> float:
    """max Σ q ℓ over the polytope, by its corners: all entries but one at a bound."""
    most = torch.tensor(COUNT).double() / sum(COUNT) / alpha
    best = -math.inf
    for full in itertools.product([0.0, 1.0], repeat=3):
        for free in range(3):
            q = torch.tensor(full, dtype=torch.float64) * most
            q[free] = 0
            q[free] = 1 - q.sum()
            if -1e-12 <= q[free] <= most[free] + 1e-12:
                best = max(best, (q @ loss).item())
    return best


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.61, 1.0])
def test_cvar_is_the_maximum(alpha: float) -> None:
    torch.manual_seed(0)
    for loss in torch.rand(20, 3, dtype=torch.float64):
        cvar = CVaR(COUNT, alpha=alpha, momentum=0.0)
        cvar.update(loss)
        assert cvar.q.sum().item() == pytest.approx(1)
        assert (cvar.q <= cvar.q0 / alpha + 1e-12).all()
        assert (cvar.q @ loss).item() == pytest.approx(worst_mixture(loss, alpha), abs=1e-9)
    if alpha == 1.0:
        torch.testing.assert_close(cvar.q, cvar.q0)


def test_cvar_ranks_by_a_running_mean() -> None:
    cvar = CVaR([1, 1], alpha=0.5, momentum=0.9)
    for loss in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.2]):
        cvar.update(torch.tensor(loss))
    assert cvar.q.tolist() == [1.0, 0.0]  # one surprise is not enough


@pytest.mark.parametrize("make", [lambda: GroupDRO(COUNT), lambda: CVaR(COUNT)])
def test_losses_that_are_not_finite_leave_q(make) -> None:
    adversary = make()
    adversary.update(torch.tensor([1.0, 2.0, 3.0]))
    before = {name: value.clone() for name, value in adversary.state_dict().items()}
    adversary.update(torch.tensor([1.0, math.nan, 3.0]))
    adversary.update(torch.tensor([math.inf, 0.0, 3.0]))
    assert all(torch.equal(before[k], v) for k, v in adversary.state_dict().items())
    fresh = make()
    fresh.load_state_dict(before)
    for one in (adversary, fresh):
        one.update(torch.tensor([3.0, 2.0, 1.0]))
    assert torch.equal(adversary.q, fresh.q)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupDRO(COUNT, eta_q=0.0), "eta_q must be positive"),
        (lambda: GroupDRO(COUNT, adjustment=-1.0), "adjustment must be finite"),
        (lambda: CVaR(COUNT, alpha=0.0), "alpha must lie in"),
        (lambda: CVaR(COUNT, momentum=1.0), "momentum must lie in"),
        (lambda: CVaR([1, 0]), "concept_count must be positive"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("adversary", ["group_dro", "cvar"])
def test_one_word_changes_the_objective(adversary: str) -> None:
    digits = load_images("digits").subset(range(120))
    trainer = HRRLTrainer(
        data=digits, concepts="classes", tau=0.0, epochs=2, batch_size=32, width=4, crop_padding=1,
        adversary=adversary, eta_q=0.1, progress="off",
    )  # fmt: skip
    result = trainer.fit()
    distribution = trainer.objective.distribution
    assert not isinstance(distribution, ConceptDistribution)
    assert distribution.q.sum().item() == pytest.approx(1)
    assert result.last["effective_concepts"] < 9.9


def test_in_a_loop_of_ones_own() -> None:
    objective = HRRLObjective(tau=0.0, lam=None, distribution=GroupDRO(COUNT, q0=[0.1, 0.3, 0.6]))
    logits, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    out = objective(logits, target, torch.tensor([0, 1, 2, 0, 1, 2]))
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(out.loss, expected)  # at q0 = N_k/N
    objective.update(out.concept_loss)
    assert not torch.equal(objective.distribution.q, objective.distribution.q0)
