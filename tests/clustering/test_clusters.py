"""GradientClustering: what it finds, what it does not depend on, and what it refuses."""

from __future__ import annotations

import io
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrun import tensors_of

from hrrl_ext.clustering import GradientClustering
from hrrl_ext.clustering.examples import cross_entropy
from hrrl_ext.data import load_images
from hrrl_ext.models import resnet18

Points = tuple[Tensor, Tensor]


def points(count: int = 200, copies: int = 0) -> Points:
    """Gaussian points with the side of a plane as class; the last ``copies`` repeat the first five."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=g)
    if copies:
        x[-copies:] = x[:5].repeat(copies // 5, 1)
    return x, (x[:, 0] > 0).long()


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2)).to(dtype)


def gradients(net: nn.Module, data: Points) -> Tensor:
    """Per-example gradients [N, P] float64, stored."""
    net = net.double()

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(net, p, (x[None],)), y[None])[0]

    p = {name: value.detach() for name, value in net.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(p, data[0].double(), data[1])
    return torch.cat([value.flatten(1) for value in found.values()], 1)


@pytest.mark.parametrize("center", ["svd", "mean"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_finds_duplicates(center: str, share: float) -> None:
    """Five points repeated to half of the data, and to most of it, get a cluster each."""
    copies = int(1000 * share)
    clustering = GradientClustering(model(), 12, center=center)
    clustering.fit(points(1000, copies), rounds=15)
    found = clustering.assignment[-copies:].view(-1, 5)
    assert (found == found[:1]).all()  # the copies of one point are together
    assert len(found[0].unique()) == 5  # and those of two are not


def test_as_many_clusters_as_distinct_points() -> None:
    """No distortion, so no variance; float32 products know a distance to 1e-6 of its terms."""
    x, target = points(8)
    data = x.repeat(4, 1), target.repeat(4)
    clustering = GradientClustering(model(), 8).fit(data, rounds=20)
    assert clustering.history[-1]["explained"] > 1 - 1e-5
    assert clustering.cluster_size.tolist() == [4] * 8


def test_a_row_of_history_is_what_it_says() -> None:
    """Against stored gradients in float64: A at the centres before, N_k just counted."""
    data, net = points(60), model(torch.float64)
    data = data[0].double(), data[1]
    clustering = GradientClustering(net, 5, weighted="frozen").fit(data, rounds=3)
    state = clustering.state_dict()
    clustering.fit(data, rounds=1)
    g = gradients(net, data)
    whole = []
    for (centre_in, centre_out), bias in zip(state["centres"], (True, True), strict=True):
        c = torch.einsum("kro,krj->koj", centre_out[0], centre_in[0])
        whole += [c[..., :-1].flatten(1), c[..., -1]] if bias else [c.flatten(1)]
    squared = ((torch.cat(whole, 1) - g[:, None]) ** 2).sum(2)  # [N, K]
    assignment = (state["weight"] * squared).argmin(1)
    distance = squared.gather(1, assignment[:, None])[:, 0]
    size = torch.bincount(assignment, minlength=5)
    assert torch.equal(clustering.assignment, assignment)
    assert torch.equal(clustering.cluster_size, size)
    row = clustering.history[-1]
    assert row["round"] == 4
    assert row["objective"] == pytest.approx((size[assignment] * distance).sum().item() / 60**2)
    assert row["distortion"] == pytest.approx(distance.mean().item())
    assert row["explained"] == pytest.approx(1 - (distance.sum() / (g**2).sum()).item())
    assert row["moved"] == (assignment != state["assignment"]).double().mean().item()
    assert row["empty"] == (size == 0).sum().item()
    within = torch.zeros(5).double().index_add_(0, assignment, distance) / size.clamp(min=1)
    torch.testing.assert_close(clustering.distortion, within)
    if row["empty"] == 0:
        torch.testing.assert_close(clustering.weight, size.double())


def test_the_objective_is_the_variance() -> None:
    """Eq. 4.2 over N² is the variance of the stratified estimator where centres are means: here of
    rank 2 with one output each, so that rank 1 is exact."""
    x, target = points(40)
    net = nn.Linear(12, 2).double()  # two classes: the gradient is (p, -p) xᵀ, of rank 1
    data = x.double(), target
    clustering = GradientClustering(net, 4, layers=[""]).fit(data, rounds=40)
    g = gradients(net, data)
    variance = 0.0
    for k, size in enumerate(clustering.cluster_size.tolist()):
        inside = g[clustering.assignment == k]
        variance += size**2 * ((inside - inside.mean(0)) ** 2).sum(1).mean().item()
    assert clustering.history[-1]["moved"] == 0
    assert clustering.history[-1]["objective"] == pytest.approx(variance / 40**2, rel=1e-3)


def test_unweighted_rounds_lower_the_objective() -> None:
    """Ordinary k-means on stored ranks: with no N_k, A and U each lower it."""
    clustering = GradientClustering(model(), 10, weighted=False).fit(points(), rounds=12)
    objective = [row["objective"] for row in clustering.history if row["empty"] == 0]
    assert len(objective) > 5
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(objective))


@pytest.mark.parametrize("settings", [{}, {"center": "mean"}, {"rank": 2}], ids=str)
def test_batches_and_order_do_not_matter(settings: dict[str, Any]) -> None:
    """From the same first centres, in float64: the same clusters to the last example."""
    (x, target), order = points(), torch.randperm(200, generator=torch.Generator().manual_seed(5))
    data = x.double(), target
    first = GradientClustering(model(torch.float64), 10, **settings).fit(data, rounds=1)
    state = first.state_dict()

    def continued(batch_size: int, data: Points, assignment: Tensor) -> GradientClustering:
        other = GradientClustering(model(torch.float64), 10, batch_size=batch_size, **settings)
        other.load_state_dict(state | {"assignment": assignment})
        return other.fit(data, rounds=8)

    whole = continued(200, data, state["assignment"])
    for batch_size in (1, 7, 128):
        other = continued(batch_size, data, state["assignment"])
        assert torch.equal(other.assignment, whole.assignment)
        assert other.history[-1]["objective"] == pytest.approx(whole.history[-1]["objective"])
    shuffled = continued(64, (data[0][order], target[order]), state["assignment"][order])
    assert torch.equal(shuffled.assignment, whole.assignment[order])


def test_resumed() -> None:
    """Through a file that loads without pickles, to the same bits."""
    whole = GradientClustering(model(), 10).fit(points(), rounds=6)
    part = GradientClustering(model(), 10).fit(points(), rounds=3)
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    other = GradientClustering(model(), 10, seed=9)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.fit(points(), rounds=3)
    assert torch.equal(other.assignment, whole.assignment)
    assert torch.equal(other.weight, whole.weight)
    for a, b in zip(other.centres, whole.centres, strict=True):
        assert torch.equal(a.centre_in, b.centre_in)
    keep = ("round", "objective", "distortion", "explained", "moved", "empty")
    assert [[row[k] for k in keep] for row in other.history] == [
        [row[k] for k in keep] for row in whole.history
    ]
    with pytest.raises(ValueError, match="of 10 clusters and 2 layers"):
        GradientClustering(model(), 9).load_state_dict(part.state_dict())


def test_the_seed_chooses() -> None:
    def fitted(seed: int) -> Tensor:
        return GradientClustering(model(), 10, seed=seed).fit(points(), rounds=2).assignment

    random = torch.get_rng_state()
    assert torch.equal(fitted(0), fitted(0))
    assert not torch.equal(fitted(0), fitted(1))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("weighted", [True, False, "frozen"])
def test_assign(weighted: Any) -> None:
    """Other data by the same centres, example by example; the data itself as the next A does."""
    data = points()
    clustering = GradientClustering(model(), 10, weighted=weighted).fit(data, rounds=10)
    assignment = clustering.assign(data)
    some = torch.tensor([3, 7, 150])
    assert torch.equal(clustering.assign((data[0][some], data[1][some])), assignment[some])
    clustering.fit(data, rounds=1)
    same = (clustering.assignment == assignment).double().mean()
    # True takes an example out of its cluster before it asks; "frozen" may have refilled a cluster.
    assert same == 1 if weighted is False else same > 0.8


@pytest.mark.parametrize("center", ["svd", "mean"])
def test_no_round_raises_the_objective(center: str) -> None:  # with the sizes moving
    """A lowers Eq. 4.2 at the centres, a half step of U at the assignment (means need not)."""
    for copies in (0, 100, 180):
        clustering = GradientClustering(model(), 10, center=center).fit(
            points(200, copies), rounds=10
        )
        objective = [row["objective"] for row in clustering.history]
        assert objective[-1] < 0.9 * objective[0]
        if center == "svd":
            assert all(b <= a * (1 + 1e-5) for a, b in pairwise(objective))


def test_below_the_variance_of_plain_batches() -> None:
    """For stored gradients: Σ N_k² V_k / N², the estimator's own variance, under σ² / K."""
    data, net = points(), model()
    clustering = GradientClustering(net, 10).fit(data, rounds=10)
    g = gradients(net, data)
    variance = 0.0
    for k, size in enumerate(clustering.cluster_size.tolist()):
        inside = g[clustering.assignment == k]
        variance += size * ((inside - inside.mean(0)) ** 2).sum().item() / 200**2
    plain = ((g - g.mean(0)) ** 2).sum(1).mean().item() / 10
    assert variance < 0.75 * plain


