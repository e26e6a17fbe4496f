"""Negatives beyond the batch: the loss against loops, and what training makes of a queue."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hardest_cases import SIMILARITIES
from retrieval_cases import pairs, pictures, trainer
from test_retrieval_losses import embeddings, loss_and_gradients, score
from torch import Tensor

from hrrl_ext.ops import Similarity
from hrrl_ext.retrieval import Keys, PairQueue, max_hinge, pairs_of_groups

both = pytest.mark.parametrize("similarity", SIMILARITIES)


def by_hand(
    f: Tensor, g: Tensor, rows: list[tuple[int, int]], groups: Any, queue: Keys, similarity: Similarity,
    *, margin: float = 0.2, semi_hard: bool = False,
) -> Tensor:  # fmt: skip
    """[P], differentiable; the queue is more rows of the lists of negatives."""
    images = [(f[n], groups[0][n]) for n in range(len(f))]
    captions = [(g[n], groups[1][n]) for n in range(len(g))]
    images += [(queue.image[n], int(queue.group[n])) for n in range(len(queue.group))]
    captions += [(queue.caption[n], int(queue.group[n])) for n in range(len(queue.group))]
    losses = []
    for i, c in rows:
        positive = score(f[i], g[c], similarity)
        loss = f.new_zeros(())
        for scores in (
            [score(f[i], one, similarity) for one, group in captions if group != groups[0][i]],
            [score(one, g[c], similarity) for one, group in images if group != groups[1][c]],
        ):
            scores = [s for s in scores if s < positive] if semi_hard else scores
            for s in sorted(scores, key=Tensor.item)[-1:]:
                loss = loss + (margin - positive + s).clamp(min=0)
        losses.append(loss)
    return torch.stack(losses)


def older(count: int, groups: int = 5) -> Keys:
    return Keys(
        embeddings(count, seed=31), embeddings(count, seed=32), torch.arange(count) % groups
    )


@both
@pytest.mark.parametrize("semi_hard", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_loops(count: int, paired: bool, semi_hard: bool, similarity: Similarity) -> None:
    """Losses of each pair and their gradients; weights of any sign. Some hardest negatives are the
    batch's and some the queue's."""
    f, g = embeddings(6, seed=3), embeddings(9, seed=4)
    groups = torch.tensor([4, 0, 1, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 3, 3, 3, 4, 0])
    rows = pairs_of_groups(*groups)
    given: dict[str, Any] = {"pairs": rows}
    if not paired:
        f, g = embeddings(len(rows[0]), seed=5), embeddings(len(rows[0]), seed=6)
        groups = groups[0][rows[0]], groups[1][rows[1]]
        rows, given = (torch.arange(len(f)),) * 2, {}
    given |= {"image_group": groups[0], "caption_group": groups[1], "similarity": similarity}
    given |= {"queue": older(count), "semi_hard": semi_hard, "margin": 0.5, "reduction": "none"}
    expected = list(zip(*(t.tolist() for t in rows), strict=True))
    weight = torch.linspace(-1, 2, len(expected), dtype=torch.float64)
    got = loss_and_gradients(lambda f, g: max_hinge(f, g, **given) @ weight, f, g)
    hand: dict[str, Any] = {"margin": 0.5, "semi_hard": semi_hard}
    of = expected, groups, given["queue"], similarity
    want = loss_and_gradients(lambda f, g: by_hand(f, g, *of, **hand) @ weight, f, g)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    of_batch, queued = max_hinge(f, g, **given | {"queue": None}), max_hinge(f, g, **given)
    assert torch.allclose(of_batch, queued, rtol=1e-12) or count > 0
    assert count < 4 or 0 < (queued > of_batch + 1e-9).sum() < len(expected)


@both
def test_a_queue_of_the_rest_is_the_whole_batch(similarity: Similarity) -> None:
    """A pair's hinges are the same, whether the others are in its batch or in the queue; sums too."""
    f, g = embeddings(23, seed=7), embeddings(23, seed=8)
    group = torch.arange(23) % 9
    settings: dict[str, Any] = {"similarity": similarity, "margin": 0.4}
    whole = max_hinge(f, g, image_group=group, caption_group=group, reduction="none", **settings)
    queue = Keys(f[8:], g[8:], group[8:])
    settings |= {"image_group": group[:8], "caption_group": group[:8], "queue": queue}
    for reduction, want in (
        ("none", whole[:8]),
        ("sum", whole[:8].sum()),
        ("mean", whole[:8].mean()),
    ):
        got = max_hinge(f[:8], g[:8], reduction=reduction, **settings)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_the_queue_has_no_gradient_and_any_dtype() -> None:
    f, g = (embeddings(4, seed=n, dtype=torch.bfloat16).requires_grad_() for n in (1, 2))
    images, captions = (t.float().requires_grad_() for t in older(9)[:2])
    queue = Keys(images, captions, torch.arange(4, 13))
    loss = max_hinge(f, g, image_group=torch.arange(4), caption_group=torch.arange(4), queue=queue)
    loss.backward()
    assert loss.dtype == torch.float32 and f.grad is not None and f.grad.dtype == torch.bfloat16
    assert queue.image.grad is None and queue.caption.grad is None


