"""Training of joint embeddings: a step, the presets, what stops a run and what it leaves."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from retrieval_cases import SHORT, pairs, pictures, trainer
from test_retrieval_losses import by_hand
from torch import Tensor, nn
from torchrun import tensors_of

from hrrl_ext import HRRLTrainer
from hrrl_ext.retrieval import (
    GRUEncoder,
    JointEmbedding,
    Pairs,
    RetrievalTrainer,
    Words,
    embed,
    evaluate,
    load_joint_embedding,
)
from hrrl_ext.retrieval.config import RetrievalTraining, configs
from hrrl_ext.retrieval.exported import _example

# --- a step

LOSSES: list[dict[str, Any]] = [
    {},
    {"reduction": "mean"},
    {"loss": "sum_hinge", "margin": 0.3},
    {"semi_hard": True},
    {"negatives": 5},
    {"loss": "sum_hinge", "negatives": 2},
    {"preset": "VSE0"},
    {"preset": "Order++"},
    {"preset": "Order0", "lr": 0.01},
    {"loss": "info_nce", "temperature": 0.2},
    {"loss": "sigmoid"},
]


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_a_step_is_the_lines_written_out(settings: dict[str, Any]) -> None:
    """One step of plain descent against the loss by loops in float64, and its gradient. The step itself is
    in float32, where up to n² hinges are summed that may cancel."""
    own = trainer(
        pairs(groups=9), optimizer="sgd", momentum=0.0, clip_norm=None, **{"lr": 0.05} | settings
    )
    config, lr = own.recipe.config, own.loop.config.lr
    model = copy.deepcopy(own.model).double()
    x, tokens, lengths, group = batch = next(own.batches.epoch(0))
    f, g = model(x.double(), tokens, lengths, precomputed=True)
    loss = torch.zeros((), dtype=torch.float64)
    n, size = len(group), config.negatives or len(group)
    for first in range(0, n, size):  # 16 = 5 + 5 + 6, the last one has joined
        if first + 1 == n:
            break
        rows = range(first, n if n - first - size == 1 else min(first + size, n))
        loss = loss + of_set(f[rows], g[rows], group[rows].tolist(), model, config)
    mean = loss / n
    total = loss if config.hinge and config.reduction == "sum" else mean
    total.backward()
    assert own.train_step(*batch).item() == pytest.approx(mean.item(), rel=1e-5)
    for (name, got), start in zip(own.model.named_parameters(), model.parameters(), strict=True):
        assert start.grad is not None
        want = start.detach() - lr * start.grad
        torch.testing.assert_close(
            got.double(), want, rtol=1e-5, atol=lr * n * n * 2**-23, msg=name
        )
    assert own.recipe.done == 1


def of_set(
    f: Tensor, g: Tensor, group: list[int], model: JointEmbedding, config: Any,
    of: Iterable[int] | None = None,
) -> Tensor:  # fmt: skip
    """The sum of the losses of the pairs, or of these rows of them, by loops."""
    of = range(len(f)) if of is None else of
    if config.hinge:
        kind = "sum" if config.loss == "sum_hinge" else "semi-hard" if config.semi_hard else "max"
        rows = [(n, n) for n in of]
        return by_hand(kind, f, g, rows, (group, group), config.similarity, config.margin)
    learned = model.learned
    scale = learned["log_scale"].exp()
    total = f.new_zeros(())
    for n in of:
        others = [m for m in range(len(f)) if m == n or group[m] != group[n]]
        if config.loss == "info_nce":
            for scores in ([f[n] @ g[m] for m in others], [f[m] @ g[n] for m in others]):
                top = torch.stack(scores).mul(scale).logsumexp(0)
                total = total + (top - scale * (f[n] @ g[n])) / 2
        else:
            for (
                m
            ) in others:  # a score is half of the pair of its row, and half of that of its column
                sign = 1 if m == n else -1
                for score in (f[n] @ g[m], f[m] @ g[n]):
                    logit = sign * (scale * score + learned["bias"])
                    total = total - nn.functional.logsigmoid(logit) / 2
    return total


def test_captions_of_one_group_are_no_negatives() -> None:
    """With all but one pair in a group, pairs of it have the one outside as their only negative."""
    of = Pairs(torch.eye(4), ["a b", "a c", "a d", "b"], range(4), group=[7, 7, 7, 1])
    own = trainer(of, batch_size=4, min_count=1)
    batch = next(own.batches.epoch(0))
    f, g = own.model(*batch[:3], precomputed=True)
    outside = int((batch[3] == 1).nonzero())
    loss = torch.zeros(())
    for n in range(4):
        for m in range(4):
            if (n == outside) != (
                m == outside
            ):  # of three pairs the one, and of it the hardest of three
                hinges = [(0.2 - f[n] @ g[n] + s).clamp(min=0) for s in (f[n] @ g[m], f[m] @ g[n])]
                loss = loss + (sum(hinges) if n != outside else 0)
    rest = [m for m in range(4) if m != outside]
    positive = f[outside] @ g[outside]
    for scores in (
        torch.stack([f[outside] @ g[m] for m in rest]),
        torch.stack([f[m] @ g[outside] for m in rest]),
    ):
        loss = loss + (0.2 - positive + scores.max()).clamp(min=0)
    assert own.train_step(*batch).item() == pytest.approx(loss.item() / 4, rel=1e-5)


@pytest.mark.parametrize("warmup", ["sum_hinge", "semi_hard"])
@pytest.mark.parametrize("span", [1, "3 steps"])
def test_a_warm_up_uses_another_loss_for_so_long(warmup: str, span: Any) -> None:
    """Up to its end the run is the one of that loss, to the bit; from then on it is not."""
    of = {"loss": "sum_hinge"} if warmup == "sum_hinge" else {"semi_hard": True}
    own, other = (trainer(**s) for s in ({"warmup_loss": warmup, "warmup_for": span}, of))
    begins = len(own.batches) if span == 1 else 3
    batches = [b for epoch in (0, 1) for b in own.batches.epoch(epoch)]
    for step, batch in enumerate(batches[: begins + 1]):
        same = own.train_step(*batch).item() == other.train_step(*batch).item()
        assert same == (step < begins), step


# --- settings


def test_presets_set_what_is_not_given() -> None:
    loop, method = configs("VSE++", {}, "test")
    assert (loop.epochs, loop.batch_size, loop.optimizer, loop.lr) == (30, 128, "adam", 2e-4)
    assert (loop.clip_norm, loop.milestones, loop.weight_decay) == (2.0, [15], 0.0)
    assert (method.loss, method.margin, method.similarity) == ("max_hinge", 0.2, "cosine")
    loop, method = configs("Order0", {}, "test")
    assert (loop.lr, method.loss, method.margin) == (1e-3, "sum_hinge", 0.05)
    assert (method.similarity, method.absolute, method.normalise_image) == ("order", True, True)
    _, method = configs("VSE0", {}, "test")
    assert (method.loss, method.normalise_image, method.normalise_caption) == (
        "sum_hinge",
        False,
        True,
    )
    loop, method = configs("Order0", {"lr": 0.5, "margin": 0.1, "loss": "max_hinge"}, "test")
    assert (loop.lr, method.margin, method.loss, method.absolute) == (0.5, 0.1, "max_hinge", True)
    assert RetrievalTraining(epochs=7).milestones == [3]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"preset": "VSE+"}, r"preset 'VSE\+' is not known; .*VSE\+\+"),
    ({"margins": 0.1}, "argument 'margins' is not known; did you mean 'margin'"),
    ({"margin": -0.1}, "margin must not be negative"),
    ({"loss": "max"}, "loss must be one of max_hinge"),
    ({"negatives": 1}, "pair alone, which has no negative"),
    (
        {"negatives": 17},
        "negatives=17 is more than the 16 pairs of a batch, .* a larger batch_size",
    ),
    ({"negatives": 99, "batch_size": 99}, "negatives=99 is more than the 60 pairs of a batch"),
    ({"loss": "info_nce", "preset": "Order++"}, "similarity must be 'cosine', got 'order'"),
    ({"loss": "sum_hinge", "semi_hard": True}, "semi_hard and warmup_loss are of loss='max_hinge'"),
    (
        {"warmup_loss": "semi_hard", "warmup_for": "long"},
        "warmup_for must be a whole number of epochs",
    ),
    ({"freeze": True, "flip": True}, "leave out crop_padding=0 and flip=True"),
    ({"flip": True}, "data are features; leave both out"),
    ({"accumulate": 2}, "accumulate must be 1, got 2: the negatives of a pair"),
    ({"batch_size": 1}, "at least two pairs of a batch, which has 1"),
    ({"patience": 3}, "patience needs validation"),
    ({"resume": True}, "resume=True needs out"),
    ({"data": pairs(groups=1)}, "all of one group"),
    ({"data": (torch.zeros(2, 3), ["a"])}, "2 images and 1 captions"),
    ({"data": Pairs(torch.zeros(3, 2, 2), ["a b"] * 3, range(3))}, r"features must be \[N, F\]"),
    ({"validation": pairs(size=5)}, r"of \[5\], and data of \[6\]"),
    ({"validation": pictures()}, r"of \[3, 8, 8\], and data of \[6\]"),
    ({"validation_concepts": [0, 1]}, "validation_concepts are of validation"),
    ({"validation": pairs(4), "validation_concepts": [0, 1]}, "each of 4 images, got 2"),
    ({"validation": pairs(4), "validation_concepts": "classes"}, "'classes' where they have any"),
    (
        {"data": pictures(), "concepts": "classes"},
        "concepts must be two or more, and pairs has '0' alone",
    ),
    ({"concepts": ["a"] * 30}, "has 'a' alone, .*; give the concept of each image"),
    ({"min_count": 1000}, "no word is in the captions 1000 times"),
    (
        {"text": "huggingface:F"},
        "word_dim=5 is not used, as huggingface:F has words and sizes of its",
    ),
    ({"text": GRUEncoder(9, width=2)}, "word_dim=5 is not used, as text is a module; leave it out"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_told_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        trainer(**settings)


def model_of_ones_own(**settings: Any) -> JointEmbedding:
    words = Words.of(pairs().captions, min_count=1)
    text = GRUEncoder(len(words), word_dim=4, width=5)
    return JointEmbedding(nn.Identity(), text, 3, image_features=6, words=words, **settings)


OTHERS = SHORT | {"data": pairs()}


def test_a_model_of_ones_own_brings_its_settings() -> None:
    model = model_of_ones_own(similarity="order")
    own = RetrievalTrainer(model, **OTHERS)
    assert own.model is model
    assert (own.recipe.config.dim, own.recipe.config.similarity) == (3, "order")
    with pytest.raises(ValueError, match="dim is 3 in model, got 4"):
        RetrievalTrainer(model, **OTHERS, dim=4)
    for settings in ({"text": "huggingface:F"}, {"min_count": 5}, {"width": 16}, {"text_width": 7}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"^{name}=.* is not used, as model"):
            RetrievalTrainer(model, **OTHERS, **settings)
    model.words = None
    with pytest.raises(ValueError, match="model has no words"):
        RetrievalTrainer(model, **OTHERS)


def test_a_model_of_ones_own_has_the_numbers_that_the_loss_learns() -> None:
    with pytest.raises(ValueError, match="learns bias, log_scale, which model has not") as told:
        RetrievalTrainer(model_of_ones_own(), **OTHERS, loss="sigmoid")
    learned = {"log_scale": math.log(10), "bias": -10.0}
    assert str(told.value).endswith(f"learned={learned}")
    RetrievalTrainer(model_of_ones_own(learned=learned), **OTHERS, loss="sigmoid").fit()


def test_a_misfit_of_the_encoder_shows_before_any_work() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    encoder.num_features = 4  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"shapes cannot be multiplied.*for images \[3, 8, 8\]"):
        trainer(pictures(), model=encoder)


# --- a run


def test_a_run_measures_and_keeps_the_best(tmp_path: Path) -> None:
    """What is in best/ has the rsum of its row, as the embeddings of that model give it by `evaluate`."""
    held_out = pairs(40)
    own = trainer(validation=held_out, epochs=6, lr=0.02, out=tmp_path / "run", min_count=1)
    result = own.fit()
    assert result.model.training
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    best = max(rows, key=lambda row: row["rsum"])
    assert best["rsum"] > 1.2 * rows[0]["rsum"]  # it has learned
    model = load_joint_embedding(tmp_path / "run")
    assert model.words is not None
    with torch.no_grad():
        image = model.encode_image(held_out.images, precomputed=True)
        caption = model.encode_captions(held_out.captions)
    found = evaluate(image, caption, held_out.image_group, held_out.caption_group).measures
    assert {name: best[name] for name in found} == found
    assert (
        json.loads((tmp_path / "run" / "results.json").read_text())["best"]["rsum"] == best["rsum"]
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert (config["loss"], config["margin"], config["milestones"]) == ("max_hinge", 0.2, [3])


def test_the_loss_of_a_row_is_the_mean_over_its_pairs() -> None:
    """Of the steps' losses by their pairs, the last batch having fewer, to the rounding of float64."""
    losses: list[float] = []
    own = trainer(after_step=lambda own, _: losses.append(own.recipe._last.item()))
    own.fit()
    sizes = own.batches.sizes
    assert sizes[-1] < sizes[0]
    for epoch, row in enumerate(own.history):
        of = losses[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        total = sum(n * loss for n, loss in zip(sizes, of, strict=True))
        assert row["loss"] == pytest.approx(total / len(own.batches.encoded.pairs), rel=1e-14)


def test_words_are_those_of_the_training_captions() -> None:
    """One that validation alone has is unknown to the model, as any other is."""
    held_out = Pairs(pairs(9).images, ["zebra"] * 9, range(9))
    words = trainer(validation=held_out, min_count=1).model.words
    assert words is not None
    zebra, okapi, apple = words.encode(["zebra", "okapi", "apple"])[0].tolist()
    assert zebra == okapi != apple


def test_the_last_model_opens_without_validation(tmp_path: Path) -> None:
    own = trainer(out=tmp_path, loss="sigmoid")
    own.fit()
    model = load_joint_embedding(tmp_path, which="last")
    for name, value in own.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert own.model.learned["bias"] != -10  # the loss's own numbers are of the model


def test_recall_by_concept_is_in_the_row(tmp_path: Path) -> None:
    """The names are those of the images, and the worst has the smallest rsum; as `evaluate` finds them."""
    of = pairs(24)
    names = ["10", "9", "8.5"] * 8
    own = trainer(of, validation=of, validation_concepts=names, epochs=1, out=tmp_path)
    row = own.fit().last
    with torch.no_grad():
        image = own.model.eval().encode_image(of.images, precomputed=True)
        caption = own.model.encode_captions(of.captions)
    found = evaluate(image, caption, of.image_group, of.caption_group, names)
    assert row["concept_rsum"] == {name: one["rsum"] for name, one in found.concepts.items()}
    assert list(row["concept_rsum"]) == ["8.5", "9", "10"]
    assert row["worst_concept_rsum"] == min(row["concept_rsum"].values())
    assert f"({found.worst_concept})" in own.recipe.line(row)
    assert "concept_rsum/9" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    held_out = pictures(classes=2)
    by_class = trainer(
        pictures(), model=Counted(), validation=held_out, validation_concepts="classes"
    )
    assert by_class.recipe.concepts == ["0", "1"] * 12


class Counted(nn.Module):
    """An encoder with dropout and batch normalisation, that counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 5
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 8), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Flatten()
        )
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.body(x)


def test_evaluation_is_in_eval_mode_and_leaves_modes_as_they_were() -> None:
    """Each module's own, in the middle of an epoch; no statistic moves, no dropout draws."""
    own = trainer(pictures(), model=Counted(), validation=pictures(), dim=3)
    own.model.train()
    own.model.text_encoder.eval()
    before = [m.training for m in own.model.modules()]
    state = copy.deepcopy(own.model.state_dict())
    first, again = (own.recipe.evaluate(own.model) for _ in range(2))
    assert first == again
    assert [m.training for m in own.model.modules()] == before and len(set(before)) == 2
    assert all(torch.equal(value, state[name]) for name, value in own.model.state_dict().items())


def test_a_frozen_encoder_is_asked_once_and_stays() -> None:
    """And what is trained is what training on its features gives, to the bit."""
    of = pictures()
    words = Words.of(of.captions, min_count=1)
    torch.manual_seed(2)
    encoder, text = Counted(), GRUEncoder(len(words), word_dim=4, width=5)
    model = JointEmbedding(encoder, text, 3, freeze=True, words=words)
    start = copy.deepcopy(model)
    with torch.no_grad():
        features = start.eval().features(of.images.images.float() / 255)
    settings = SHORT | {"epochs": 3}
    RetrievalTrainer(model, data=of, validation=of, **settings).fit()
    assert encoder.images == 2 * len(of.images) + 1  # and one pair, to see that it fits
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, start.image_encoder.state_dict()[name]), name
    other = JointEmbedding(nn.Identity(), start.text_encoder, 3, image_features=5, words=words)
    other.project_image, other.project_text = start.project_image, start.project_text
    RetrievalTrainer(other, data=Pairs(features, of.captions, of.owner), **settings).fit()
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_an_encoder_over_features_is_trained_and_embeds() -> None:
    encoder = nn.Sequential(nn.Linear(6, 6))
    encoder.num_features = 6  # type: ignore[assignment]
    before = encoder[0].weight.detach().clone()
    own = trainer(model=encoder)
    model = own.fit().model
    assert own.model.image_encoder is encoder and not torch.equal(encoder[0].weight, before)
    with torch.no_grad():
        expected = model.eval().encode_image(pairs().images)
    torch.testing.assert_close(embed(own.model, pairs()).image, expected)
    with pytest.raises(ValueError, match=r"for features \[6\], or nn.Identity\(\) for those"):
        trainer(model=Counted())


