"""Mini-batches by strata: the sampler whose weighted mean gradient is the stratified estimator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .._streams import random_stream
from ..data.ids import Ids, checked_ids


class StratifiedSampler(Sampler[int]):
    """Indices drawn round robin from the clusters, and the weight that makes their mean unbiased.

        ĝ = 1/N Σ_k N_k g^(k),   g^(k) uniform on cluster k       (Faghri et al., Eq. 4.1)
        V[ĝ] = 1/N² Σ_k N_k² V_k                                  V_k: variance within cluster k

    A random permutation of the M clusters, one example of each; a new permutation, and so on.
    Within a cluster examples come without replacement; one that is exhausted is shuffled again. In a
    loss that is a plain mean over the batch, example i counts ``weight[i]`` = M N_k / N times::

        sampler = StratifiedSampler(assignment)
        for index in BatchSampler(sampler, 128, drop_last=False):  # of torch.utils.data
            x, target = images.__getitems__(index)
            example_loss = F.cross_entropy(model(x.float() / 255), target, reduction="none")
            loss = (sampler.weight[index] * example_loss).mean()

    With a DataLoader the data set yields the index as well, such as ``TensorDataset(x, target,
    torch.arange(len(x)))`` with ``sampler=sampler``.

    The mean is unbiased for any batch size B: every position of the stream is, on its own, a cluster
    drawn uniformly and an example drawn uniformly from it. A batch of B = r M that starts with a
    permutation has r examples of each cluster, and the variance is that of Eq. 4.1 over r, its term
    k times (N_k - r)/(N_k - 1) unless the cluster was exhausted within the batch. With B < M not
    every cluster is in the batch, and the differences between the clusters add to the variance: take
    B = M, or a multiple.

    One cluster is plain shuffling, with weight 1. As many clusters as examples is full-batch gradient
    descent: a batch of N is every example once. GC is *not* always better than uniform mini-batches:
    each cluster gets the same share of the batch, however large it is, so that clusters of very
    unequal sizes can have Σ_k N_k² V_k / N² above the V/B of a uniform batch.
    :func:`gradient_variance` measures both.

    Args:
        assignment: [N] cluster of each example, integers from 0. They need not be dense: a cluster
            that has no example does not count.
        num_samples: indices per epoch; N by default, as many as the data has. An epoch is not a
            pass over the data: examples of small clusters come up more often.
        replacement: draw within a cluster with replacement. Then the factor (N_k - r)/(N_k - 1) is
            gone.
        seed: of the order, together with the epoch.

    The order is a function of (seed, epoch) alone, and no global random state is read or changed.
    ``epoch`` is the only state, set by :meth:`set_epoch`: without it every epoch has the same order.
    To resume, call it with the epoch to go on with. For another assignment make another sampler.
    Processes that train together would draw the same indices: split each batch among them.

    Raises TypeError for an assignment that is not of integers, ValueError for one that is not [N]
    with N ≥ 1 or has a negative entry (the mark of an example without a cluster), and for
    num_samples below 1.
    """

    weight: Tensor
    """[N] float64, on the CPU: M N_k / N. Its mean over a batch is 1 in expectation."""
    cluster_size: Tensor
    """[M] int64: N_k of the clusters that have examples, in the order of their ids."""
    epoch: int

    def __init__(
        self,
        assignment: Ids,
        *,
        num_samples: int | None = None,
        replacement: bool = False,
        seed: int = 0,
    ) -> None:
        assignment = checked_ids(assignment, "StratifiedSampler: assignment")
        if len(assignment) == 0:
            raise ValueError(
                "StratifiedSampler: assignment is empty; it needs at least one example"
            )
        self.num_samples = len(assignment) if num_samples is None else num_samples
        if self.num_samples < 1:
            raise ValueError(
                f"StratifiedSampler: num_samples must be at least 1, got {num_samples}"
            )
        self.replacement = replacement
        self.seed = seed
        self.epoch = 0
        _, cluster, size = assignment.unique(return_inverse=True, return_counts=True)
        self.cluster_size = size
        self.weight = (size.double() * len(size) / len(assignment))[cluster]
        self._members = cluster.argsort(stable=True)  # [N] cluster by cluster

    @property
    def num_clusters(self) -> int:
        """M, those that have examples."""
        return len(self.cluster_size)

    def __len__(self) -> int:
        """Indices per epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, whose order the next iteration has."""
        if epoch < 0:
            raise ValueError(f"StratifiedSampler: epoch must be at least 0, got {epoch}")
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = random_stream(self.seed, self.epoch, "strata")
        return islice(self.stream(generator), self.num_samples)

    def stream(self, generator: torch.Generator) -> Iterator[int]:
        """Indices without end, from a first permutation on; every call starts afresh."""
        return self._stream(_rounds(self.num_clusters, generator))

    def _stream(self, rounds: Iterable[tuple[list[int], list[float]]]) -> Iterator[int]:
        """Round robin, with the randomness of every round given: see :func:`_rounds`."""
        members = self._members.numpy().copy()
        size = self.cluster_size.tolist()
        first = (self.cluster_size.cumsum(0) - self.cluster_size).tolist()
        drawn = [0] * len(size)  # of each cluster, since it was last shuffled
        for turn, uniform in rounds:
            for k, u in zip(turn, uniform, strict=True):
                # Fisher and Yates, a step at a time: the next place is filled from those not drawn.
                # u < 1 has 53 bits, so that u n < n holds after rounding too.
                place = first[k] + drawn[k]
                other = place + int(u * (size[k] - drawn[k]))
                members[place], members[other] = members[other], members[place]
                if not self.replacement:
                    drawn[k] = (drawn[k] + 1) % size[k]
                yield int(members[place])


def _rounds(
    num_clusters: int, generator: torch.Generator
) -> Iterator[tuple[list[int], list[float]]]:
    """For each round the order of the clusters, and a number in [0, 1) for each turn."""
    while True:
        turn = torch.randperm(num_clusters, generator=generator)
        uniform = torch.rand(num_clusters, generator=generator, dtype=torch.float64)
        yield turn.tolist(), uniform.tolist()
