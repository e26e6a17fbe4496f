"""Focal loss, logit adjustment, balanced sampling and PGD training, as HRRLTrainer runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.robust import ConceptDistribution

SIZE = [40, 12, 8]  # of the classes; the concepts cut across them
TARGET = torch.arange(3).repeat_interleave(torch.tensor(SIZE))
CONCEPT = (torch.arange(60) % 5 == 0).long()
CONCEPT[TARGET == 2] = 1


def images() -> ArrayImages:
    g = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=g)
    return ArrayImages(pixels, TARGET, classes=list("abc"))


def trainer(**settings: Any) -> HRRLTrainer:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 3))
    defaults = {
        "concepts": CONCEPT, "tau": 0.0, "lam": None, "epochs": 2, "batch_size": 8, "lr": 0.2,
        "momentum": 0.0, "weight_decay": 0.0, "crop_padding": 1, "device": "cpu", "progress": "off",
    }  # fmt: skip
    made = HRRLTrainer(model, data=images(), **(defaults | settings))
    made.model.double()
    return made


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def focal(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return -((1 - p) ** 2) * p.log()


def adjusted(logits: Tensor, target: Tensor) -> Tensor:
    share = torch.tensor(SIZE).double() / 60
    return F.cross_entropy(logits + 1.5 * share.log(), target, reduction="none")


def plain(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none")


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"focal": 2.0}, focal),
        ({"focal": 2.0, "tau": 0.2}, focal),
        ({"logit_adjustment": 1.5}, adjusted),
        ({"logit_adjustment": 1.5, "tau": 0.2, "accumulate": 3}, adjusted),
        ({"sampling": "class"}, plain),
        ({"sampling": "concept", "balance": 0.5, "tau": 0.2}, plain),
        ({"tau": 0.2, "example_steps": 3}, plain),
        ({"tau": 0.2, "example_steps": 2, "focal": 2.0}, focal),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__name__,
)
def test_a_run_is_that_of_plain_code(settings: dict[str, Any], loss: Any) -> None:
    """The plain mean over each batch, drawn as it may be, in float64: no weight is left."""
    ours, its = trainer(**settings), trainer(**settings)
    tau, steps = settings.get("tau", 0.0), settings.get("example_steps", 1)
    for epoch in range(2):
        for x, target, concept in ours.batches.epoch(epoch):
            ours.train_step(x.double(), target, concept)
            delta = torch.zeros_like(x, dtype=torch.float64)
            for _ in range(steps if tau else 0):
                leaf = (x + delta).requires_grad_()
                (grad,) = torch.autograd.grad(loss(its.model(leaf), target).sum(), leaf)
                z = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = delta + min(1, 2.5 / steps) * tau * z
                delta = delta * (tau / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
            its.model.zero_grad()
            loss(its.model(x + delta), target).mean().backward()
            with torch.no_grad():
                for p in its.model.parameters():
                    p.sub_(0.2 * p.grad)
    # log π is kept in float32, and 16 steps carry that on.
    near = 1e-6 if loss is adjusted else 1e-11
    torch.testing.assert_close(weights(ours.model), weights(its.model), rtol=near, atol=near)
    fresh = weights(trainer(**settings).model)
    assert (weights(ours.model) - fresh).norm() > 0.05 * fresh.norm()


@pytest.mark.parametrize("balance", [1.0, 0.5])
@pytest.mark.parametrize("sampling", ["class", "concept"])
def test_shares_of_the_draws_stand_for_those_of_the_data(sampling: str, balance: float) -> None:
    made = trainer(sampling=sampling, balance=balance, lam=5.0)
    distribution = made.objective.distribution
    group = TARGET if sampling == "class" else CONCEPT
    weight = [(group == g).sum().item() ** (1 - balance) for g in group.unique()]
    within = [[(CONCEPT[group == g] == k).double().mean() for g in group.unique()] for k in (0, 1)]
    share = [
        sum(w * part.item() for w, part in zip(weight, parts, strict=True)) / sum(weight)
        for parts in within
    ]
    assert distribution.q0.tolist() == pytest.approx(share, rel=1e-12)
    assert distribution.concept_count.tolist() == pytest.approx([60 * s for s in share], rel=1e-12)
    assert distribution.weight.tolist() == [1.0, 1.0]
    # In the draws themselves: 400 epochs of 60, whose share of concept 0 has an error of
    # √(s (1 - s)/24000) = 0.0032 at most. Four of them.
    drawn = torch.cat([b[2] for epoch in range(400) for b in made.batches.epoch(epoch)])
    assert (drawn == 0).double().mean().item() == pytest.approx(share[0], abs=0.013)


def test_an_adversary_weighs_what_is_drawn() -> None:
    """ĝ of Eq. 6 with the sampler's shares estimates the mean loss of each concept, without a bias."""
    made = trainer(sampling="concept", adversary="group_dro", q0=[0.9, 0.1], batch_size=60)
    made.batches.augment = None  # without crops an image has one loss, whatever the epoch
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    loss = plain(flat(images().images.double() / 255), TARGET)
    mean = torch.stack([loss[k == CONCEPT].mean() for k in (0, 1)])
    outs = []
    for epoch in range(300):
        for x, target, concept in made.batches.epoch(epoch):
            outs.append(made.objective(flat(x.double()), target, concept).concept_loss)
    found = torch.stack(outs)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - mean).abs() < 4 * error).all()
    assert (error < 0.02).all()
    weight = made.objective.distribution.weight
    assert weight.tolist() == pytest.approx([1.8, 0.2])  # q0 over shares of a half each


