"""A step against the same lines written out in float64, and what no step may depend on."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from crops import Crops
from torch import Tensor, nn

from hrrl_ext._streams import random_stream
from hrrl_ext.contrastive import MoCo, URRLTrainer, recipe
from hrrl_ext.data import load_images
from hrrl_ext.transfer import KNeighbours, extract_features

DIGITS = load_images("digits", split="train").subset(range(100))
OTHERS = load_images("digits", split="test").subset(range(60))
SETTINGS: dict[str, Any] = {
    "data": DIGITS, "views": Crops(), "epochs": 2, "batch_size": 16, "queue": 24, "dim": 6, "lr": 0.1,
    "norm_groups": 4, "temperature": 0.2, "key_momentum": 0.9, "width": 4, "device": "cpu",
    "progress": "off",
}  # fmt: skip


def trainer(**settings: Any) -> URRLTrainer:
    return URRLTrainer("convnet", **(SETTINGS | settings))


def moco(made: URRLTrainer) -> MoCo:
    assert isinstance(made.recipe, MoCo)
    return made.recipe


def in_float64(**settings: Any) -> URRLTrainer:
    made = trainer(**settings)
    moco(made).keys.double()
    moco(made).queue.double()
    made.encoder.double()
    return made


def steps(made: URRLTrainer, count: int) -> None:
    """The first ones of an epoch, as the loop takes them."""
    made.encoder.train()
    batches = made.recipe.batches
    for size, batch in list(zip(batches.sizes, batches.epoch(0), strict=True))[:count]:
        first, second, target, _ = batch
        move = made.loop.move.of(size)
        dtype = moco(made).queue.keys.dtype
        made.recipe.step((first.to(dtype), second.to(dtype), target), move)


def by_hand(made: URRLTrainer, count: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """MoCo v2 (algorithms of the paper), with batch norm in four groups: query and key encoder, queue."""
    query, key = copy.deepcopy(made.encoder).train(), copy.deepcopy(moco(made).keys.encoder)
    queue = moco(made).queue.keys.clone()  # oldest first
    optimizer = torch.optim.SGD(query.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    batches = made.recipe.batches
    for step, (x, y, target, _) in enumerate(list(batches.epoch(0))[:count]):
        with torch.no_grad():
            for p, q in zip(key.parameters(), query.parameters(), strict=True):
                p.copy_(0.9 * p + 0.1 * q)
        groups = 4 if len(x) == 16 else 1
        order = torch.randperm(len(x), generator=random_stream(0, "shuffle", step))
        k = x.new_zeros(len(x), 6, dtype=torch.float64)
        for rows in order.tensor_split(groups):
            k[rows] = key(y[rows].double())[0].detach()
        z, logits = (
            torch.cat(parts)
            for parts in zip(
                *(query(part) for part in x.double().tensor_split(groups)), strict=True
            )
        )
        similar = torch.cat([(z * k).sum(1, keepdim=True), z @ queue.T], 1) / 0.2
        loss = F.cross_entropy(similar, torch.zeros_like(target)) + F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([queue, k])[-24:]
    return query, key, queue


@pytest.mark.parametrize("count", [1, 7])
def test_a_step_is_its_lines(count: int) -> None:
    """Seven are an epoch: the queue wraps, and the last batch has four images."""
    made = in_float64(schedule="constant")
    query, key, queue = by_hand(made, count)
    steps(made, count)
    for got, want in ((made.encoder, query), (moco(made).keys.encoder, key)):
        for name, value in want.state_dict().items():
            torch.testing.assert_close(got.state_dict()[name], value, rtol=1e-9, atol=1e-11)
    oldest_first = moco(made).queue.keys.roll(-int(moco(made).queue.next), 0)
    torch.testing.assert_close(oldest_first, queue, rtol=1e-9, atol=1e-11)


def keys_of(made: URRLTrainer, view: Tensor) -> Tensor:
    return moco(made)._encoded(view, made.loop.move.of(len(view)))[0]


def test_a_permutation_without_groups_does_nothing() -> None:
    view = torch.rand(16, 3, 8, 8)
    made = trainer(norm_groups=1)
    torch.testing.assert_close(keys_of(made, view), moco(made).keys(view), rtol=1e-4, atol=1e-5)
    made = trainer(norm_groups=4)
    assert (keys_of(made, view) - moco(made).keys(view, 4)).abs().max() > 0.01


def test_the_statistics_of_a_key_are_of_other_images() -> None:
    """Which images a key depends on: those of its group, which is not that of its query."""
    made, view = trainer(), torch.rand(16, 3, 8, 8)
    made.recipe.done = 5
    keys, felt = keys_of(made, view), torch.zeros(16, 16, dtype=torch.bool)
    for image in range(16):
        changed = view.clone()
        changed[image] = 1 - changed[image]
        felt[:, image] = (keys_of(made, changed) != keys).any(1)
    assert (felt.sum(1) == 4).all() and felt.diagonal().all() and torch.equal(felt, felt.T)
    of_query = torch.arange(16) // 4
    shared = (felt & (of_query[:, None] == of_query)).sum(1)  # itself among them
    assert shared.double().mean() < 2.5
    made.recipe.done = 6  # another step, other groups
    assert not torch.equal(keys_of(made, view), keys)


def test_shuffled_keys_are_put_back_in_order() -> None:
    """Without batch normalisation a key depends on its image alone, to the rounding of its batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10))
    made, view = URRLTrainer(net, **SETTINGS), torch.rand(16, 3, 8, 8)
    torch.testing.assert_close(keys_of(made, view), moco(made).keys(view))