@both
def test_of_equal_scores_the_batch_is_taken(similarity: Similarity) -> None:
    """With the batch's own embeddings in the queue its gradient is as without."""
    f, g = embeddings(5, seed=9), embeddings(5, seed=10)
    group = torch.arange(5)
    given: dict[str, Any] = {"image_group": group, "caption_group": group, "similarity": similarity}
    queue = Keys(f, g, group)
    plain = loss_and_gradients(lambda f, g: max_hinge(f, g, **given), f, g)
    queued = loss_and_gradients(lambda f, g: max_hinge(f, g, queue=queue, **given), f, g)
    for a, b in zip(plain, queued, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_nan_in_the_queue_is_told() -> None:
    f, g = embeddings(4, seed=11), embeddings(4, seed=12)
    for side in (0, 1):
        queue = older(6)
        queue[side][3, 2] = math.nan
        group = torch.arange(4) + 10
        assert max_hinge(f, g, image_group=group, caption_group=group, queue=queue).isnan()


@pytest.mark.parametrize(
    ("queue", "group", "message"),
    [
        (Keys(torch.ones(3, 5), torch.ones(3, 5), torch.arange(3)), True, r"caption \[Q, 4\].* got \[\[3, 5\]"),
        (Keys(torch.ones(3, 4), torch.ones(2, 4), torch.arange(3)), True, r"got \[\[3, 4\], \[2, 4\], \[3\]\]"),
        (Keys(torch.ones(3, 4), torch.ones(3, 4), torch.arange(3)), False, "needs image_group and caption_group"),
    ],
)  # fmt: skip
def test_bad_queues(queue: Keys, group: bool, message: str) -> None:
    groups = {"image_group": torch.arange(2), "caption_group": torch.arange(2)} if group else {}
    with pytest.raises(ValueError, match=message):
        max_hinge(torch.ones(2, 4), torch.ones(2, 4), queue=queue, **groups)


# --- the queue itself


def test_it_begins_empty_and_knows_what_is_there() -> None:
    queue = PairQueue(5, 2)
    assert queue.keys() is None
    seen = 0
    for batch in (2, 2, 2, 7, 1):
        rows = torch.arange(seen, seen + batch)
        wide = rows.float()[:, None].expand(batch, 2)
        queue.put(wide, -wide, rows + 100, rows)
        seen += batch
        there = range(max(0, seen - 5), seen)
        keys = queue.keys()
        assert keys is not None and sorted(keys.group.tolist()) == [n + 100 for n in there]
        assert queue.filled == len(there)
        for count in (1, 3, 99):
            image, caption, pair = queue.oldest(count)
            assert pair.tolist() == list(there)[:count]
            assert (
                image[:, 0].tolist() == pair.tolist() and caption[:, 1].tolist() == (-pair).tolist()
            )
    assert set(queue.state_dict()) == {"image", "caption", "group", "pair", "next"}


@pytest.mark.parametrize("put", [0, 3, 5, 8])
def test_a_loaded_one_knows_what_is_there(put: int) -> None:
    first, second = PairQueue(5, 2), PairQueue(5, 2)
    rows = torch.arange(put)
    first.put(torch.rand(put, 2), torch.rand(put, 2), rows, rows)
    second.load_state_dict(first.state_dict())
    assert second.filled == first.filled == min(put, 5)


# --- training


@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "Order++"}, {"reduction": "mean"}, {"warmup_loss": "sum_hinge", "warmup_for": "2 steps"}],
    ids=str,
)  # fmt: skip
def test_steps_are_the_lines_written_out(settings: dict[str, Any]) -> None:
    """Each step's loss against loops over the embeddings of the steps before, as they were then. They are
    float32's, and so is the loss: a mean of sums of two hinges of scores that cancel."""
    own = trainer(pairs(groups=13), queue=25, lr=0.01, **settings)
    config = own.recipe.config
    warm = 2 if "warmup_loss" in settings else 0
    seen = [(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))]
    for step, batch in enumerate(b for epoch in (0, 1) for b in own.batches.epoch(epoch)):
        with torch.no_grad():
            f, g = own.model(*batch[:3], precomputed=True)
        group = batch[3]
        got = own.train_step(*batch).item()
        if step >= warm:
            image, caption, older = (torch.cat(rows)[-25:] for rows in zip(*seen, strict=True))
            queue = Keys(image.double(), caption.double(), older)
            rows = [(n, n) for n in range(len(f))]
            of = rows, (group.tolist(),) * 2, queue, config.similarity
            want = by_hand(f.double(), g.double(), *of, margin=config.margin)
            assert got == pytest.approx(want.mean().item(), rel=1e-5)
        seen.append((f, g, group))
    assert own.recipe.queue is not None and own.recipe.queue.filled == 25