def test_clusters_are_balanced_once_they_are_found() -> None:
    digits = load_images("digits", split="train").subset(range(100))
    made = HRRLTrainer(
        data=digits, concepts="clusters:4,rounds=2", tau=0.0, lam=None, epochs=1, batch_size=20, width=4,
        crop_padding=0, flip=False, device="cpu", progress="off", sampling="concept",
    )  # fmt: skip
    row = made.fit().last
    distribution = made.objective.distribution
    assert isinstance(distribution, ConceptDistribution)
    size = torch.bincount(made.batches.concept)
    assert len(size) > 1 and size.float().std() > 0  # of other sizes
    assert list(row["concept_count"].values()) == size.tolist()
    assert distribution.q0.tolist() == pytest.approx([1 / len(size)] * len(size), rel=1e-12)


def test_evaluation_takes_the_logits_as_they_are() -> None:
    """All logits 0: class 0 then, with their argmax, while training sees class 2, the most frequent one."""
    frequent = images().subset(TARGET.flip(0).argsort(stable=True))
    frequent = ArrayImages(frequent.images, 2 - TARGET, classes=list("abc"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    made = HRRLTrainer(
        model, data=frequent, validation=frequent, concepts="classes", tau=0.0, lam=None, batch_size=60,
        logit_adjustment=1.0, device="cpu", progress="off",
    )  # fmt: skip
    assert made.recipe.evaluate(model)["accuracy"] == pytest.approx(8 / 60)
    (batch,) = made.batches.epoch(0)
    out = made.objective(model(batch[0]), *batch[1:])
    share = torch.tensor([8.0, 12.0, 40.0]) / 60
    torch.testing.assert_close(out.example_loss, -share.log()[batch[1]])


def test_one_concept_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match="sampling='concept' has nothing to balance"):
        trainer(concepts=torch.zeros(60, dtype=torch.int64), sampling="concept")


def test_a_class_without_an_image_has_no_share() -> None:
    data = ArrayImages(images().images, TARGET, classes=list("abcd"))
    settings = {"data": data, "concepts": CONCEPT, "lam": None, "width": 4, "device": "cpu"}
    with pytest.raises(ValueError, match="got 0 for class 3: logit_adjustment takes the logarithm"):
        HRRLTrainer(**settings, logit_adjustment=1.0)
    HRRLTrainer(**settings, sampling="class")