def test_fine_tuning_goes_on_from_a_frozen_model(tmp_path: Path) -> None:
    of = pictures()
    settings: dict[str, Any] = {"model": "convnet", "width": 2, "validation": of, "min_count": 1}
    trainer(of, out=tmp_path / "frozen", freeze=True, **settings).fit()
    first = load_joint_embedding(tmp_path / "frozen")
    other = Pairs(of.images, ["some other words", *of.captions[1:]], of.owner)
    settings |= {"flip": True, "out": tmp_path / "tuned"}
    tuned = trainer(other, init=tmp_path / "frozen" / "best", **settings)
    assert tuned.model.words is not None and first.words is not None
    assert (
        tuned.model.words.encode(["apple pear"])[0].tolist()
        == first.words.encode(["apple pear"])[0].tolist()
    )
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in tuned.model.state_dict().items())
    newest = max((tmp_path / "frozen" / "checkpoints").iterdir())  # which has no words beside it
    last, of_run = (
        trainer(other, init=begin, **(settings | {"out": None})).model
        for begin in (newest, tmp_path / "frozen")
    )
    assert last.words is not None and len(last.words) == len(first.words)
    assert all(torch.equal(v, last.state_dict()[k]) for k, v in of_run.state_dict().items())
    tuned.fit(until=1)
    unlike = Pairs(of.images, ["some other text", *of.captions[1:]], of.owner)
    with pytest.raises(ValueError, match=r"settings \(labels, validation_labels differ\)"):
        trainer(unlike, resume=True, **(settings | {"validation": other}))
    again = trainer(other, resume=True, **settings)  # with the words that it began with
    assert again.model.words is not None and len(again.model.words) == len(first.words)
    again.fit()
    moved = [k for k, v in tuned.model.image_encoder.named_parameters()
             if not torch.equal(v, first.image_encoder.state_dict()[k])]  # fmt: skip
    assert moved


