"""Concepts of pairs that are found while a joint embedding trains: clusters of the pairs' gradients."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from retrieval_cases import WORDS, pairs, pictures, trainer
from test_retrieval_training import LOSSES, of_set
from torch import Tensor, nn

from hrrl_ext import DiscoveredConcepts
from hrrl_ext.clustering.layers import layer_gradients
from hrrl_ext.retrieval import Pairs, RetrievalTrainer
from hrrl_ext.retrieval.pair_clusters import PairClusters

CONCEPTS = "clusters:4,every=2,rounds=3,refresh_rounds=2"


def clustered(data: Pairs | None = None, **settings: Any) -> RetrievalTrainer:
    return trainer(data, **{"concepts": CONCEPTS, "lam": 2.0, "c": 1.0} | settings)


def clusters_of(own: RetrievalTrainer) -> PairClusters:
    assert own.recipe.clusters is not None
    return own.recipe.clusters


# --- the gradient of a pair by itself


@pytest.mark.parametrize("settings", [*LOSSES, {"queue": 20}], ids=str)
def test_the_gradient_of_a_pair_is_that_of_its_loss_alone(settings: dict[str, Any]) -> None:
    """By autograd of loops in float64: the loss of the pair in a set with the fixed others, which have no
    gradient. Those of its group are no negatives."""
    own = clustered(pairs(groups=9), **settings)
    config, examples = own.recipe.config, clusters_of(own).examples
    others = len(examples._drawn)
    assert others == (config.negatives or 16) + (config.queue or 0)
    model = copy.deepcopy(own.model).double()
    encoded, group = own.batches.encoded, own.batches.encoded.pairs.caption_group.tolist()
    with torch.no_grad():
        features = encoded.pairs.images[encoded.pairs.owner].double()
        states = model.text_encoder(*encoded.captions(torch.arange(60)))
    some = torch.tensor([0, 7, 33, int(examples._drawn[0])])
    with examples.held(own.recipe._loss_now) as (numbers, groups):
        assert numbers.tolist() == list(range(60))
        layers = clusters_of(own).clustering.layers
        of_layers = layer_gradients(examples, layers, some, groups[some], examples.loss)
        losses = examples.loss(examples(some), groups[some])
    assert examples._read is None and all(p.grad is None for p in own.model.parameters())
    weights = [model.project_image.weight, model.project_image.bias]
    weights += [model.project_text.weight, model.project_text.bias]
    for at, n in enumerate(some.tolist()):
        rows = torch.tensor([n, *examples._drawn.tolist()])
        f = model.encode_image(features[rows], precomputed=True)
        g = model.encode_state(states[rows])
        f, g = (torch.cat([x[:1], x[1:].detach()]) for x in (f, g))
        loss = of_set(f, g, [group[row] for row in rows.tolist()], model, config, [0])
        assert losses[at].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        want = torch.autograd.grad(loss, weights)
        for layer, (weight, bias) in zip(of_layers, (want[:2], want[2:]), strict=True):
            got = layer.materialize()[at, 0].double()
            torch.testing.assert_close(
                got, torch.cat([weight, bias[:, None]], 1), rtol=1e-4, atol=1e-5 * others
            )


def test_a_pair_whose_group_all_others_are_of_has_no_loss() -> None:
    for loss in ("max_hinge", "sum_hinge"):
        own = clustered(loss=loss)
        examples = clusters_of(own).examples
        examples._group.zero_()
        with examples.held(own.recipe._loss_now) as (numbers, groups):
            assert examples.loss(examples(numbers), groups).tolist() == [0] * 60


# --- what is found


def test_two_kinds_of_pairs_are_told_apart() -> None:
    """Of 60 pairs 12 are of another kind, with images and words of their own. Nobody says so, and q finds
    the kind that is learned worse."""
    random = torch.Generator().manual_seed(0)
    rare = torch.arange(60) % 5 == 4
    features = 3 * torch.eye(6)[rare.long()] + 0.3 * torch.randn(60, 6, generator=random)
    word = torch.randint(5, (60, 3), generator=random) + 5 * rare[:, None]
    captions = [" ".join(WORDS[w] for w in row) for row in word]
    own = clustered(Pairs(features, captions, range(60)), concepts="clusters:2", min_count=1)
    row = own.fit().last
    level = own.recipe.level
    assert level is not None
    assert level.names == ["cluster 0", "cluster 1"]
    of_rare = level.concept[rare].unique().tolist()
    assert len(of_rare) == 1 and (level.concept == of_rare[0]).equal(rare)
    name = level.names[of_rare[0]]
    assert row["concept_count"] == {n: 12 if n == name else 48 for n in level.names}
    worse = max(row["concept_loss"], key=lambda n: row["concept_loss"][n])
    assert max(row["q"], key=lambda n: row["q"][n] / row["concept_count"][n]) == worse


def test_wrong_captions_are_not_among_what_is_learned() -> None:
    """24 of 120 images have the caption of another one. Once most of the others are learned, these are a
    cluster, whose gradients are near 0, and most of the wrong ones are elsewhere."""
    random = torch.Generator().manual_seed(1)
    kind = torch.randint(len(WORDS), (120, 3), generator=random)
    features = torch.eye(12)[kind].sum(1) @ torch.randn(
        12, 12, generator=torch.Generator().manual_seed(0)
    )
    kind[:24] = kind[:24].roll(1, 0)
    captions = [" ".join(WORDS[w] for w in row) for row in kind]
    own = clustered(
        Pairs(features, captions, range(120)), concepts="clusters:6", lam=None, loss="sum_hinge",
        batch_size=30, min_count=1, epochs=10, lr=0.02,
    )  # fmt: skip
    own.fit()
    clusters = clusters_of(own)
    clusters.clustering.restart()
    clusters.find_pairs("sum_hinge")
    learned = clusters.concept == clusters.clustering.cluster_size.argmax()
    assert learned[24:].double().mean() > 0.6 and learned[:24].double().mean() < 0.4


class Seen:
    """What a run has as each of its epochs begins."""

    def __init__(self, own: RetrievalTrainer) -> None:
        self.epochs: list[dict[str, Any]] = []
        self._own, self._step = own, own.recipe.step
        own.recipe.step = self.step  # type: ignore[assignment]

    def step(self, *arguments: Any) -> Tensor:
        recipe, level = self._own.recipe, self._own.recipe.level
        assert level is not None
        if recipe.done % len(recipe.batches) == 0:
            q = level.distribution.q.clone(), level.distribution.q0
            state = {"concept": level.concept, "names": level.names, "q": q}
            weights = copy.deepcopy(recipe.model.state_dict())
            self.epochs.append(state | {"t": int(level.distribution.t), "weights": weights})
        return self._step(*arguments)


@pytest.mark.parametrize("warmup", ["none", "sum_hinge"])
def test_what_is_clustered_and_when(warmup: Any) -> None:
    """At the weights that epochs 0 and 2 began with, by the loss that is trained with then, in eval mode
    and without augmentation; the later clustering from the clusters of the earlier. The adversary begins
    anew with each."""
    settings: dict[str, Any] = {
        "model": "convnet",
        "width": 2,
        "flip": True,
        "epochs": 4,
        "lr": 0.01,
    }
    own = clustered(pictures(), **settings, c="auto", lam=20.0, warmup_loss=warmup)
    seen = Seen(own)
    own.fit()
    other = clustered(pictures(), **settings)
    by_hand = clusters_of(other)
    for epoch, state in enumerate(seen.epochs):
        other.model.load_state_dict(state["weights"])
        if epoch % 2 == 0:
            by_hand.find_pairs("sum_hinge" if warmup == "sum_hinge" and epoch == 0 else "max_hinge")
            assert torch.equal(*state["q"])
        assert torch.equal(state["concept"], by_hand.concept)
        assert state["names"] == by_hand.names
        assert state["t"] == (0 if epoch % 2 == 0 else len(own.batches))
    ids = [state["concept"] for state in seen.epochs]
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[1], ids[2])
    rounds = [row | {"seconds": 0} for row in by_hand.clustering.history]
    assert rounds == [row | {"seconds": 0} for row in clusters_of(own).clustering.history]


@pytest.mark.parametrize("settings", [{}, {"tau": 0.1}], ids=str)
def test_clusters_without_an_adversary_change_nothing(settings: dict[str, Any]) -> None:
    """The clustering leaves no trace in the model or in any random state."""
    many = [trainer(pictures(), model="convnet", width=2, flip=True, **settings)]
    many.append(clustered(pictures(), model="convnet", width=2, flip=True, lam=None, **settings))
    for own in many:
        torch.manual_seed(1)
        own.fit()
    plain, found = (own.model.state_dict() for own in many)
    assert all(torch.equal(value, found[name]) for name, value in plain.items())


def test_layers_are_those_that_both_sides_end_in() -> None:
    own = clustered(concepts="clusters:4,rounds=1,layers=project_text,rank=2")
    own.fit()
    (centre,) = clusters_of(own).clustering.centres
    assert centre.centre_out.shape == (1, 4, 2, 8)


# --- a run


def test_the_rows_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts and weights by cluster; the worst concept is one of those that the validation pairs have."""
    own = clustered(
        validation=pairs(), validation_concepts=["x", "y", "z"] * 10, out=tmp_path, progress="plain"
    )
    row = own.fit().last
    names = list(row["q"])
    assert names == list(row["concept_loss"]) == list(row["concept_count"])
    assert all(name.startswith("cluster ") for name in names)
    assert sum(row["concept_count"].values()) == 60
    assert list(row["concept_rsum"]) == ["x", "y", "z"]
    said = capsys.readouterr().err
    assert said.count("clusters: ") == 1 and "of 4 have examples" in said


