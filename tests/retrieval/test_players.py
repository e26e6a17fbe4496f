"""HRRL's players among pairs: q over their concepts, and images that move along their gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from retrieval_cases import pairs, pictures, trainer
from test_retrieval_training import of_set
from torch import Tensor, nn

from hrrl_ext.retrieval import Pairs, RetrievalTrainer
from hrrl_ext.retrieval.concept_level import ConceptLevel
from hrrl_ext.retrieval.config import RetrievalConfig
from hrrl_ext.robust import HRRLObjective

CPU = torch.device("cpu")
CONCEPTS = ["b"] * 5 + ["a"] * 15 + ["<c>"] * 10
"""Of the images of pairs()."""
IN_ORDER = ["<c>", "a", "b"]


def players(data: Pairs | None = None, **settings: Any) -> RetrievalTrainer:
    return trainer(data or pairs(), **{"concepts": CONCEPTS, "lam": 0.5, "c": 1.0} | settings)


# --- a step

LOSSES: list[dict[str, Any]] = [
    {},
    {"reduction": "mean"},
    {"loss": "sum_hinge", "margin": 0.3},
    {"semi_hard": True},
    {"negatives": 5},
    {"loss": "sum_hinge", "negatives": 6, "reduction": "mean"},
    {"preset": "Order++"},
    {"loss": "info_nce", "temperature": 0.2},
    {"loss": "sigmoid"},
]


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_a_step_is_the_lines_written_out(settings: dict[str, Any]) -> None:
    """Two steps of plain descent, the second with a q that is not q0, against loops in float64: x̃ by the
    gradient of the sum, the pairs' losses one by one, weighted; then q.

    In float32 x̃ has the rounding of a direction, some 2⁻²³ of the norm over that of its parts."""
    plain: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "clip_norm": None, "lr": 0.05}
    of = single()
    own = players(of, tau=0.5, concepts=CONCEPTS * 2, **plain | settings)
    level = own.recipe.level
    assert level is not None
    assert level.names == IN_ORDER
    config, lr, size = own.recipe.config, own.loop.config.lr, own.recipe.config.negatives or 16
    count = level.distribution.concept_count
    share = count / count.sum()
    assert count.sum() == 60
    q = share.clone()
    for step, batch in enumerate(own.batches.epoch(0)):
        if step == 2:
            break
        model = copy.deepcopy(own.model).double()
        x, _, _, group, _, concept = batch
        images = [int((of.images == row).all(1).nonzero()) for row in x]
        assert [level.names[k] for k in concept.tolist()] == [CONCEPTS[i % 30] for i in images]
        x = x.double().requires_grad_()
        (grad,) = torch.autograd.grad(pair_losses(model, x, batch, config, size).sum(), x)
        moved = x.detach() + 0.5 * grad / grad.norm(dim=1, keepdim=True)
        losses = pair_losses(model, moved, batch, config, size)
        weighted = ((q / share)[concept] * losses).sum()
        summed = config.hinge and config.reduction == "sum"
        (weighted if summed else weighted / len(group)).backward()
        assert own.train_step(*batch).item() == pytest.approx(losses.mean().item(), rel=1e-4)
        for (name, got), start in zip(
            own.model.named_parameters(), model.parameters(), strict=True
        ):
            assert start.grad is not None
            want = start.detach() - lr * start.grad
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5, msg=name)
        mean = torch.stack([losses.detach()[concept == k].sum() for k in range(3)])
        mean /= share * len(group)
        q = on_the_simplex(q + (mean - 0.5 * (q - share)) / (0.5 * (step + 1)))
        torch.testing.assert_close(level.distribution.q, q, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(q, share, atol=0.05)


def single() -> Pairs:
    """60 images, all different, with a caption each, in 9 groups."""
    many = pairs()
    noise = 0.3 * torch.randn(60, 6, generator=torch.Generator().manual_seed(4))
    features = many.images[many.owner] + noise
    return Pairs(features, many.captions, range(60), group=torch.arange(60) % 9)


def pair_losses(model: Any, x: Tensor, batch: tuple[Tensor, ...], config: Any, size: int) -> Tensor:
    """[B] of each pair among the ``size`` of its set, by loops: those of its row and of its column."""
    _, tokens, lengths, group, *_ = batch
    f, g = model(x, tokens, lengths, precomputed=True)
    n, losses = len(group), []
    for first in range(0, n, size):
        rows = range(first, n if n - first - size == 1 else min(first + size, n))
        if len(rows) == 1:
            break
        for at in range(len(rows)):
            losses.append(of_set(f[rows], g[rows], group[rows].tolist(), model, config, [at]))
    return torch.stack(losses)


def on_the_simplex(v: Tensor) -> Tensor:
    """The nearest point, by bisection of what is taken from all entries."""
    low, high = v.min() - 1, v.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (v - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (v - low).clamp(min=0)


def test_q_is_that_of_hrrl_on_the_same_losses() -> None:
    """Logits 0 and log(e^ℓ - 1) have a cross-entropy of ℓ: HRRL's objective sees the losses of the pairs."""
    random = torch.Generator().manual_seed(3)
    concept = torch.arange(40) % 3
    settings: dict[str, Any] = {"lam": 0.3, "s": 2, "c": 4.0, "q0": [0.2, 0.5, 0.3]}
    level = ConceptLevel(["a", "b", "c"], concept, RetrievalConfig(**settings), CPU)
    hrrl = HRRLObjective([14, 13, 13], tau=0.0, **settings)
    for _ in range(6):
        rows = torch.randperm(40, generator=random)[:16]
        losses = torch.rand(16, generator=random, dtype=torch.float64) * (1 + concept[rows])
        logits = torch.stack([torch.zeros_like(losses), losses.expm1().log()], 1)
        ours = level.weighed(losses, concept[rows])
        theirs = hrrl(logits, torch.zeros_like(rows), concept[rows])
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(ours.concept_loss, theirs.concept_loss, rtol=1e-12, atol=0)
        level.update(ours.concept_loss)
        hrrl.update(theirs.concept_loss)
        torch.testing.assert_close(level.distribution.q, hrrl.distribution.q, rtol=1e-12, atol=0)
    assert (hrrl.distribution.q - hrrl.distribution.q0).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{}, {"reduction": "mean"}, {"semi_hard": True}], ids=str)