def test_images_may_have_another_number_of_channels(tmp_path: Path) -> None:
    own = trainer(pictures(channels=1), model="convnet", width=2, out=tmp_path, epochs=1)
    model, again = own.fit().model.eval(), load_joint_embedding(tmp_path)
    x = _example(again)
    assert x.shape == (2, 1, 8, 8) and torch.equal(again.encode_image(x), model.encode_image(x))
    with pytest.raises(ValueError, match=r"takes images of 1 channels, and .* has 3"):
        RetrievalTrainer(own.model, data=pictures(), **SHORT)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision: str) -> None:
    """The loss itself is formed in float32, so the first one agrees to the rounding of the embeddings."""
    runs = [
        trainer(pictures(), model="convnet", width=2, precision=p, max_steps=1)
        for p in ("fp32", precision)
    ]
    losses = [run.fit().last["loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


IMAGES: dict[str, Any] = {"data": pictures(), "model": "convnet", "width": 2}


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            {},
            "with a margin of 0.2. Lower lr; or begin with warmup_loss='semi_hard' or 'sum_hinge'.",
        ),
        (IMAGES | {"loss": "info_nce"}, "Lower lr; or train with freeze=True first, and fine-tune"),
        (IMAGES | {"loss": "sum_hinge", "freeze": True}, "with a margin of 0.2. Lower lr. "),
        ({"loss": "sigmoid"}, r"loss of \d+\.\d+\. Lower lr\. "),
    ],
    ids=["max_hinge", "info_nce of images", "sum_hinge, frozen", "sigmoid"],
)
def test_a_collapse_is_named_at_its_step(
    tmp_path: Path, settings: dict[str, Any], advice: str
) -> None:
    """All images are one point, and all captions: nothing tells a direction. What is advised can be done."""
    own = trainer(out=tmp_path, checkpoint_every=1, **settings)
    with torch.no_grad():
        for linear in (own.model.project_image, own.model.project_text):
            linear.weight.zero_()
            linear.bias.fill_(1.0)
    with pytest.raises(FloatingPointError, match=f"collapsed: in epoch 1, step 1 .*{advice}"):
        own.fit()
    assert (
        not list((tmp_path / "checkpoints").glob("*"))
        if (tmp_path / "checkpoints").exists()
        else True
    )