def test_no_feature_depends_on_a_label() -> None:
    shuffled = DIGITS.with_images(DIGITS.images, DIGITS.target.flip(0))
    one, other = trainer(), trainer(data=shuffled)
    for made in (one, other):
        steps(made, 3)
    for name, value in one.encoder.state_dict().items():
        same = torch.equal(other.encoder.state_dict()[name], value)
        assert same == (not name.startswith("backbone.fc.")), name


def test_a_batch_in_parts_is_the_same_step() -> None:
    """Parts of whole groups; running statistics are of the same passes in the same order."""
    whole, in_parts = in_float64(), in_float64(accumulate=2)
    for made in (whole, in_parts):
        steps(made, 3)
    for name, value in whole.encoder.state_dict().items():
        torch.testing.assert_close(
            in_parts.encoder.state_dict()[name], value, rtol=1e-9, atol=1e-11
        )
    torch.testing.assert_close(in_parts.recipe._sums, whole.recipe._sums, rtol=1e-6, atol=1e-6)


# --- what it measures


def test_an_evaluation_is_that_of_the_features() -> None:
    """By the functions for anybody's features, in eval mode; classes are those of the bank."""
    made = trainer(validation=OTHERS, neighbours=7, bank=50)
    steps(made, 3)
    before = copy.deepcopy(made.encoder.state_dict())
    measured = made.recipe.evaluate(made.encoder)
    assert made.encoder.training
    for name, value in made.encoder.state_dict().items():
        assert torch.equal(before[name], value)
    bank = made.recipe.measured.bank.images
    assert len(bank) == 50
    train, test = (extract_features(made.encoder.backbone, images) for images in (bank, OTHERS))
    voters = KNeighbours(7).fit(train.features, train.labels)
    expected = (voters.predict(test.features) == test.labels.numpy()).mean()
    assert measured["knn_accuracy"] == pytest.approx(expected)
    logits = made.encoder.backbone.eval()(OTHERS.images / 255)
    hits = (logits.argmax(1) == OTHERS.target).double().mean().item()
    assert measured["accuracy"] == pytest.approx(hits)
    assert 1 < measured["rank_me"] <= 32