def test_the_pairs_in_it_are_those_of_the_data() -> None:
    """Their groups are their own, so an older self of a pair is no negative of it."""
    data = pairs(groups=13)
    own = trainer(data, queue=41, tau=0.1, concepts=["a", "b"] * 15, lam=0.5)
    own.fit()
    queue = own.recipe.queue
    assert queue is not None and queue.filled == 41
    assert torch.equal(queue.group, data.caption_group[queue.pair])
    assert len(queue.pair.unique()) == 41  # of the last epoch


def test_drift_is_that_of_the_oldest() -> None:
    """With a learning rate of next to nothing it is 0; else 1 - cos to what the model makes of the same
    pairs, of which more than 128 are not looked at. Half of it is the images', half the captions'."""
    still = trainer(queue=30, lr=1e-12).fit().last
    assert abs(still["queue_drift"]) < 1e-6
    own = trainer(queue=30, lr=0.02, epochs=1)
    row = own.fit().last
    queue = own.recipe.queue
    assert queue is not None
    order = queue.pair.roll(-int(queue.next), 0)
    data, place = own.batches.encoded.pairs, queue.pair.tolist()
    assert own.model.words is not None
    total = 0.0
    with torch.no_grad():
        for pair in order.tolist():
            f = own.model.encode_image(data.images[data.owner[pair]][None], precomputed=True)[0]
            g = own.model.encode_captions([data.captions[pair]])[0]
            at = place.index(pair)
            total += (f @ queue.image[at]).item() / 2 + (g @ queue.caption[at]).item() / 2
    assert row["queue_drift"] == pytest.approx(1 - total / 30, abs=1e-6)
    assert row["queue_drift"] > 1e-3
    assert f"queue drift {row['queue_drift']:.3f}" in own.recipe.line(row)


def test_images_have_drift_too() -> None:
    """In eval mode, whatever the batch statistics; the modes of the model stay."""
    own = trainer(pictures(), model="convnet", width=2, queue=20, flip=True)
    row = own.fit().last
    assert 0 <= row["queue_drift"] < 1 and own.model.training


BAD: list[tuple[dict[str, Any], str]] = [
    ({"queue": 0}, "queue must be"),
    ({"queue": 61}, "queue=61 is more than the 60 pairs of an epoch"),
    ({"queue": 9, "loss": "sum_hinge"}, "queue adds negatives to max_hinge.* loss='sum_hinge'"),
    ({"queue": 9, "negatives": 4}, "queue=9, loss='max_hinge' and negatives=4"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**settings)
