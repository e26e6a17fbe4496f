"""Mixup: its mixtures, what both players make of them, and training against the lines written out."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext._streams import Draws
from hrrl_ext.data import ArrayImages, Augmentation, AugMix, Batches, Mixup, RandomErasing
from hrrl_ext.losses import ClassificationLoss, Mixed
from hrrl_ext.processes import Processes
from hrrl_ext.robust import HRRLConfig, HRRLObjective
from hrrl_ext.robust.chi_square import ChiSquare

N = 21


def image_set(dtype: torch.dtype = torch.uint8) -> ArrayImages:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (N, 3, 6, 8), generator=g, dtype=torch.uint8)
    return ArrayImages(x if dtype == torch.uint8 else x.to(dtype) / 255, torch.arange(N) % 5)


def batches(**changes: Any) -> Batches:
    settings = {"batch_size": 8, "shuffle": True, "seed": 3, "mixup": Mixup(0.4)} | changes
    return Batches(image_set(), torch.arange(N) % 3, **settings)


def epoch(of: Batches, number: int = 1) -> list[Tensor]:
    """Its columns, whatever the batches were."""
    return [torch.cat(column) for column in zip(*of.epoch(number), strict=True)]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(map(torch.equal, left, right))


# --- mixtures


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_partners(count: int) -> None:
    partner = Mixup().partners(count)
    want = {1: [0], 2: [1, 0], 3: [1, 0, 1], 4: [1, 0, 3, 2]}
    assert partner.tolist() == want.get(count, partner.tolist())
    assert (partner != torch.arange(count)).all() or count == 1
    paired = count - count % 2
    assert torch.equal(partner[partner[:paired]], torch.arange(paired))


def test_batches_are_mixtures_of_their_images_with_the_labels_of_both() -> None:
    augment = {"augment": Augmentation(1), "erasing": RandomErasing(0.5)}
    plain = batches(mixup=None, **augment)
    for got, (x, target, concept) in zip(batches(**augment).epoch(1), plain.epoch(1), strict=True):
        mixture, first, its_concept, share, second, other_concept = got
        partner = Mixup().partners(len(x))
        a = share.view(-1, 1, 1, 1).double()
        want = a * x.double() + (1 - a) * x[partner].double()
        torch.testing.assert_close(mixture.double(), want, rtol=0, atol=2e-7)  # two roundings
        assert equal([first, its_concept, second, other_concept],
                     [target, concept, target[partner], concept[partner]])  # fmt: skip
        assert share.dtype == torch.float32 and ((share >= 0) & (share <= 1)).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_shares_are_those_of_a_beta(alpha: float) -> None:
    """Of mean 1/2 and variance 1/(4(2α + 1)): five standard errors, of a fourth moment of at most 1/16."""
    share = Mixup(alpha).shares(Draws.of_images(torch.arange(20_000), 0)).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 5 * (variance / 20_000) ** 0.5
    assert abs((share - 0.5).square().mean() - variance) < 5 * (1 / 16 / 20_000) ** 0.5


def test_workers_starts_processes_and_even_batch_sizes_do_not_count() -> None:
    settings: dict[str, Any] = {"augmix": AugMix(), "augment": Augmentation(1)}
    whole = list(batches(**settings).epoch(2))
    for got, want in zip(batches(**settings).epoch(2, start=1), whole[1:], strict=True):
        assert equal(list(got), list(want))
    for size, of in ((2, 7), (3, 7), (4, 21)):  # parts that begin between partners, too
        same = settings | {"batch_size": of}
        parts = [epoch(batches(processes=Processes(r, size), **same)) for r in range(size)]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = torch.cat([torch.cat([torch.tensor(Processes(r, size).part(of)) + start
                           for start in range(0, N, of)]) for r in range(size)])  # fmt: skip
        assert equal([column[order.argsort()] for column in columns], epoch(batches(**same)))
    erased = {"erasing": RandomErasing(0.5)}
    assert equal(epoch(batches(**erased)), epoch(batches(**erased, batch_size=2)))
    assert equal(epoch(batches(**erased)), epoch(batches(**erased, batch_size=14)))
    assert not equal(epoch(batches(), 0), epoch(batches(), 1))


def test_an_image_that_comes_again_is_erased_anew() -> None:
    images = ArrayImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1])
    images = images.subset([0, *[1] * 30])
    of = Batches(
        images, images.target, 31, shuffle=True, sampling="class", erasing=RandomErasing(1.0)
    )
    x, target, _ = next(of.epoch(0))
    assert (target == 0).sum() > 8  # 1 image, drawn some 15 times
    assert len(x[target == 0].unique(dim=0)) == (target == 0).sum()


def test_copies_of_an_image_are_erased_alike() -> None:
    erase = {"erasing": RandomErasing(1.0), "mixup": None}
    plain, mixed = (
        next(batches(augmix=AugMix(), mixtures=2, **settings).epoch(0))
        for settings in (erase | {"erasing": None}, erase)
    )
    keys = next(iter(batches(mixup=None, augmix=None)._order(0).split(8)))
    box = RandomErasing(1.0).boxes(Draws.of_images(keys, 3, "erasing", 0), 6, 8)
    for before, after in zip((plain[0], *plain[3:]), (mixed[0], *mixed[3:]), strict=True):
        for n, (top, left, h, w) in enumerate(box.tolist()):
            kept = torch.ones(6, 8, dtype=torch.bool)
            kept[top : top + h, left : left + w] = False
            assert h and torch.equal(before[n][:, kept], after[n][:, kept])
            assert not torch.equal(before[n][:, ~kept], after[n][:, ~kept])


# --- both players


def labels(batch: int = 12, classes: int = 5, concepts: int = 3) -> tuple[Mixed, Mixed]:
    g = torch.Generator().manual_seed(2)
    share = torch.rand(batch, generator=g)
    share[:3] = torch.tensor([0.0, 1.0, 0.5])
    draw = [torch.randint(k, (2, batch), generator=g) for k in (classes, concepts)]
    target, concept = (Mixed(first, second, share) for first, second in draw)
    return target, concept


@pytest.mark.parametrize("focal", [0.0, 2.0])
def test_the_loss_of_mixtures_against_a_loop(focal: float) -> None:
    target, concept = labels()
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = ClassificationLoss(focal=focal, logit_adjustment=0.5, class_count=[4, 3, 2, 2, 1])
    q, count = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([6, 2, 4])
    ours = logits.clone().requires_grad_()
    out = loss.weighted(ours, target, concept, q, count)
    theirs = logits.clone().requires_grad_()
    want, by_concept, each = theirs.new_zeros(()), torch.zeros(3).double(), []
    for i in range(12):
        a, total = float(target.share[i]), 0.0
        for share, y, k in ((a, target.first[i], concept.first[i]),
                            (1 - a, target.second[i], concept.second[i])):  # fmt: skip
            value = loss(theirs[i : i + 1], y[None])[0]
            p = count[k] / count.sum()
            want = want + q[k] / p * share * value / 12
            by_concept[k] += share * value.detach() / p / 12
            total += share * value.detach()
        each.append(total)
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(out.concept_loss, by_concept)
    torch.testing.assert_close(out.example_loss, torch.stack(each))
    torch.testing.assert_close(out.loss.detach(), (q * out.concept_loss).sum())
    torch.testing.assert_close(loss(logits, target), out.example_loss)
    got, expected = (torch.autograd.grad(*of)[0] for of in ((out.loss, ours), (want, theirs)))
    torch.testing.assert_close(got, expected)


def test_a_share_of_one_is_the_image_itself() -> None:
    target, concept = labels()
    one = torch.ones(12)
    objective = HRRLObjective([6, 2, 4], tau=0.0, lam=1.0)
    logits = torch.randn(12, 5)
    got = objective(logits, Mixed(target.first, target.second, one),
                    Mixed(concept.first, concept.second, one))  # fmt: skip
    for a, b in zip(got, objective(logits, target.first, concept.first), strict=True):
        torch.testing.assert_close(a, b)


def test_an_image_moves_along_the_gradient_of_its_mixed_loss() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    x, (target, _) = torch.rand(12, 3, 2, 2).double(), labels()
    soft = torch.zeros(12, 5).double()
    soft.scatter_add_(1, target.first[:, None], target.share[:, None].double())
    soft.scatter_add_(1, target.second[:, None], 1 - target.share[:, None].double())
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), soft, reduction="sum"), leaf)
    want = x + 0.3 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(HRRLObjective(tau=0.3, lam=None).perturb(net, x, target), want)


def test_concepts_are_seen_by_their_shares() -> None:
    _, concept = labels()
    weights = ChiSquare([6, 2, 4], lam=1.0)
    want = torch.zeros(3).double()
    for first, second, a in zip(concept.first, concept.second, concept.share, strict=True):
        want[first] += a
        want[second] += 1 - a
    torch.testing.assert_close(weights.seen(concept), want / torch.tensor([6, 2, 4]))
    whole = Mixed(concept.first, concept.second, torch.ones(12))
    torch.testing.assert_close(weights.seen(whole), weights.seen(concept.first))


def test_labels_are_of_mixtures_both_or_neither() -> None:
    target, concept = labels()
    objective = HRRLObjective([6, 2, 4], tau=0.0, lam=1.0)
    for pair in ((target, concept.first), (target.first, concept)):
        with pytest.raises(TypeError, match="both are Mixed or neither"):
            objective(torch.randn(12, 5), *pair)


# --- training


def net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.Tanh(), nn.Linear(16, 5))


SETTINGS: dict[str, Any] = {
    "data": image_set(), "concepts": torch.arange(N) % 3, "tau": 0.1, "lam": 2.0, "batch_size": 8,
    "epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant",
    "crop_padding": 1, "device": "cpu", "progress": "off", "mixup": 0.4, "erasing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_these_lines(accumulate: int) -> None:
    trainer = HRRLTrainer(net(), **SETTINGS, accumulate=accumulate)
    assert (trainer.batches.mixup, trainer.batches.erasing) == (Mixup(0.4), RandomErasing(0.5))
    model, objective, hits, losses = net(), HRRLObjective([7, 7, 7], tau=0.1, lam=2.0), 0.0, 0.0
    for x, first, of_first, share, second, of_second in trainer.batches.epoch(0):
        target, concept = Mixed(first, second, share), Mixed(of_first, of_second, share)
        logits = model(objective.perturb(model, x, target))
        out = objective(logits, target, concept)
        grads = torch.autograd.grad(out.loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(0.1 * g)
        objective.update(out.concept_loss)
        guess = logits.argmax(1)
        for n in range(len(x)):
            hits += float(share[n]) if guess[n] == first[n] else 0.0
            hits += 1 - float(share[n]) if guess[n] == second[n] else 0.0
        losses += out.example_loss.sum().item()
    row = trainer.fit().last
    for got, want in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trainer.objective.distribution.q, objective.distribution.q)
    assert row["loss"] == pytest.approx(losses / N, rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(hits / N, abs=1e-6)


def test_with_the_other_adversary_and_a_c_that_is_estimated() -> None:
    for settings in ({"adversary": "chi_square", "tau": "theorem2"}, {"c": "auto"}):
        trainer = HRRLTrainer(net(), **SETTINGS | settings, validation=image_set(),
                              validation_concepts=torch.arange(N) % 3)  # fmt: skip
        assert trainer.validation.mixup is None and trainer.validation.erasing is None
        assert trainer.fit().last["loss"] > 0


def test_a_step_without_the_other_image() -> None:
    trainer = HRRLTrainer(net(), **SETTINGS)
    x, target, concept, *_ = next(trainer.batches.epoch(0))
    with pytest.raises(ValueError, match=r"mixup needs the share .* got 0 of these 3 tensors"):
        trainer.train_step(x, target, concept)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -1.0}, "Mixup: alpha must be positive and finite, got -1.0"),
        ({"erasing": -0.1}, "erasing must be a probability, got -0.1"),
        ({"erasing": 1.5}, "erasing must be a probability, got 1.5"),
        ({"mixup": 0.2, "augmix": 3, "jsd": 1.0}, "mixup makes it one of two images"),
        ({"mixup": 0.2, "example_level": "stored"}, "mixup brings in those of another one; leave mixup"),
        ({"erasing": 0.2, "example_level": "stored"}, "pixels that are not its own; leave erasing out"),
    ],
)  # fmt: skip
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HRRLConfig(**settings)


def test_batches_that_cannot_be_mixed() -> None:
    for more in ({"views": True}, {"augmix": AugMix(), "mixtures": 2}):
        with pytest.raises(ValueError, match="mixup makes x of two"):
            batches(**more)
