"""Concepts that the trainer finds: what is clustered and when, what begins anew, and what is written down."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrun import tensors_of

from hrrl_ext import HRRLTrainer
from hrrl_ext.clustering import DiscoveredConcepts, GradientClustering
from hrrl_ext.clustering.discovered import Discovery
from hrrl_ext.data import ArrayImages, load_images, resolve_concepts
from hrrl_ext.plots import plot_histories
from hrrl_ext.robust import ChiSquare, ConceptDistribution, GroupDRO

DIGITS = load_images("digits", split="train").subset(range(120))
OTHERS = load_images("digits", split="test").subset(range(70))
SMALL: dict[str, Any] = {
    "data": DIGITS, "tau": 0.0, "lam": 20.0, "epochs": 5, "batch_size": 32, "lr": 0.05,
    "crop_padding": 1, "progress": "off", "device": "cpu",
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(216, 10)
    )  # fmt: skip


class Watched(HRRLTrainer):
    """Keeps what it trained with in each epoch, and the weights that the epoch began with."""

    def fit(self, until: int | None = None) -> Any:
        self.seen: list[dict[str, Any]] = []
        self._step = self.recipe.step
        self.recipe.step = self._watch  # type: ignore[assignment]
        return super().fit(until)

    def _watch(self, *arguments: Any) -> Tensor:
        d = self.objective.distribution
        if self.recipe.tally.steps == 0:
            assert self.batches.concept is not None
            self.seen.append(
                {
                    "weights": {k: v.clone() for k, v in self.model.state_dict().items()},
                    "ids": self.batches.concept.clone(),
                    "names": list(self.concept_names),
                    "q": d.q.clone(),
                    "adversary": d,
                    "t": int(d.t) if isinstance(d, ConceptDistribution) else None,
                    "validation": None if self.validation is None else self.validation.concept,
                }
            )
        return self._step(*arguments)


def loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)


def test_what_is_clustered_and_when() -> None:
    """The clustering by hand, at the weights that epochs 0, 2 and 4 began with: images without their
    augmentation, in eval mode, by the training's own loss; the later ones from the earlier centres."""
    found = DiscoveredConcepts(12, every=2, rounds=4, refresh_rounds=2, rank=2, seed=5)
    settings = SMALL | {"lr": 0.3, "label_smoothing": 0.1}
    trainer = Watched(network(), **settings, concepts=found, validation=OTHERS)
    trainer.fit()
    net = network()
    by_hand = GradientClustering(
        net, 12, rank=2, weighted=False, seed=5, batch_size=SMALL["batch_size"]
    )
    hand = Discovery(found, net, batch_size=32, loss=loss)
    hand.clustering = by_hand
    for epoch, seen in enumerate(trainer.seen):
        net.load_state_dict(seen["weights"])
        if epoch == 0:
            by_hand.fit(DIGITS, loss, rounds=4)
        elif epoch in (2, 4):
            hand.find(DIGITS)
        assert len(by_hand.history) == 4 + 2 * (epoch // 2)
        live = by_hand.cluster_size.nonzero().flatten()
        assert torch.equal(seen["ids"], by_hand.concepts())
        assert seen["names"] == [f"cluster {k}" for k in live]
        if epoch % 2 == 0:  # assign gives clusters; concepts are numbered without the empty ones
            expected = by_hand.assign(OTHERS, loss)
            assert torch.equal(live[seen["validation"]], expected)
    assert not torch.equal(trainer.seen[0]["ids"], trainer.seen[2]["ids"])
    assert trainer.recipe.discovery is not None
    for row, own in zip(trainer.recipe.discovery.clustering.history, by_hand.history, strict=True):
        assert row | {"seconds": 0} == own | {"seconds": 0}


def test_once_by_default() -> None:
    trainer = Watched(network(), **SMALL, concepts=DiscoveredConcepts(5, rounds=3))
    trainer.fit()
    assert trainer.recipe.discovery is not None
    assert len(trainer.recipe.discovery.clustering.history) == 3
    assert all(torch.equal(seen["ids"], trainer.seen[0]["ids"]) for seen in trainer.seen)
    assert [seen["t"] for seen in trainer.seen] == [0, 4, 8, 12, 16]  # one adversary, all along


@pytest.mark.parametrize("adversary", ["hrrl", "chi_square", "group_dro"])
def test_the_adversary_begins_anew(adversary: str) -> None:
    """With the counts of the new clusters, at its q0, and as many slow steps as at first."""
    settings = SMALL | {"c": "auto", "s": 6, "adversary": adversary, "lam": 0.5}
    trainer = Watched(network(), **settings, concepts="clusters:5,every=2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # q is to move far
        trainer.fit()
    for epoch, seen in enumerate(trainer.seen):
        d = seen["adversary"]
        assert torch.equal(d.concept_count, torch.bincount(seen["ids"]).double())
        new = epoch % 2 == 0
        assert torch.equal(seen["q"], d.q0) == new
        if isinstance(d, ConceptDistribution):
            assert seen["t"] == (0 if new else 4)
            assert d.c.isfinite()  # measured for each
        else:
            assert isinstance(d, (GroupDRO, ChiSquare))
    adversaries = [seen["adversary"] for seen in trainer.seen]
    assert adversaries[0] is adversaries[1] is not adversaries[2]
    if adversary == "hrrl":
        assert adversaries[0].c != adversaries[2].c


def test_clusters_without_an_adversary_change_nothing() -> None:
    """lam=None weights every example 1, whichever concept it has: the bits of plain training, so the
    clustering leaves no trace in the model or in any random state."""
    settings = SMALL | {"lam": None, "validation": OTHERS}
    plain = HRRLTrainer(network(), **settings, concepts="classes")
    torch.manual_seed(1)
    plain.fit()
    clustered = HRRLTrainer(network(), **settings, concepts="clusters:6,every=1")
    torch.manual_seed(1)
    clustered.fit()
    for a, b in zip(
        plain.model.state_dict().values(), clustered.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


# --- refreshes


def test_a_refresh_knows_the_clusters_again() -> None:
    """The last layer is multiplied: the gradients have other lengths and directions, their groups are
    the same. By the centres of before hardly an example would be in its cluster."""
    torch.manual_seed(0)
    x = 3 * torch.eye(6).repeat_interleave(10, 0) + 0.1 * torch.randn(60, 6)
    images = ArrayImages(
        (x.abs() / 4).clamp(max=1)[:, None, None, :].expand(-1, 3, 2, -1),
        torch.arange(60) // 10 % 2,
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 2))
    discovery = Discovery(DiscoveredConcepts(6), net, batch_size=60, loss=loss)
    discovery.find(images)
    before = discovery.clustering.assignment
    assert len(before.unique()) == 6
    with torch.no_grad():
        net[3].weight.mul_(-30)
    stale = GradientClustering(net, 6, weighted=False)
    stale.load_state_dict(discovery.clustering.state_dict())
    discovery.find(images)
    assert torch.equal(discovery.clustering.assignment, before)
    stale.fit(images, loss, rounds=1)
    assert (stale.assignment == before).double().mean() < 0.5


def test_an_empty_cluster_stays_out_of_a_refresh_until_it_is_repaired() -> None:
    """Its centre would be at 0, next to every example that is learned."""
    discovery = Discovery(DiscoveredConcepts(5), network(), batch_size=32, loss=loss)
    discovery.find(DIGITS)
    clustering = discovery.clustering
    clustering.assignment[clustering.assignment == 3] = 0
    clustering.cluster_size = torch.bincount(clustering.assignment, minlength=5)
    assert discovery.names == ["cluster 0", "cluster 1", "cluster 2", "cluster 4"]
    assert discovery.concept.unique().tolist() == [0, 1, 2, 3]
    assert set(discovery.assign(OTHERS).tolist()) <= {0, 1, 2, 3}
    old = [factor[:, 3].clone() for centre in clustering.centres for factor in centre]
    discovery.clustering.follow(DIGITS, loss)
    new = [factor[:, 3] for centre in clustering.centres for factor in centre]
    assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


# --- what is measured and written


def test_groups_of_the_validation_set() -> None:
    groups = OTHERS.target % 3
    trainer = Watched(
        network(), **SMALL, concepts="clusters:5,every=1,rounds=2,refresh_rounds=1",
        validation=OTHERS, validation_concepts=groups, select="worst_concept",
    )  # fmt: skip
    row = trainer.fit().last
    assert list(row["concept_accuracy"]) == ["group 0", "group 1", "group 2"]
    assert all(torch.equal(seen["validation"], groups) for seen in trainer.seen)
    x, target = OTHERS.__getitems__(range(70))
    trainer.model.eval()
    hit = trainer.model(x.float() / 255).argmax(1) == target
    for g in range(3):
        expected = hit[groups == g].double().mean().item()
        assert row["concept_accuracy"][f"group {g}"] == pytest.approx(expected)
    assert row["worst_concept_accuracy"] == min(row["concept_accuracy"].values())
    assert all(name.startswith("cluster ") for name in row["q"])


def test_what_a_run_writes_where_clusters_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five clusters, then three, then four: a row has those of its epoch, the tables have all."""
    find, wanted = Discovery.find, iter((5, 3, 4))

    def thinned(self: Discovery, *arguments: Any) -> None:
        find(self, *arguments)
        keep = next(wanted)
        self.clustering.assignment.clamp_(min=5 - keep)
        self.clustering.cluster_size = torch.bincount(self.clustering.assignment, minlength=5)

    monkeypatch.setattr(Discovery, "find", thinned)
    out = tmp_path / "run"
    settings = SMALL | {"epochs": 3, "out": out, "validation": OTHERS}
    trainer = HRRLTrainer(network(), **settings, concepts="clusters:5,every=1")
    history = trainer.fit().history
    assert [len(row["q"]) for row in history] == [5, 3, 4]
    for row in history:
        assert sum(row["q"].values()) == pytest.approx(1)
        assert sum(row["concept_count"].values()) == 120
        columns = ("q", "concept_loss", "concept_accuracy", "concept_count")
        assert len({tuple(row[column]) for column in columns}) == 1
    with (out / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["q/cluster 0"] == "" for row in table] == [False, True, True]
    assert [row["q/cluster 1"] == "" for row in table] == [False, True, False]
    concepts = json.loads((out / "results.json").read_text())["concepts"]
    assert list(concepts) == [f"cluster {k}" for k in range(1, 5)]
    assert concepts["cluster 4"]["q"] == history[-1]["q"]["cluster 4"]
    assert json.loads((out / "config.json").read_text())["concepts"] == "clusters:5,every=1"
    pytest.importorskip("matplotlib")
    assert len(plot_histories({"run": history}, tmp_path / "plots")) == 6


def test_results_with_groups(tmp_path: Path) -> None:
    settings = SMALL | {"epochs": 1, "out": tmp_path, "validation": OTHERS}
    HRRLTrainer(
        network(), **settings, concepts="clusters:4", validation_concepts=OTHERS.target % 2
    ).fit()
    concepts = json.loads((tmp_path / "results.json").read_text())["concepts"]
    assert concepts["group 1"]["q"] is None
    assert concepts["group 1"]["accuracy_last"] is not None
    assert concepts["cluster 0"]["accuracy_last"] is None


# --- settings


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("clusters:20", DiscoveredConcepts(20)),
        ("clusters:20,every=5", DiscoveredConcepts(20, every=5)),
        (
            "clusters:2,every=1,rounds=7,refresh_rounds=2,layers=fc+layer1.0.conv1,rank=2,seed=3",
            DiscoveredConcepts(
                2,
                every=1,
                rounds=7,
                refresh_rounds=2,
                layers=["fc", "layer1.0.conv1"],
                rank=2,
                seed=3,
            ),
        ),
        ("clusters:3,center=mean", DiscoveredConcepts(3, center="mean")),
    ],
)
def test_as_text(text: str, settings: DiscoveredConcepts) -> None:
    assert DiscoveredConcepts.parse(text) == settings
    assert str(settings) == text


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("clusters:", "num_clusters must be a whole number, got ''; expected clusters:K"),
        ("clusters:many", "num_clusters must be a whole number, got 'many'"),
        ("clusters:3.5", "num_clusters must be a whole number, got '3.5'"),
        ("clusters:1", "num_clusters must be at least 2, got 1"),
        ("clusters:5,evry=2", "setting 'evry' is not known; did you mean 'every'"),
        ("clusters:5,every", "every has no value; write every=VALUE, a whole number"),
        ("clusters:5,seed=1,seed=2", "seed is given twice"),
        ("clusters:5,num_clusters=2", "num_clusters is given twice"),
        ("clusters:5,every=0", "every must be at least 1, got 0"),
        ("clusters:5,rounds=0", "rounds must be at least 1"),
        ("clusters:5,center=median", "center: 'median' is not known; did you mean 'mean'"),
        ("clusters:5,center=mean,rank=2", "rank must be at least 1, and 1 with center='mean'"),
        ("clusters:5,layers=7", "layers: the model's layer '7' is not known"),
        ("clusters:121", "clusters:121 are more clusters than digits-train has images, 120"),
    ],
)
def test_bad_settings_are_refused_before_any_work(
    concepts: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        HRRLTrainer(network(), **SMALL, concepts=concepts, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_none() -> None:
    for value in (2.0, True, "3"):
        with pytest.raises(TypeError, match="every must be an int"):
            DiscoveredConcepts(4, every=value)


def test_what_does_not_go_with_clusters() -> None:
    with pytest.raises(ValueError, match="leave q0 out"):
        HRRLTrainer(network(), **SMALL, concepts="clusters:2", q0=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"HRRLTrainer finds while it trains"):
        resolve_concepts("clusters:5", DIGITS)
    with pytest.raises(ValueError, match=r"validation_concepts must have shape \[70\]"):
        HRRLTrainer(
            network(), **SMALL, concepts="clusters:2", validation=OTHERS, validation_concepts=[0]
        )


def test_a_run_is_continued_as_it_was_begun(tmp_path: Path) -> None:
    """Text and object are the same settings; others are refused."""
    settings = SMALL | {"epochs": 1, "out": tmp_path}
    HRRLTrainer(network(), **settings, concepts="clusters:5").fit()
    again = HRRLTrainer(network(), **settings, concepts=DiscoveredConcepts(5), resume=True)
    assert len(again.concept_names) == len(again.objective.distribution.q) > 1
    with pytest.raises(ValueError, match="concepts differ"):
        HRRLTrainer(network(), **settings, concepts="clusters:6", resume=True)


def test_one_line_per_clustering(capsys: pytest.CaptureFixture[str]) -> None:
    settings = SMALL | {"epochs": 3, "progress": "plain"}
    HRRLTrainer(network(), **settings, concepts="clusters:4,every=2").fit()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clusters: ")]
    assert len(lines) == 2
    assert "of 4 have examples" in lines[0]


# --- several processes

SCRIPT = """
import sys, torch
from torch import nn
from safetensors.torch import save_file
from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.processes import stop_processes

digits = load_images("digits", split="train").subset(range(203))
torch.manual_seed(5)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10))
trainer = HRRLTrainer(model, data=digits, validation=digits, concepts="clusters:6,every=2", tau=0.0, lam=20.0,
                      epochs=3, batch_size=26, lr=0.1, crop_padding=1, device="cpu", progress="off")
assert trainer.processes.size == int(sys.argv[2])
trainer.fit()
save_file({"q": trainer.objective.distribution.q, "concept": trainer.batches.concept,
           "validation": trainer.validation.concept},
          f"{sys.argv[1]}/rank-{trainer.processes.rank}.safetensors")
stop_processes()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    (one,), (first, second) = (tensors_of(size, SCRIPT, tmp_path) for size in (1, 2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name  # the same in both, to the bit
    assert len(one["concept"].unique()) > 2
    for name in ("concept", "validation"):  # rounding may move an example that is between two
        assert (one[name] == first[name]).double().mean() > 0.97
    torch.testing.assert_close(one["q"], first["q"], rtol=0, atol=2e-3)
