"""The stratified sampler: every outcome enumerated on tiny strata, exactly as the code draws them."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from itertools import islice, permutations, product
from math import lcm

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import generator
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from hrrl_ext.clustering import StratifiedSampler
from hrrl_ext.clustering.sampler import _rounds
from hrrl_ext.data import ArrayImages


def assignment_of(sizes: tuple[int, ...]) -> Tensor:
    """Clusters of these sizes, their examples mixed up and their ids far apart."""
    ids = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 7 + 3
    return ids[torch.randperm(len(ids), generator=generator(0))]


def outcomes(sampler: StratifiedSampler, batch_size: int) -> Iterator[list[int]]:
    """The first batch for every value of the randomness, each as likely as the others.

    A turn draws int(u n) with n up to the largest cluster: with L the least common multiple of 1..n,
    the midpoints of L equal parts of [0, 1) give each value equally often. What the batch does
    not reach is not enumerated.
    """
    m = sampler.num_clusters
    parts = lcm(*range(1, int(sampler.cluster_size.max()) + 1))
    midpoints = [(j + 0.5) / parts for j in range(parts)]
    rounds = -(-batch_size // m)
    last = batch_size - m * (rounds - 1)  # turns of the last round that count
    for turns in product(permutations(range(m)), repeat=rounds):
        for uniform in product(midpoints, repeat=m * (rounds - 1) + last):
            padded = [*uniform, *[0.0] * (m - last)]
            given = [(list(turn), padded[i * m : (i + 1) * m]) for i, turn in enumerate(turns)]
            yield list(islice(sampler._stream(given), batch_size))


def enumerated(sampler: StratifiedSampler, g: Tensor, batch_size: int) -> tuple[Tensor, float]:
    """Mean [P] and variance (trace of the covariance) of the weighted mean over the first batch."""
    index = torch.tensor(list(outcomes(sampler, batch_size)))
    estimates = (sampler.weight[index][:, :, None] * g[index]).mean(1)
    return estimates.mean(0), estimates.var(0, correction=0).sum().item()


def strata_variance(sampler: StratifiedSampler, g: Tensor, assignment: Tensor, r: int) -> float:
    """1/r 1/N² Σ_k N_k² V_k, each term times (N_k - r)/(N_k - 1) without replacement."""
    total = 0.0
    for k in assignment.unique():
        inside = g[assignment == k]
        n, v = len(inside), inside.var(0, correction=0).sum().item()
        if n > 1:
            assert sampler.replacement or r <= n
            total += n**2 * v * (1.0 if sampler.replacement else (n - r) / (n - 1))
    return total / r / len(g) ** 2


def gradients_of(n: int) -> Tensor:
    return torch.randn(n, 3, generator=generator(n), dtype=torch.float64) + 2


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(
    ("sizes", "batch_size"),
    [
        ((1, 2, 3), 1), ((1, 2, 3), 2), ((1, 2, 3), 3), ((1, 2, 2), 4),
        ((2, 3), 1), ((2, 3), 2), ((2, 3), 3), ((2, 3), 4), ((1, 3), 4), ((1, 1, 1), 3),
        ((1, 1, 1), 2), ((3,), 1), ((3,), 2), ((3,), 3), ((3,), 4), ((1,), 1), ((1, 5), 2),
    ],
)  # fmt: skip
def test_unbiased_for_any_batch_size(sizes, batch_size, replacement):
    """Also where a cluster runs out within the batch and is shuffled again."""
    assignment = assignment_of(sizes)
    g = gradients_of(len(assignment))
    sampler = StratifiedSampler(assignment, replacement=replacement)
    mean, _ = enumerated(sampler, g, batch_size)
    # Thousands of terms of size 1, summed in float64.
    torch.testing.assert_close(mean, g.mean(0), rtol=1e-11, atol=0)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(
    ("sizes", "rounds"),
    [
        ((1, 2, 3), 1),
        ((2, 3), 1),
        ((2, 3), 2),
        ((3, 3), 2),
        ((3,), 1),
        ((3,), 2),
        ((3,), 3),
        ((1, 5), 1),
    ],
)
def test_variance_of_a_batch_of_whole_rounds(sizes, rounds, replacement):
    assignment = assignment_of(sizes)
    g = gradients_of(len(assignment))
    sampler = StratifiedSampler(assignment, replacement=replacement)
    _, variance = enumerated(sampler, g, rounds * len(sizes))
    expected = strata_variance(sampler, g, assignment, rounds)
    assert variance == pytest.approx(expected, rel=1e-11, abs=1e-13)


def test_one_cluster_is_a_uniform_mini_batch():
    """K = 1: σ²/B (N - B)/(N - 1), and all weights are 1."""
    g = gradients_of(4)
    sampler = StratifiedSampler(torch.full((4,), 9))
    assert sampler.weight.tolist() == [1.0] * 4
    for batch_size in (1, 2, 3, 4):
        _, variance = enumerated(sampler, g, batch_size)
        uniform = g.var(0, correction=0).sum().item() / batch_size * (4 - batch_size) / 3
        assert variance == pytest.approx(uniform, rel=1e-11, abs=1e-13)


def test_as_many_clusters_as_examples_is_the_full_gradient():
    """K = N: every batch is every example once, with weight 1."""
    sampler = StratifiedSampler(torch.tensor([5, 0, 3, 8]))
    assert sampler.weight.tolist() == [1.0] * 4
    for batch in outcomes(sampler, 4):
        assert sorted(batch) == [0, 1, 2, 3]


def test_duplicates_alone_in_a_cluster_add_no_variance():
    g = gradients_of(2)[[0, 0, 0, 1, 1]]
    _, variance = enumerated(StratifiedSampler([0, 0, 0, 1, 1]), g, 2)
    assert variance == pytest.approx(0, abs=1e-25)


def test_unequal_strata_can_be_worse_than_uniform():
    """No theorem: five examples that differ, and a cluster of a single one that is not special."""
    g = torch.cat([torch.linspace(-1, 1, 5, dtype=torch.float64), torch.zeros(1)])[:, None]
    _, stratified = enumerated(StratifiedSampler([0] * 5 + [1]), g, 2)
    _, uniform = enumerated(StratifiedSampler([0] * 6), g, 2)
    assert stratified > 2 * uniform


def test_random_strata_of_equal_size_are_uniform_mini_batches():
    """Averaged over all partitions of six examples into three pairs: σ²/B (N - B)/(N - 1) at B = 3."""
    g = gradients_of(6)
    variances = []
    for order in permutations(range(6)):
        assignment = torch.tensor(order) // 2
        sampler = StratifiedSampler(assignment)
        variances.append(strata_variance(sampler, g, assignment, 1))
    uniform = g.var(0, correction=0).sum().item() / 3 * 3 / 5
    assert sum(variances) / len(variances) == pytest.approx(uniform, rel=1e-12)


def test_rounds_are_permutations_and_no_example_returns_early():
    assignment = assignment_of((1, 2, 5, 7))
    sampler = StratifiedSampler(assignment, num_samples=4 * 210)
    drawn = torch.tensor(list(sampler))
    cluster = assignment[drawn].view(-1, 4)
    assert (cluster.sort(1).values == assignment.unique()).all()
    assert len(cluster.unique(dim=0)) == 24  # 210 rounds see all 4! orders
    for k, size in zip(assignment.unique(), sampler.cluster_size.tolist(), strict=True):
        of_k = drawn[assignment[drawn] == k]
        members = (assignment == k).nonzero().flatten()
        passes = of_k.view(-1, size)
        assert (passes.sort(1).values == members).all()
        assert size == 1 or len(passes.unique(dim=0)) > 1  # shuffled again


def test_with_replacement_an_example_may_return_at_once():
    drawn = list(StratifiedSampler([0, 0], num_samples=64, replacement=True))
    assert any(a == b for a, b in zip(drawn[::2], drawn[1::2], strict=True))


@pytest.mark.montecarlo
def test_randomness_of_a_round_is_uniform():
    """What the enumeration takes for granted: equally likely orders, u uniform on [0, 1)."""
    rounds = list(islice(_rounds(3, generator(1)), 6000))
    count = np.unique([turn for turn, _ in rounds], axis=0, return_counts=True)[1]
    # Binomial(6000, 1/6): mean 1000, standard deviation 28.9; five of them cover six orders safely.
    assert len(count) == 6 and abs(count - 1000).max() < 5 * 28.9
    u = np.array([uniform for _, uniform in rounds])
    assert u.min() >= 0 and u.max() < 1
    # mean 1/2 ± 1/√(12 · 6000) in each turn, and no correlation of one with another
    assert abs(u.mean(0) - 0.5).max() < 5 / (12 * 6000) ** 0.5
    assert abs(np.corrcoef(u.T) - np.eye(3)).max() < 5 / 6000**0.5


def test_the_largest_u_stays_within_the_cluster():
    below_one = float(np.nextafter(1.0, 0.0))
    for size in (1, 2, 3, 5, 7, 1000, 4097):
        sampler = StratifiedSampler([0] * size)
        given = [([0], [below_one])] * size
        assert sorted(sampler._stream(given)) == list(range(size))


def test_weights():
    sampler = StratifiedSampler(torch.tensor([4, 0, 4, 4, 9, 0]))
    assert sampler.num_clusters == 3
    assert sampler.cluster_size.tolist() == [2, 3, 1]
    assert sampler.weight.dtype == torch.float64
    assert sampler.weight.tolist() == [1.5, 1.0, 1.5, 1.5, 0.5, 1.0]  # M N_k / N


def test_order_depends_on_seed_and_epoch_alone():
    def epochs(seed: int) -> list[list[int]]:
        sampler = StratifiedSampler(assignment_of((3, 5, 9)), seed=seed)
        orders = []
        for epoch in (0, 1, 0):
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
        return orders

    state = torch.get_rng_state()
    zero, one, again = epochs(0)
    assert zero == again != one
    assert epochs(0) == [zero, one, again]
    assert epochs(1)[0] != zero
    assert torch.equal(torch.get_rng_state(), state)


def test_two_iterations_at_once_do_not_disturb_each_other():
    sampler = StratifiedSampler(assignment_of((3, 5, 9)))
    pairs = list(zip(sampler, sampler, strict=True))
    assert all(a == b for a, b in pairs)
    assert [a for a, _ in pairs] == list(sampler)


@pytest.mark.parametrize("num_samples", [None, 1, 7, 100])
def test_length(num_samples):
    sampler = StratifiedSampler(assignment_of((2, 3, 6)), num_samples=num_samples)
    assert len(sampler) == len(list(sampler)) == (num_samples or 11)


def test_the_caller_keeps_the_assignment():
    assignment = torch.tensor([0, 1, 1])
    sampler = StratifiedSampler(assignment)
    before = list(sampler)
    assignment.fill_(0)
    assert list(sampler) == before


@pytest.mark.parametrize("kind", [torch.int32, np.int64, list])
def test_kinds_of_ids(kind):
    ids = [2, 0, 2, 5]
    given = torch.tensor(ids, dtype=kind) if kind is torch.int32 else np.array(ids)
    other = StratifiedSampler(ids if kind is list else given)
    assert list(other) == list(StratifiedSampler(torch.tensor(ids)))


@pytest.mark.parametrize(
    ("assignment", "options", "error", "message"),
    [
        ([], {}, ValueError, "assignment is empty"),
        ([0, 2, -1], {}, ValueError, "must be 0 or more, got -1 at position 2"),
        ([0.0, 1.0], {}, TypeError, "must hold integers, got float64"),
        ([[0, 1]], {}, ValueError, r"must have shape \[N\], got \[1, 2\]"),
        ([0, 1], {"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
    ],
)
def test_bad_input(assignment, options, error, message):
    with pytest.raises(error, match=f"StratifiedSampler: .*{message}"):
        StratifiedSampler(assignment, **options)


def test_bad_epoch():
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        StratifiedSampler([0]).set_epoch(-1)


# --- the loops of the docstring


def digits() -> tuple[ArrayImages, Tensor, nn.Module]:
    pixels = torch.randint(256, (12, 8, 8), generator=generator(0), dtype=torch.uint8)
    target = torch.arange(12) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    return ArrayImages(pixels, target), torch.tensor([0] * 6 + [1] * 4 + [2] * 2), model


def test_the_loop_of_the_docstring():
    images, assignment, model = digits()
    text = inspect.getdoc(StratifiedSampler).split("times::\n\n")[1].split("\n\n")[0]
    names = {**globals(), "images": images, "assignment": assignment, "model": model}
    exec(textwrap.dedent(text), names)
    assert names["index"] == list(names["sampler"])  # one batch: 12 examples of at most 128
    assert names["loss"].requires_grad and names["loss"].ndim == 0


def test_loop_over_an_image_set():
    """An epoch of N = rM draws: the weighted mean of its losses is near the mean loss, its weight 1."""
    images, assignment, model = digits()
    sampler = StratifiedSampler(assignment)
    batches = 0
    for index in BatchSampler(sampler, 3, drop_last=False):
        x, target = images.__getitems__(index)
        example_loss = F.cross_entropy(model(x.float() / 255), target, reduction="none")
        loss = (sampler.weight[index] * example_loss).mean()
        loss.backward()
        assert sampler.weight[index].mean().item() == pytest.approx(1, abs=1e-15)
        batches += 1
    assert batches == 4
    assert model[1].weight.grad is not None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loop_over_a_loader(num_workers):
    images, assignment, _ = digits()
    sampler = StratifiedSampler(assignment, seed=5)
    data = TensorDataset(images.images, images.target, torch.arange(12))
    seen = []
    for x, target, index in DataLoader(data, 5, sampler=sampler, num_workers=num_workers):
        assert torch.equal(x, images.images[index]) and torch.equal(target, images.target[index])
        seen += index.tolist()
    assert seen == list(sampler)