def test_concepts_are_dense() -> None:
    x, target = points(8)
    clustering = GradientClustering(model(), 12).fit((x.repeat(4, 1), target.repeat(4)), rounds=6)
    assert clustering.history[-1]["empty"] >= 4  # there are no more gradients to split
    concepts = clustering.concepts()
    assert concepts.unique().tolist() == list(range(len(clustering.assignment.unique())))
    for k in concepts.unique():
        assert len(clustering.assignment[concepts == k].unique()) == 1


def test_one_cluster_and_one_each() -> None:
    data = points(30)
    one = GradientClustering(model(), 1).fit(data, rounds=2)
    assert one.assignment.tolist() == [0] * 30
    each = GradientClustering(model(), 30).fit(data, rounds=12)
    assert each.history[-1]["explained"] > 0.999
    assert each.cluster_size.max() <= 3


def test_images_of_a_residual_network() -> None:
    """Batch normalisation and all; nothing of the model changes."""
    images = load_images("digits", split="train").subset(range(120))
    net = resnet18(num_classes=10, stem="small", width=4).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    clustering = GradientClustering(net, 8).fit(images, rounds=4)
    assert clustering.history[-1]["explained"] > 0.2
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert "fc.weight" in clustering.parameters


def test_zero_gradients_are_a_cluster() -> None:
    """Examples without loss: distance 0 from a centre 0, and no NaN from a norm of 0."""
    x, target = points(40)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target) * (target == 0)

    clustering = GradientClustering(model(), 4).fit((x, target), loss, rounds=10)
    quiet = clustering.assignment[target == 1].unique()
    assert len(quiet) == 1
    assert clustering.distortion[quiet].item() < 1e-6