def at_one_point(steps: Sequence[int]) -> Callable[[RetrievalTrainer, int], object]:
    """For after_step: puts all embeddings at one point in these steps, and back behind them."""
    weights: dict[str, Tensor] = {}

    def after_step(own: RetrievalTrainer, done: int) -> None:
        if done + 1 in steps:
            weights.update(weights or copy.deepcopy(own.model.state_dict()))
            for linear in (own.model.project_image, own.model.project_text):
                nn.init.zeros_(linear.weight)
                nn.init.ones_(linear.bias)
        elif done in steps:
            own.model.load_state_dict(weights)

    return after_step


MANY = pairs(84)


@pytest.mark.parametrize("settings", [{}, {"loss": "info_nce"}, {"preset": "Order++"}], ids=str)
def test_a_collapse_is_named_by_its_step_where_no_look_is(settings: dict[str, Any]) -> None:
    """At the 8th step; looks are at the first five and at the 20th. A state taken up knows of it too."""
    own, again = (
        trainer(MANY, batch_size=8, after_step=at_one_point(steps), **settings)
        for steps in (range(8, 99), ())
    )
    assert len(own.batches) == 21
    with pytest.raises(FloatingPointError, match="collapsed: in epoch 1, step 8 the scores"):
        own.fit()
    again.recipe.load_state_dict(own.recipe.state_dict())
    with pytest.raises(FloatingPointError, match="collapsed: in epoch 1, step 8 the scores"):
        again.recipe.check("epoch 1, step 20")


