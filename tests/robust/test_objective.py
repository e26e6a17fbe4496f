"""HRRLObjective in a loop of one's own: Algorithm 1 by hand, ERM as a special case, the theorems."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext.robust import HRRLObjective

N, CLASSES, FEATURES = 90, 4, 12
COUNT = [60, 20, 10]


def data() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(N, FEATURES, generator=g, dtype=torch.float64)
    target = torch.randint(CLASSES, (N,), generator=g)
    return x, target, torch.arange(3).repeat_interleave(torch.tensor(COUNT))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()


def train(model: nn.Module, objective: HRRLObjective, steps: int) -> list[float]:
    x, target, concept = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-3)
    g, losses = torch.Generator().manual_seed(2), []
    for _ in range(steps):
        i = torch.randint(N, (32,), generator=g)
        perturbed = objective.perturb(model, x[i], target[i])
        out = objective(model(perturbed), target[i], concept[i])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        objective.update(out.concept_loss)
        losses.append(out.loss.item())
    return losses


def train_erm(model: nn.Module, steps: int) -> list[float]:
    x, target, _ = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-3)
    g, losses = torch.Generator().manual_seed(2), []
    for _ in range(steps):
        i = torch.randint(N, (32,), generator=g)
        loss = F.cross_entropy(model(x[i]), target[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "objective",
    [
        HRRLObjective(COUNT, tau=0.0, lam=None),
        HRRLObjective(COUNT, tau=0.0, lam=1e12),  # λ → ∞
    ],
    ids=["lam=None", "lam=1e12"],
)
def test_without_both_levels_it_is_erm(objective: HRRLObjective) -> None:
    """Every weight is exactly 1; what is left between the two runs is the rounding of exp in float64,
    over 200 steps with momentum."""
    ours, plain = network(), network()
    torch.testing.assert_close(
        train(ours, objective, 200), train_erm(plain, 200), rtol=1e-9, atol=0
    )
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    if objective.distribution.lam is None:
        assert objective.distribution.weight.tolist() == [1.0] * 3


def test_one_concept_is_erm_to_the_bit() -> None:  # the same operator, weight 1 in both
    runs = []
    for objective in (
        HRRLObjective(COUNT, tau=0.0, lam=None),
        HRRLObjective([N], tau=0.0, lam=0.5),
    ):
        model = network()
        x, target, concepts = data()
        concept = concepts if len(objective.distribution.q) > 1 else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            out = objective(model(x), target, concept)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            objective.update(out.concept_loss)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_five_steps_of_algorithm_1_by_hand() -> None:
    """A linear model, everything in Python floats: softmax, both gradients, the projection."""
    tau, lam, s, c, lr, gamma = 0.05, 2.0, 2, 3.0, 0.2, 1e-2
    x, target, concept = (t[:: N // 9][:9] for t in data())
    model = nn.Linear(FEATURES, CLASSES, bias=False).double()
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(3))
    w = [row[:] for row in model.weight.tolist()]
    count = torch.bincount(concept, minlength=3)
    objective = HRRLObjective(count, tau=tau, lam=lam, s=s, c=c)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=gamma)
    share = [int(n) / 9 for n in count]
    q = share[:]

    def softmax(v: list[float]) -> list[float]:
        z = [math.fsum(a * b for a, b in zip(row, v, strict=True)) for row in w]
        e = [math.exp(value - max(z)) for value in z]
        return [value / math.fsum(e) for value in e]

    for t in range(1, 6):
        perturbed = objective.perturb(model, x, target)
        out = objective(model(perturbed), target, concept)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        objective.update(out.concept_loss)

        grad = [[gamma * v for v in row] for row in w]
        gain = [0.0] * 3
        for v, y, k in zip(x.tolist(), target.tolist(), concept.tolist(), strict=True):
            p = softmax(v)
            slope = [
                math.fsum(w[j][f] * (p[j] - (j == y)) for j in range(CLASSES))
                for f in range(FEATURES)
            ]
            length = math.sqrt(math.fsum(g * g for g in slope))
            v = [a + tau * g / length for a, g in zip(v, slope, strict=True)]
            p = softmax(v)
            gain[k] += -math.log(p[y]) / share[k] / 9
            for j in range(CLASSES):
                for f in range(FEATURES):
                    grad[j][f] += q[k] / share[k] / 9 * (p[j] - (j == y)) * v[f]
        w = [[a - lr * g for a, g in zip(*rows, strict=True)] for rows in zip(w, grad, strict=True)]
        eta = 1 / (c * lam * t) if t <= s else 1 / (lam * t)
        v = [a + eta * (g - lam * (a - b)) for a, g, b in zip(q, gain, share, strict=True)]
        for size in (3, 2, 1):  # the largest support that stays positive
            top = sorted(v, reverse=True)[:size]
            nu = (sum(top) - 1) / size
            if top[-1] > nu:
                break
        q = [max(value - nu, 0.0) for value in v]

        torch.testing.assert_close(
            model.weight.detach(), torch.tensor(w).double(), rtol=0, atol=1e-6
        )
        assert model.weight.tolist() == [pytest.approx(row, abs=1e-13) for row in w]
        assert objective.distribution.q.tolist() == pytest.approx(q, abs=1e-13)


@pytest.mark.parametrize("theorem", [1, 2])
def test_theorems_1_and_2_bound_the_worst_example(theorem: int) -> None:
    """max_x̂ ℓ(x̂) - λ_w/2 ‖x̂ - x‖² <= ℓ(x̃) + ‖∇ℓ(x̃)‖² / (2 (λ_w - L_x)) - α for logistic loss.

    The maximum lies on the line through x along θ, where it is searched on a grid. τ and α are those
    of the theorem; theorem 1 is τ = 0.
    """
    g = torch.Generator().manual_seed(theorem)
    for _ in range(100):
        theta = torch.randn(5, generator=g, dtype=torch.float64)
        x = torch.randn(5, generator=g, dtype=torch.float64)
        smooth = (theta @ theta).item() / 4
        lam_w = smooth * (1 + 3 * torch.rand((), generator=g).item())

        def loss(v: Tensor, theta: Tensor = theta) -> Tensor:
            return F.softplus(-(v @ theta))

        slope = -torch.sigmoid(-(x @ theta)) * theta
        along = torch.linspace(-40, 40, 20001, dtype=torch.float64) / theta.norm()
        worst = (loss(x - along[:, None] * theta) - lam_w / 2 * (along * theta.norm()) ** 2).max()
        tau = slope.norm() / (3 * smooth) if theorem == 2 else 0.0
        alpha = (
            lam_w / (lam_w - smooth) * slope.square().sum() / (6 * smooth) if theorem == 2 else 0.0
        )
        moved = x + tau * slope / slope.norm()
        at = torch.sigmoid(-(moved @ theta)) * theta.norm()
        bound = loss(moved) + at**2 / (2 * (lam_w - smooth)) - alpha
        assert worst <= bound + 1e-12


def test_unbiased_gradient_of_the_model() -> None:
    """The weighted gradient averaged over a partition of the data into batches is the full one."""
    x, target, concept = data()
    objective = HRRLObjective(COUNT, tau=0.0, lam=1.0)
    objective.distribution.q.copy_(torch.tensor([0.2, 0.5, 0.3]))
    model = network()
    loss = sum(
        objective.distribution.q[k] * F.cross_entropy(model(x[concept == k]), target[concept == k])
        for k in range(3)
    )
    full = torch.autograd.grad(loss, list(model.parameters()))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5)).view(9, 10)
    parts = [
        torch.autograd.grad(
            objective(model(x[i]), target[i], concept[i]).loss, list(model.parameters())
        )
        for i in order
    ]
    for j, expected in enumerate(full):
        mean = torch.stack([part[j] for part in parts]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-14)


def test_both_passes_use_the_same_smoothing() -> None:
    objective = HRRLObjective(COUNT, tau=0.1, lam=None, label_smoothing=0.2)
    assert objective.perturbation.loss is objective.loss
    x, target, concept = data()
    logits = network()(x)
    expected = F.cross_entropy(logits, target, label_smoothing=0.2)
    torch.testing.assert_close(objective(logits, target, concept).loss, expected)


def test_concepts_are_asked_for() -> None:
    x, target, _ = data()
    with pytest.raises(ValueError, match="concept is needed: there are 3 concepts"):
        HRRLObjective(COUNT, tau=0.0, lam=1.0)(network()(x), target)
    assert HRRLObjective(tau=0.1, lam=None)(network()(x), target).concept_loss.shape == (1,)