def test_report() -> None:
    lines: list[str] = []
    GradientClustering(model(), 4).fit(points(40), rounds=2, report=lines.append)
    assert [line.split("  ")[0] for line in lines] == ["round 1", "round 2"]


def test_a_gradient_that_is_not_finite() -> None:
    x, target = points(40)
    x[17, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="example 17 is not finite"):
        GradientClustering(model(), 4).fit((x, target))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, "num_clusters must be a whole number from 1 on, got 0"),
        ({"num_clusters": 2.5}, "num_clusters must be a whole number from 1 on, got 2.5"),
        ({"center": "median"}, "'svd' or 'mean', got 'median'"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 2, "center": "mean"}, "use center='svd'"),
        ({"batch_size": 0}, "batch_size"),
        ({"weighted": "size"}, "True, False or 'frozen'"),
        ({"layers": ["1"]}, "'1' is a ReLU"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientClustering(model(), **({"num_clusters": 4} | settings))


def test_data_that_makes_no_sense() -> None:
    clustering = GradientClustering(model(), 41)
    with pytest.raises(ValueError, match="num_clusters is 41, but data has 40 examples only"):
        clustering.fit(points(40))
    with pytest.raises(ValueError, match="rounds must not be negative, got -1"):
        clustering.fit(points(60), rounds=-1)
    with pytest.raises(ValueError, match="has no examples"):
        clustering.fit(points(0))
    with pytest.raises(ValueError, match="got \\[40, 12\\] and \\[39\\]"):
        clustering.fit((points(40)[0], points(40)[1][1:]))
    with pytest.raises(RuntimeError, match="call fit first"):
        clustering.assign(points(40))
    with pytest.raises(RuntimeError, match="call fit first"):
        clustering.concepts()
    clustering = GradientClustering(model(), 4).fit(points(40), rounds=1)
    with pytest.raises(ValueError, match="has 41 examples, and was clustered with 40"):
        clustering.fit(points(41))


def test_batch_statistics_are_refused() -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="1 normalises by the statistics of the batch"):
        GradientClustering(nn.Sequential(nn.Linear(12, 4), norm), 3).fit(points(20))