def test_a_loss_at_twice_the_margin_is_warned_of_where_it_was() -> None:
    """In one step alone, which does not stop the run. One that goes on says it no more."""
    own, again = (
        trainer(MANY, batch_size=8, after_step=at_one_point(steps)) for steps in ([8], [])
    )
    with pytest.warns(UserWarning, match="^in epoch 1, step 8 .* near one point") as caught:
        own.fit(until=1)
    assert len([w for w in caught if "near one point" in str(w.message)]) == 1
    state = own.recipe.state_dict()
    again.recipe.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.recipe.check("epoch 1, step 20")
    older = {name: kept for name, kept in state.items() if name not in ("collapse", "warned")}
    again.recipe.load_state_dict(older)


def test_a_loss_at_twice_the_margin_is_warned_of_once() -> None:
    own = trainer(margin=2.0, lr=1e-9)
    with torch.no_grad():
        for linear in (own.model.project_image, own.model.project_text):
            linear.bias.fill_(3.0)  # near one point
    with pytest.warns(
        UserWarning, match="hardest negatives hold the embeddings near one point"
    ) as caught:
        own.fit()
    assert len([w for w in caught if "near one point" in str(w.message)]) == 1


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    own = trainer()
    with torch.no_grad():
        own.model.project_text.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is not finite in epoch 1, step 1"):
        own.fit()


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    HRRLTrainer(
        "convnet", data="digits", concepts="classes", width=2, epochs=1, max_steps=1, tau=0.0, lam=None,
        device="cpu", progress="off", out=tmp_path,
    ).fit()  # fmt: skip
    with pytest.raises(FileExistsError, match="already holds a run"):
        trainer(out=tmp_path)
    with pytest.raises(ValueError, match=r"resume: .* is a run with other settings"):
        trainer(out=tmp_path, resume=True)