def test_neighbours_are_found_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features may be of half precision; their similarities are not."""

    class Watched(KNeighbours):
        def predict(self, X: Any) -> Any:
            assert X.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            return super().predict(X)

    monkeypatch.setattr(recipe, "KNeighbours", Watched)
    made = trainer(validation=OTHERS, precision="bf16")
    assert "knn_accuracy" in made.loop._evaluate()


def test_fewer_neighbours_than_asked_for_and_classes_that_are_missing() -> None:
    few = OTHERS.subset((OTHERS.target < 3).nonzero().flatten())
    made = trainer(validation=few, neighbours=200, bank=10)
    assert 0 <= made.recipe.evaluate(made.encoder)["knn_accuracy"] <= 1


def test_a_run_learns_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(
        data=load_images("digits"), validation=load_images("digits", split="test"), lr=0.06,
        epochs=4, batch_size=64, queue=512, dim=64, temperature=0.1, key_momentum=0.99, width=16,
        progress="plain",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is wrong, so nothing is warned of
        first, *_, last = made.fit().history
    assert first["knn_accuracy"] < last["knn_accuracy"] and last["loss"] < first["loss"] - 0.2
    assert last["loss"] < math.log(513) - 1.5 and last["spread"] > 0.5
    assert "k-NN" in capsys.readouterr().err
    assert [len(row) for row in made.history] == [len(made.history[0])] * 4


# --- what it warns of


def row_of(made: URRLTrainer, loss: float, towards: float = 0.0, **measured: float) -> None:
    made.recipe._steps = 1
    made.recipe._sums = torch.tensor([loss, 0.5, towards]).double() * made.recipe.batches.sizes[0]
    made.recipe.row(measured)


def test_a_collapse_is_told_once() -> None:
    """One point: the loss of a queue that is full of it is log(K + 1), to rounding. While the queue is
    not full of keys, nothing can be said."""
    made = trainer(lr=1e-30, queue=16, epochs=1)
    for one in (made.encoder, moco(made).keys.encoder):
        nn.init.zeros_(one.head[2].weight)
        nn.init.ones_(one.head[2].bias)
    steps(made, 1)
    made.recipe.done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.recipe.row({})["spread"] < 1e-3
    steps(made, 1)
    with pytest.warns(
        UserWarning, match=rf"point the same way: .*log\(K \+ 1\) = {math.log(17):.3f}"
    ):
        row = made.recipe.row({})
    assert row["loss"] == pytest.approx(math.log(17), abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row_of(made, loss=2.0, towards=1.0)


def test_a_loss_that_stands_at_log_k_is_told_once() -> None:
    """Of two epochs, one of them before the run was stopped; not of one on the way, as a memory has it."""
    made, again = trainer(), trainer()
    made.recipe.done = again.recipe.done = 99
    at = math.log(25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (at + 0.02, at - 0.04, at + 0.02):  # 1 % of what T = 0.2 leaves is 0.031
            row_of(made, loss, towards=0.5)
        again.recipe.load_state_dict(made.recipe.state_dict())
    with pytest.warns(
        UserWarning, match=r"two epochs now that of log\(K \+ 1\) = 3.219.* is 0.71\. L"
    ):
        row_of(again, at - 0.02, towards=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            row_of(again, at, towards=0.5)


def test_a_shortcut_is_told_and_the_best_is_remembered() -> None:
    made = trainer(validation=OTHERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row_of(made, loss=3.0, knn_accuracy=0.8)
        row_of(made, loss=2.5, knn_accuracy=0.75)  # of 60 images: within two standard errors
        row_of(made, loss=3.5, knn_accuracy=0.1)  # worse in both: no shortcut
        again = trainer(validation=OTHERS)
        again.recipe.load_state_dict(made.recipe.state_dict())
    with pytest.warns(UserWarning, match=r"loss fell from 3.000 to 2.000, .* 80.0 % to 40.0 %"):
        row_of(again, loss=2.0, knn_accuracy=0.4)


def test_features_of_zeros_are_told_and_no_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 10))
    net[1].bias.data.fill_(-1e3)
    made = URRLTrainer(net, **SETTINGS)
    assert made.recipe.evaluate(made.encoder) == {"rank_me": 0.0}


def test_fewer_images_than_a_batch_are_as_many_groups() -> None:
    """And short batches are counted as what they are."""
    made = trainer(data=DIGITS.subset(range(12)), batch_size=64)
    assert made.recipe._groups_of(1) == 4 and made.recipe._groups_of(2) == 2
    assert trainer(data=DIGITS.subset(range(6)), batch_size=64).recipe._groups_of(1) == 3
    made.recipe.done = 3
    assert made.recipe.seen == 36
    made = trainer()
    made.recipe.done, made.recipe._steps = 7, 6
    assert made.recipe.seen == len(DIGITS) == 100 and made.recipe._groups_of(1) == 1


# --- views of one's own


class Own:
    """Without a text of its own."""

    def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...]:
        return images, images


def test_own_views_are_looked_at_before_the_run(tmp_path: Path) -> None:
    made = URRLTrainer("convnet", **SETTINGS | {"views": Own()})
    assert made.recipe.batches.views is not None
    with pytest.raises(
        ValueError, match=r"Own object at .* another in every process; give it a __repr__"
    ):
        trainer(views=Own(), out=tmp_path / "run")

    class Fails(Own):
        def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...]:
            raise TypeError("no grey")

    class One(Own):
        def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...]:
            return (images[0], images[1])

    class Arrays(Own):
        def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Any, ...]:
            return (images.numpy(), images.numpy())

    with pytest.raises(ValueError, match=r"it gave \['ndarray', 'ndarray'\]"):
        trainer(views=Arrays())

    with pytest.raises(ValueError, match=r"fails on images \[3, 8, 8\] of .*: no grey"):
        trainer(views=Fails())
    with pytest.raises(
        ValueError,
        match=r"two views of a batch, tensors \[B, 3, H, W\] each; .* gave \[\[3, 8, 8\]",
    ):
        trainer(views=One())
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1, step \d\. Lower lr, or"):
        trainer(lr=1e30).fit()


# --- arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queue": 0}, "queue must be positive"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"key_momentum": 1.5}, r"key_momentum must lie in \[0, 1\], got 1.5"),
        ({"p": 1.5}, r"p must lie in \[0, 1\], got 1.5"),
        (
            {"crop_scale": 0.5},
            "crop_scale=0.5 does nothing with views='own': an object of your own makes",
        ),
        (
            {"views": "moco", "p": 0.3},
            "p=0.3 does nothing with views='moco': it is of urrl; leave it out",
        ),
        ({"augmix": 20.0}, "severity must lie between 0.1 and 10, got 20"),
        ({"crop_scale": 0.0}, "crop_scale must be above 0"),
        (
            {"crop_of": "picture"},
            "crop_of=picture does nothing with views='own': an object of your",
        ),
        (
            {"views": "moco", "crop_of": "picture"},
            "digits-train has images of 8 x 8 pixels and no others; leave crop_of out, or give image f",
        ),
        (
            {"views": "augmix:al"},
            "views must be one of moco, augmix, augmix:all, .* got 'augmix:al'",
        ),
        ({"views": "own"}, "views='own' is an object"),
        ({"norm_groups": 9}, "norm_groups=9 leave fewer than two images of a batch of 16"),
        ({"batch_size": 1, "norm_groups": 1}, "norm_groups=1 leave fewer than two"),
        ({"patience": 2}, "patience needs validation"),
        ({"data": DIGITS.subset([0])}, "at least two images of a batch, which has 16 of 1 images"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**settings)


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(
        TypeError, match=r"URRLTrainer: argument 'temprature' .* mean 'temperature'"
    ):
        trainer(temprature=0.1)


def test_the_learning_rate_follows_the_batch() -> None:
    assert trainer(lr=None, batch_size=64).loop.config.lr == pytest.approx(0.03 / 4)
    assert trainer(lr=0.7).loop.config.lr == 0.7