def test_dropout_and_batch_normalisation_are_as_in_evaluation() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    expected = GradientClustering(net.eval(), 3).fit(points(20), rounds=2)
    with pytest.warns(DeprecationWarning, match="mode goes with the next version; leave it out"):
        found = GradientClustering(net.train(), 3, mode="train").fit(points(20), rounds=2)
    assert torch.equal(found.distance, expected.distance) and net.training


def test_restart_is_a_new_one() -> None:
    """Also after an odd number of rounds, which alternate in the side that they hold."""
    data, net = points(), model()
    again = GradientClustering(net, 4).fit(data, rounds=3)
    again.restart()
    assert again.assignment.shape == again.distance.shape == (0,)
    again.fit(data, rounds=2)
    new = GradientClustering(net, 4).fit(data, rounds=2)
    for name in ("assignment", "distance", "cluster_size", "distortion", "weight"):
        assert torch.equal(getattr(again, name), getattr(new, name)), name
    assert [row["objective"] for row in again.history] == [row["objective"] for row in new.history]


def test_follow_moves_the_centres_to_the_gradients_of_now() -> None:
    """A hundredfold shrinking of all gradients shrinks the centres, and A finds the same clusters."""

    def shrunk(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target) / 100

    data = points()
    clustering = GradientClustering(model(), 10, weighted=False).fit(data, rounds=30)
    before = clustering.assignment
    aged = clustering.assign(data, shrunk)
    assert (aged == before).double().mean() < 0.5
    clustering.follow(data, shrunk)
    assert torch.equal(clustering.assignment, before)
    assert (clustering.assign(data, shrunk) == before).double().mean() > 0.95
    with pytest.raises(RuntimeError, match="call fit first"):
        GradientClustering(model(), 4).follow(data)
    with pytest.raises(ValueError, match="was clustered with 200"):
        clustering.follow(points(100))


def test_distance_is_to_the_centres_of_the_a_step() -> None:
    """Their mean over a cluster is its distortion, and over all the history's."""
    clustering = GradientClustering(model(), 4).fit(points(), rounds=2)
    for k, distortion in enumerate(clustering.distortion):
        own = clustering.distance[clustering.assignment == k]
        assert len(own) == 0 or own.mean().item() == pytest.approx(distortion.item(), rel=1e-12)
    mean = clustering.distance.mean().item()
    assert mean == pytest.approx(clustering.history[-1]["distortion"], rel=1e-12)
    loaded = GradientClustering(model(), 4)
    loaded.load_state_dict(clustering.state_dict())
    assert torch.equal(loaded.distance, clustering.distance)


# --- several processes

SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from test_clusters import model, points
from hrrl_ext.clustering import GradientClustering
from hrrl_ext.processes import start_processes, stop_processes

processes, _ = start_processes("cpu")
assert processes.size == int(sys.argv[2])
x, y = points(203)
found = {}
for weighted in (True, "frozen", False):
    clustering = GradientClustering(model(torch.float64), 7, weighted=weighted, batch_size=32)
    clustering.fit((x.double(), y), rounds=4).follow((x.double(), y))
    found[f"{weighted} assignment"] = clustering.assignment
    found[f"{weighted} assigned"] = clustering.assign((x[:50].double(), y[:50]))
    found[f"{weighted} distortion"] = clustering.distortion
    for l, (c, d) in enumerate(clustering.centres):
        found[f"{weighted} centres {l}"] = torch.einsum("gkro,gkrj->gkoj", d, c)
save_file(found, f"{sys.argv[1]}/rank-{processes.rank}.safetensors")
stop_processes()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """203 examples in shares of 102 and 101: the same clusters, sums to the rounding of float64."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((*map(str, sys.path), "")))
    (one,), (first, second) = (tensors_of(size, SCRIPT, tmp_path) for size in (1, 2))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name  # the same in both, to the bit
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-9)