def test_without_lam_and_tau_no_bit_changes(settings: dict[str, Any]) -> None:
    """Concepts whose weights are all 1 give the run without concepts."""
    plain, own = trainer(**settings), players(lam=None, **settings)
    assert own.fit().history[-1]["concept_loss"].keys() == set(IN_ORDER)
    assert plain.recipe.level is None
    plain.fit()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(own.model.state_dict()[name], value), name


# --- the example level


def test_every_image_moves_by_tau_and_nothing_else_does() -> None:
    """Batch normalisation joins the images of a batch, so that each of them has a gradient; its running
    statistics and the weights' gradients stay."""
    encoder = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    encoder.num_features = 4  # type: ignore[assignment]
    own = trainer(pictures(), model=encoder, tau=0.3)
    own.model.train()
    state = copy.deepcopy(own.model.state_dict())
    x, *others = next(own.batches.epoch(0))
    moved = own.recipe.perturbed(x, *others)
    assert not moved.requires_grad
    assert all(p.grad is None for p in own.model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in own.model.state_dict().items())
    length = (moved - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full_like(length, 0.3), rtol=1e-5, atol=0)


def test_an_image_that_no_loss_knows_stays() -> None:
    """Of a pair that is not violated and of which no caption's hardest negative is the image. The others
    move so that the loss rises, and falls the other way."""
    own = trainer(single(), tau=0.01, margin=0.0, min_count=1, epochs=15, lr=0.02)
    own.fit()
    x, tokens, lengths, group, owner = next(own.batches.epoch(0))
    moved = own.recipe.perturbed(x, tokens, lengths, group, owner)
    with torch.no_grad():
        f, g = own.model(x, tokens, lengths, precomputed=True)
        score = (f @ g.T).masked_fill(group[:, None] == group, -2)
        positive = (f * g).sum(1)
    idle = positive >= score.amax(1)
    for n in range(len(x)):
        hardest = int(score[:, n].argmax())
        if score[hardest, n] > positive[n]:
            idle[n] = idle[hardest] = False
    assert 0 < idle.sum() < len(x)
    length = (moved - x).norm(dim=1)
    torch.testing.assert_close(length, torch.where(idle, 0.0, 0.01), rtol=1e-3, atol=0)
    with torch.no_grad():
        sides = [own.model.encode_image(at, precomputed=True) for at in (2 * x - moved, x, moved)]
        losses = [own.recipe._of_sets(f, g, group, each=False) for f in sides]
    assert losses[0] < losses[1] < losses[2]