# --- the command line, and several processes


SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from hrrl_ext.processes import stop_processes
sys.path.insert(0, FOLDER)
from retrieval_cases import pairs, trainer
found = {}
for name, settings in {"max_hinge": {}, "sum_hinge": {"preset": "Order0", "reduction": "mean"},
                       "info_nce": {"loss": "info_nce"}, "sigmoid": {"loss": "sigmoid"},
                       "queue": {"queue": 30},
                       "players": {"tau": 0.1, "lam": 0.5, "c": "auto", "concepts": [0, 1, 2] * 10 + [2]},
                       "clusters": {"lam": 2.0, "concepts": "clusters:4,every=3,rounds=3"},
                       }.items():
    losses = []
    own = trainer(pairs(31, groups=11), validation=pairs(12), epochs=4, batch_size=17, clip_norm=1.0,
                  min_count=1, after_step=lambda own, _: losses.append(own.recipe._last.clone()),
                  **{"lr": 0.01} | settings)
    assert own.processes.size == int(sys.argv[2])
    result = own.fit()
    found |= {f"{name} {k}": value for k, value in result.model.state_dict().items()}
    if own.recipe.level is not None:
        found[f"{name} q"] = own.recipe.level.distribution.q
        found[f"{name} concept"] = own.recipe.level.concept
    if own.recipe.queue is not None:
        found |= {f"{name} {k}": value for k, value in own.recipe.queue.state_dict().items()}
    found[f"{name} first loss"] = losses[0]
    found[f"{name} rows"] = torch.tensor([[row["loss"], row["rsum"]] for row in result.history])
save_file(found, f"{sys.argv[1]}/rank-{own.processes.rank}.safetensors")
stop_processes()
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """Batches of 17, which two processes do not share evenly: every pair has the negatives of the whole
    batch, and a number that the loss learns has the gradient of it once. Sums are taken in another order:
    rounding of float32, which Adam amplifies; but not in the first loss, a mean of hinges and logarithms
    of scores of eight products each."""
    script = SCRIPT.replace("FOLDER", repr(os.fspath(Path(__file__).parents[1])))
    (one,), (first, second) = (tensors_of(size, script, tmp_path) for size in (1, 2))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        rtol, atol = (1e-6, 0.0) if name.endswith(" first loss") else (1e-3, 2e-5)
        torch.testing.assert_close(first[name], value, rtol=rtol, atol=atol, msg=name)
