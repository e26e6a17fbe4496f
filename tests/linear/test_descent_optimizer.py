"""SteepestDescent: against torch's SGD, against `descend`, over groups, and in a training run."""

from __future__ import annotations

import pytest
import torch
from problems_linear import noise_rows
from torch import nn
from torch.testing import assert_close

from hrrl_ext import HRRLTrainer, resnet18
from hrrl_ext.linear import SteepestDescent, descend, linear_risk
from hrrl_ext.norms import vector_norm


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))


def gradients(model: nn.Module) -> None:
    x = torch.arange(8.0).view(2, 4) / 8 - 0.4
    model(x).square().sum().backward()


def test_l2_is_plain_sgd() -> None:
    ours, theirs = network(), network()
    for model, kind in ((ours, SteepestDescent), (theirs, torch.optim.SGD)):
        optimizer = kind(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            gradients(model)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "l1.5", "fourier-l1", "fourier-linf"])
def test_a_step_is_steepest_over_all_parameters(norm: str, normalised: bool) -> None:
    """R-T1: of length lr (times ‖g‖*) in the norm, and it gains what no other direction does."""
    model = network()
    gradients(model)
    before = [p.detach().clone() for p in model.parameters()]
    g = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    half = len(before) // 2  # two groups, one vector
    params = list(model.parameters())
    optimizer = SteepestDescent(
        [{"params": params[:half]}, {"params": params[half:]}], 0.5, norm, normalised
    )
    optimizer.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    measure = vector_norm(norm)
    scale = 0.5 if normalised else 0.5 * measure.dual.size(g)
    assert_close(measure.size(moved), torch.as_tensor(scale), rtol=1e-4, atol=1e-6)
    assert_close((g * moved).sum(), scale * measure.dual.size(g), rtol=1e-4, atol=1e-6)
    if norm == "l1":
        assert (moved != 0).sum() == 1


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_on_a_linear_model_it_is_descend(norm: str) -> None:
    rows = noise_rows(4, 6)
    w = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = SteepestDescent([w], lr=0.2, norm=norm)
    for _ in range(20):
        optimizer.zero_grad()
        torch.exp(-rows @ w).mean().backward()
        optimizer.step()
    went = descend(linear_risk(rows), rows.new_zeros(1, 6), norm, lr=0.2, steps=20, rule="constant")
    assert_close(w.detach(), went.w[0, 0])


def test_a_groups_lr_scales_its_part() -> None:
    a, b, still = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = SteepestDescent(
        [{"params": [a], "lr": 1.0}, {"params": [b, still]}], lr=0.1, norm="linf", normalised=True
    )
    assert optimizer.step(lambda: 7.0) == 7  # without gradients nothing moves
    a.grad, b.grad = torch.tensor([3.0, -1.0]), torch.tensor([-2.0, 0.0])
    optimizer.step()
    assert a.tolist() == [-1, 1] and b.tolist() == pytest.approx([0.1, 0]) and not still.any()


def test_half_precision_is_computed_in_float32() -> None:
    """‖g‖₁ of 5,000 entries: bfloat16 would lose most of them."""
    p = nn.Parameter(torch.zeros(5000, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    SteepestDescent([p], lr=1e-3, norm="linf").step()
    assert_close(p.detach().float(), torch.full((5000,), -5.0))


def test_it_trains_a_network_by_name() -> None:
    torch.manual_seed(0)
    history = (
        HRRLTrainer(
            resnet18(10, stem="small", width=4), data="digits", concepts="classes", tau=0.0, epochs=2,
            batch_size=128, lr=1e-3, weight_decay=0.0, device="cpu", progress="off",
            optimizer="hrrl_ext.linear.SteepestDescent",
            optimizer_options={"norm": "linf", "normalised": True},
        )
        .fit()
        .history
    )  # fmt: skip
    assert history[1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": -1.0}, "lr must be at least 0"), ({"norm": "l0"}, "norm 'l0' is not known")],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SteepestDescent([nn.Parameter(torch.zeros(1))], **settings)  # type: ignore[arg-type]


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse gradients"):
        SteepestDescent(table.parameters()).step()
