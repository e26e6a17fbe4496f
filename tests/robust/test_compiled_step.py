"""The losses of a step under torch.compile: one graph, the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hrrl_ext.robust import ClassificationLoss, HRRLObjective

X = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
CONCEPT = TARGET % 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": "batch"},
        {"batch_norm": "running"},
        {"steps": 3, "loss": ClassificationLoss(focal=2.0)},
        {"loss": ClassificationLoss(logit_adjustment=1.0, class_count=[5, 4, 3, 2, 1])},
    ],
    ids=str,
)
def test_one_graph_with_the_numbers_of_the_plain_step(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    found = []
    for compiled in (False, True):
        model = copy.deepcopy(plain)
        objective = HRRLObjective([3, 4], tau=0.3, lam=2.0, **settings)

        def losses(model=model, objective=objective):
            out = objective(model(objective.perturb(model, X, TARGET)), TARGET, CONCEPT)
            objective.update(out.concept_loss)
            return out.loss, out.concept_loss

        torch._dynamo.reset()
        # aot_eager traces and differentiates as inductor does, and generates no code: seconds less.
        run = torch.compile(losses, fullgraph=True, backend="aot_eager") if compiled else losses
        loss, concept_loss = run()
        loss.backward()
        grads = [p.grad for p in model.parameters()]
        assert all(g is not None for g in grads)
        found.append([loss, concept_loss, objective.distribution.q, *model.buffers(), *grads])
    # Rounding of float32; a step without the perturbation differs in the second digit.
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    unmoved = HRRLObjective([3, 4], tau=0.0, lam=2.0, loss=settings.get("loss"))(
        plain(X), TARGET, CONCEPT
    ).loss
    assert unmoved.item() < 0.99 * found[1][0].item()