def test_clusters_without_a_pair_are_left_out() -> None:
    """All pairs but two are alike."""
    word = ["red apple"] * 28 + ["blue dog", "flat cat"]
    features = torch.ones(30, 6)
    features[28:] = torch.eye(6)[:2]
    own = clustered(Pairs(features, word, range(30)), concepts="clusters:12", min_count=1, lam=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # embeddings near one point, and q in a corner
        row = own.fit().last
    assert 2 <= len(row["q"]) < 12
    assert min(row["concept_count"].values()) >= 1


def test_a_run_goes_on_with_the_same_clusters_alone(tmp_path: Path) -> None:
    """Text and object are the same settings. tests/training/test_resume.py compares the bits of runs that
    were cut."""
    clustered(out=tmp_path).fit(until=1)
    with pytest.raises(ValueError, match=r"resume: .* is a run with other settings.*concepts"):
        clustered(out=tmp_path, resume=True, concepts="clusters:5")
    found = DiscoveredConcepts(4, every=2, rounds=3, refresh_rounds=2)
    again = clustered(out=tmp_path, resume=True, concepts=found)
    level = again.recipe.level
    assert level is not None and len(level.names) > 1
    assert torch.equal(level.concept, clusters_of(again).concept)


def joining() -> dict[str, Any]:
    """An encoder whose features of an image depend on the others."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 4), norm, nn.MaxPool2d(5), nn.Flatten())
    encoder.num_features = 4  # type: ignore[assignment]
    return {"data": pictures(4), "model": encoder, "batch_size": 4}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"q0": [0.5, 0.5]}, "q0 has an entry per concept, and clusters have no order .* leave q0 out"),
    ({"concepts": "clusters:61"}, "clusters:61 are more clusters than pairs has pairs, 60"),
    ({"concepts": "clusters:x"}, "num_clusters must be a whole number, got 'x'"),
    ({"concepts": "clusters:4,evry=2"}, "did you mean 'every'"),
    ({"concepts": "clusters:4,layers=fc"}, "the model's layer 'fc' is not known"),
    (
        {"concepts": "clustrs:4"},
        "ids of the images, 'clusters:K', or 'classes' where they have any",
    ),
    (joining(), "normalises by the statistics of the batch"),
    (
        {"validation": pairs(), "validation_concepts": "clusters:4"},
        "validation_concepts must be ids of the images, or 'classes'",
    ),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_told_before_any_work(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        clustered(**settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