def test_the_pairs_of_one_image_move_alike() -> None:
    """By the gradient of the image, in which all of its pairs are: as in float64 by autograd through one
    copy of each image. Where they tie as a negative it does not matter which is taken."""
    own = trainer(tau=0.3)
    x, tokens, lengths, group, owner = next(own.batches.epoch(0))
    images, copy_of = owner.unique(return_inverse=True)
    assert len(images) < len(owner)
    moved = own.recipe.perturbed(x, tokens, lengths, group, owner)
    model = copy.deepcopy(own.model).double()
    once = own.batches.encoded.pairs.images[images].double().requires_grad_()
    f, g = model(once[copy_of], tokens, lengths, precomputed=True)
    loss = of_set(f, g, group.tolist(), model, own.recipe.config)
    (grad,) = torch.autograd.grad(loss, once)
    want = (once + 0.3 * grad / grad.norm(dim=1, keepdim=True))[copy_of].detach()
    torch.testing.assert_close(moved.double(), want, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_direction() -> None:
    directions = []
    for precision in ("fp32", "fp16"):
        own = trainer(
            pictures(), model="convnet", width=2, tau=0.3, precision=precision, reduction="mean"
        )
        batch = next(own.batches.epoch(0))
        with own.loop.move.autocast():
            directions.append((own.recipe.perturbed(*batch) - batch[0]).flatten(1))
    cosine = nn.functional.cosine_similarity(*directions)
    assert cosine.min() > 0.9  # a hardest negative may be another one, after rounding


# --- a run


def test_the_rows_of_a_run(tmp_path: Path) -> None:
    """q, and the losses that raise it, by names that are data; the worst concept of the validation."""
    own = players(tau=0.1, validation=pairs(), validation_concepts=CONCEPTS, out=tmp_path)
    row = own.fit().last
    level = own.recipe.level
    assert level is not None
    assert list(row["q"]) == list(row["concept_loss"]) == IN_ORDER
    assert row["q"] == dict(zip(IN_ORDER, level.distribution.q.tolist(), strict=True))
    assert sum(row["q"].values()) == pytest.approx(1)
    assert (row["lam"], row["s"], row["c"]) == (0.5, 1000, 1.0)
    assert row["worst_concept_rsum"] == min(row["concept_rsum"].values())
    assert "  q 0." in own.recipe.line(row)
    assert "q/<c>" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    shares = {"<c>": 1 / 3, "a": 1 / 2, "b": 1 / 6}
    mean = sum(row["concept_loss"][name] * share for name, share in shares.items())
    # A mean of batches against one of pairs: the last batch has 12 pairs, and not 16.
    assert mean == pytest.approx(row["loss"], rel=0.05)


def test_a_run_goes_on_with_the_same_concepts_alone(tmp_path: Path) -> None:
    """tests/training/test_resume.py kills runs and compares their bits."""
    players(out=tmp_path).fit(until=1)
    with pytest.raises(ValueError, match=r"resume: .* is a run with other settings.*concepts"):
        players(out=tmp_path, resume=True, concepts=["d", *CONCEPTS[1:]])
    players(out=tmp_path, resume=True).fit()


def test_c_is_estimated_from_the_first_batches() -> None:
    """As by hand: μ² is the mean of ‖ĝ‖² at θ_0, where q is q0; the model is as it was."""
    own = players(c="auto", s=100, lam=0.01, epochs=1, max_steps=1)
    level = own.recipe.level
    assert level is not None
    squares = []
    for batch in own.batches.epoch(0):
        with torch.no_grad():
            squares.append(own.recipe.losses(own.model, *batch)[1][1:].square().sum())
    mu = torch.stack(squares).mean().sqrt().item()
    own.fit()
    want = mu / 0.01 * (torch.tensor(100.0).log().item() / 200) ** 0.5
    assert want > 1
    assert level.distribution.c.item() == pytest.approx(want, rel=1e-6)


def test_a_corner_of_the_simplex_is_warned_of_once() -> None:
    with pytest.warns(
        UserWarning, match=r"q has concentrated on .* Raise lam \(now 1e-06\)"
    ) as told:
        players(lam=1e-6).fit()
    assert len([w for w in told if "concentrated" in str(w.message)]) == 1


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"concepts": None},
        r"lam=0.5 and q0=None weight concepts, and there are none; give concepts",
    ),
    ({"concepts": None, "lam": None, "q0": [0.5, 0.5]}, "give concepts"),
    ({"concepts": [0, 1]}, "concepts must have one entry for each of 30 images, got 2"),
    ({"concepts": "classes"}, "'classes' where they have any"),
    ({"tau": -0.1}, "tau must not be negative"),
    ({"lam": 0.0}, "lam must be positive"),
    ({"q0": [0.5, 0.5]}, r"one entry per concept, shape \[3\], got \[2\]"),
    ({"c": 0.5}, "c must be 'auto' or at least 1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_told_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        players(**settings)


def test_numbers_as_names_stay_in_their_order() -> None:
    for names in ([10, 9, 8], ["10", "9", "8"]):
        of = players(concepts=names * 10).recipe.level
        assert of is not None and of.names == ["8", "9", "10"]
