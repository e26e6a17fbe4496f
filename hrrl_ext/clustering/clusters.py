"""Gradient clustering: which examples of a data set teach a model the same (Faghri's thesis, ch. 4)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._modes import in_mode
from ..ops import (
    LayerGradient,
    Rank1Centre,
    Rank1Products,
    centre_products,
    rank1_assign,
    rank1_products,
)
from ..processes import Processes, current_processes
from .centres import CentreRule, ClusterSums, example_centres
from .examples import Data, ExampleLoss, Examples, cross_entropy
from .layers import (
    check_independence,
    find_layers,
    layer_gradients,
    layers_with_factors,
    parameter_names,
)
from .strata import least_variance

_TRIED = 3  # examples; no dimension of a layer's own is likely to be as long
_POOL = 2  # examples per cluster that the first centres are chosen from
_RESOLUTION = 1e-6  # of float32 products: what a distance is known to, relative to its terms


# Longer than other files, and better whole: A, U and all they keep are one object's, in short methods.
class GradientClustering:
    """Clusters the examples of a data set by their gradients at the model's present weights.

        min_{a, C} Σ_i N_{a_i} ‖C_{a_i} - g_i‖²,   C_kl = Σ_r d_klr c_klrᵀ in each layer l   (Eq. 4.2)

    by rounds of A, which cluster each example is in, and U, the centres of the clusters found. At
    C_k = the mean of its cluster the objective is N² times the variance of the stratified estimator
    that :class:`StratifiedSampler` draws; examples whose gradients coincide share a cluster and add
    nothing to it.

    ::

        clustering = GradientClustering(model, 128).fit(images, rounds=10)
        sampler = StratifiedSampler(clustering.assignment)

    Args:
        model: at the weights to cluster at. It is borrowed: parameters, gradients, buffers and modes
            stay as they are.
        num_clusters: K.
        layers: names of the nn.Linear, nn.Conv1d and nn.Conv2d whose gradients count, weights and
            biases; None is all of them but those that have none of single examples, such as attention
            within windows, which a warning names at the first data. Parameters of other layers
            (normalisation) do not count: give :attr:`parameters` to :func:`gradient_variance`, so that it
            measures the same.
        rank: R of the centres in each layer.
        center: "svd", the best centre of rank R, by a step of power iteration a round; "mean",
            Eq. 4.6, c_k = mean of the inputs, d_k = mean of the output gradients (R = 1), which is
            right where the two are independent within the cluster.
        weighted: how the sizes N_k enter A. True: the assignment of least objective that moving one
            example at a time finds, with the sizes as they become (:func:`least_variance`); no round
            raises the objective. "frozen": a_i = argmin_k N_k ‖C_k - g_i‖² (Eq. 4.3), with the sizes
            of the last round; it rarely settles, since all the examples that find a small cluster
            cheap go there together. False: ordinary k-means, which lowers Σ_i ‖C_{a_i} - g_i‖².
        batch_size: examples per pass through the model. It does not change the result, but for
            rounding.
        seed: of the choice of the first centres.
        mode: goes with the next version, and changes nothing: see below.

    A pass over the data is a forward pass and a backward pass to what the layers wrote; no gradient
    of a parameter is computed. A round is one pass, in which the sums of U are taken for the
    assignment just made; with weighted=True it is two, since who moves is known after the first, and
    the distances [N, K] are kept in between as float32. Neither the order of the data nor batches
    change the result. First centres are examples, chosen from a random pool of 2 K of them as
    k-means++ does. A cluster that is left empty keeps its centre, and attracts whom it suits with
    weighted=True; else it is given the farthest example of the cluster that contributes most to the
    objective, of which each of the two then weighs half. Where no example is away from its centre it
    stays empty.

    The gradients are those of the sum of the losses, with each example's pixels as they are, in eval
    mode: batch normalisation by the batch would make an example's depend on the others, and dropout
    another one in each pass. On
    several processes (torchrun) each passes over its share of the data. Deterministic on the CPU
    given the seed, the batch size and the number of threads.

    Attributes:
        assignment: [N] int64, a_i of the last round.
        cluster_size: [K] int64, N_k of it.
        distance: [N] float64, ‖C_{a_i} - g_i‖² at the centres of its A step.
        distortion: [K] float64, the mean of it over the cluster.
        centres: one :class:`hrrl_ext.ops.Rank1Centre` per layer, after its U step.
        history: a row per round; see :meth:`fit`.
    """

    def __init__(
        self,
        model: nn.Module,
        num_clusters: int,
        *,
        layers: Sequence[str] | None = None,
        rank: int = 1,
        center: CentreRule = "svd",
        weighted: bool | Literal["frozen"] = True,
        mode: str | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        if not isinstance(num_clusters, int) or num_clusters < 1:
            raise ValueError(f"num_clusters must be a whole number from 1 on, got {num_clusters!r}")
        if center not in get_args(CentreRule):
            raise ValueError(f"center must be 'svd' or 'mean', got {center!r}")
        if rank < 1 or (rank > 1 and center == "mean"):
            raise ValueError(
                f"rank must be at least 1, and 1 with center='mean', got {rank}; use center='svd'"
            )
        if weighted not in (True, False, "frozen"):
            raise ValueError(f"weighted must be True, False or 'frozen', got {weighted!r}")
        if mode is not None:
            warnings.warn(
                "GradientClustering: mode goes with the next version; leave it out, gradients are those "
                "of eval mode, in which each example has one of its own",
                DeprecationWarning,
                stacklevel=2,
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.layers = model, find_layers(model, layers)
        self._tried = layers is not None
        self.num_clusters, self.rank, self.weighted = num_clusters, rank, weighted
        self.center: CentreRule = center
        self.batch_size, self.seed = batch_size, seed
        self._like = next(iter(self.layers.values())).weight
        self.device = self._like.device
        self.restart()

    def restart(self) -> None:
        """Forgets what was found: the next :meth:`fit` begins with first centres, as a new one would."""
        self.centres: list[Rank1Centre] = []
        self.weight = torch.ones(self.num_clusters, dtype=torch.float64, device=self.device)
        self.assignment = torch.empty(0, dtype=torch.int64)
        self.cluster_size = torch.zeros(self.num_clusters, dtype=torch.int64)
        self.distance = torch.empty(0, dtype=torch.float64)
        self.distortion = torch.zeros(self.num_clusters, dtype=torch.float64)
        self.history: list[dict[str, float]] = []

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters whose gradients are clustered."""
        return parameter_names(self.layers)

    def try_layers(self, data: Data, loss: ExampleLoss = cross_entropy) -> GradientClustering:
        """Where no layers are named, leaves out those whose factors do not give the gradients of single
        examples of ``data``, with a warning; from then on :attr:`parameters` are settled. `fit` does it.
        """
        if not self._tried:
            examples = Examples(data, self.model, self._like)
            few = examples.take(torch.arange(min(_TRIED, len(examples))))
            with self._borrowed():
                self.layers = layers_with_factors(self.model, self.layers, *few, loss)
            self._tried = True
        return self

    def fit(
        self,
        data: Data,
        loss: ExampleLoss = cross_entropy,
        *,
        rounds: int = 10,
        report: Callable[[str], None] | None = None,
    ) -> GradientClustering:
        """``rounds`` more rounds of A and U over ``data``, from the present centres if there are any.

        data: images (whatever :func:`hrrl_ext.data.load_images` opens) or tensors (x [N, ...],
            target [N]).
        loss: (logits, target) → the loss of each example, [B].
        report: is given a line per round.

        A row of ``history``: "round"; "objective" Σ_i N_{a_i} ‖C_{a_i} - g_i‖² / N² (without N_k if
        not weighted, and then over N), with the sizes just counted; "distortion", the mean of
        ‖C_{a_i} - g_i‖²; "explained", 1 - Σ_i ‖C_{a_i} - g_i‖² / Σ_i ‖g_i‖²; "moved", the share of
        examples with another cluster than before; "empty" clusters; "seconds".

        Raises ValueError for data with fewer examples than clusters, or of another size than before,
        and FloatingPointError for a gradient that is not finite.
        """
        if rounds < 0:
            raise ValueError(f"rounds must not be negative, got {rounds}")
        examples = self._examples(data)
        self.try_layers(examples.data, loss)
        with self._borrowed():
            if not self.centres:
                self._seed(examples, loss)
            square = None  # Σ_l ‖g_il‖² is that of the first round as long as the weights stay
            for _ in range(rounds):
                square = self._round(examples, loss, square)
                if report is not None:
                    report(_line(self.history[-1]))
        return self

    def follow(self, data: Data, loss: ExampleLoss = cross_entropy) -> GradientClustering:
        """Moves the centres to the gradients of now, for the clusters as they are: U alone, twice.

        For a model that has been trained on since :meth:`fit`. Training shrinks and turns gradients;
        A at the centres of then would give nearly all examples to whichever is least long.
        """
        if not self.centres:
            raise RuntimeError("follow needs clusters: call fit first")
        examples = self._examples(data)
        assignment, size = (t.to(self.device) for t in (self.assignment, self.cluster_size))
        with self._borrowed():
            for hold_outputs in (True, False):
                sums = self._sums(examples, loss, assignment, hold_outputs)
                self.centres = sums.centres(size, self.centres)
        return self

    def assign(self, data: Data, loss: ExampleLoss = cross_entropy) -> Tensor:
        """The cluster that each example of any data would join, [N] int64, at the present centres.

        As A does it: the k of least (N_k + 1) S_ik + W_k with weighted=True, which it adds to the
        objective, of least N_k S_ik if "frozen", of least S_ik if False (S_ik = ‖C_k - g_i‖², W_k its
        sum over the cluster). Only clusters that have examples are given out.
        """
        if not self.centres:
            raise RuntimeError("assign needs centres: call fit first")
        examples, processes = Examples(data, self.model, self._like), current_processes()
        assignment = torch.zeros(len(examples), dtype=torch.int64, device=self.device)
        live = self.cluster_size.nonzero().flatten().to(self.device)
        centres = [Rank1Centre(*(factor[:, live] for factor in centre)) for centre in self.centres]
        size = self.cluster_size.to(live)[live]
        within = size * self.distortion.to(self.device)[live]
        with self._borrowed():
            for rows, gradients in self._gradients(examples, loss, processes):
                if self.weighted is True:
                    distance = _finite(rank1_products(gradients, centres).distance(), rows)
                    assignment[rows] = live[((size + 1) * distance + within).argmin(1)]
                else:
                    near = rank1_assign(gradients, centres, self.weight[live])
                    _finite(near.distance, rows)
                    assignment[rows] = live[near.assignment]
        return processes.sum(assignment).cpu()

    def concepts(self) -> Tensor:
        """[N] int64: the clusters that have examples, numbered from 0 in order of their ids.

        For ``HRRLTrainer(concepts=...)`` and :class:`hrrl_ext.ConceptDistribution`, where nobody has
        labelled concepts.
        """
        if len(self.assignment) == 0:
            raise RuntimeError("concepts needs clusters: call fit first")
        return self.assignment.unique(return_inverse=True)[1]

    # --- a round

    def _round(self, examples: Examples, loss: ExampleLoss, square: Tensor | None) -> Tensor:
        """A and U; returns Σ_l ‖g_il‖² [N]."""
        start = time.perf_counter()
        if self.weighted is True:
            distances, square = self._distances(examples, loss, square)
            assignment = self._move(distances, square)
            distance = distances.gather(1, assignment[:, None])[:, 0].double()
            sums = self._sums(examples, loss, assignment, self._holds_outputs)
        else:
            assignment, distance, square, sums = self._assign_and_sum(examples, loss, square)
        size = torch.bincount(assignment, minlength=self.num_clusters)
        self.centres = sums.centres(size, self.centres)
        within = torch.zeros_like(self.weight).index_add_(0, assignment, distance)
        self.distance = distance.cpu()
        self._record(assignment, size, within, square, time.perf_counter() - start)
        if self.weighted == "frozen":
            self.weight = size.double().clamp(min=1)
        if self.weighted is not True:
            self._repair(examples, loss, distance, square)
        return square

    def _distances(
        self, examples: Examples, loss: ExampleLoss, square: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """S [N, K] float32, and Σ_l ‖g_il‖² [N]."""
        count, processes = len(examples), current_processes()
        distances = torch.zeros(count, self.num_clusters, device=self.device)
        squares = torch.zeros(count, dtype=torch.float64, device=self.device)
        for rows, gradients in self._gradients(examples, loss, processes):
            products = self._products(gradients, rows, square)
            squares[rows] = products.square
            distances[rows] = _finite(products.distance(), rows).float()
        return processes.sum(distances), processes.sum(squares)

    def _products(
        self, gradients: list[LayerGradient], rows: Tensor, square: Tensor | None
    ) -> Rank1Products:
        known = None if square is None else square[rows]
        return rank1_products(gradients, self.centres, square=known)

    def _move(self, distances: Tensor, square: Tensor) -> Tensor:
        """The A step with moving sizes. Large gradients are asked first, whatever the data's order."""
        start = self.assignment if len(self.assignment) else distances.argmin(1)
        order = square.argsort(descending=True, stable=True)
        moved = least_variance(*(t.cpu().numpy() for t in (distances, start, order)))
        return torch.from_numpy(moved).to(self.device)

    def _sums(
        self, examples: Examples, loss: ExampleLoss, assignment: Tensor, hold_outputs: bool
    ) -> ClusterSums:
        """Those of U in a pass of its own."""
        sums = ClusterSums(self.centres, self.center, hold_outputs=hold_outputs)
        processes = current_processes()
        for rows, gradients in self._gradients(examples, loss, processes):
            sums.add(gradients, assignment[rows])
        for total in sums.totals:
            processes.sum(total)
        return sums

    def _assign_and_sum(
        self, examples: Examples, loss: ExampleLoss, square: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, ClusterSums]:
        """A by argmin and the sums of U in one pass: assignment, distance and square [N]."""
        count, processes = len(examples), current_processes()
        sums = ClusterSums(self.centres, self.center, hold_outputs=self._holds_outputs)
        assignment = torch.zeros(count, dtype=torch.int64, device=self.device)
        distance, squares = torch.zeros(2, count, dtype=torch.float64, device=self.device)
        for rows, gradients in self._gradients(examples, loss, processes):
            products = self._products(gradients, rows, square)
            squares[rows] = products.square
            near = products.nearest(self.weight)
            distance[rows] = _finite(near.distance, rows)
            assignment[rows] = near.assignment
            sums.add(gradients, near.assignment)
        for tensor in (assignment, distance, squares, *sums.totals):
            processes.sum(tensor)
        return assignment, distance, squares, sums

    @property
    def _holds_outputs(self) -> bool:
        """Which side of the centres stays in this round: they take turns."""
        return len(self.history) % 2 == 0

    def _record(
        self, assignment: Tensor, size: Tensor, within: Tensor, squares: Tensor, seconds: float
    ) -> None:
        count = len(assignment)
        objective = (size * within).sum() / count**2 if self.weighted else within.sum() / count
        before, assignment = self.assignment, assignment.cpu()
        moved = (assignment != before).double().mean().item() if len(before) else 1.0
        self.assignment, self.cluster_size = assignment, size.cpu()
        self.distortion = (within / size.clamp(min=1)).cpu()
        self.history.append(
            {
                "round": len(self.history) + 1,
                "objective": objective.item(),
                "distortion": within.sum().item() / count,
                "explained": 1 - (within.sum() / squares.sum().clamp(min=1e-300)).item(),
                "moved": moved,
                "empty": (size == 0).sum().item(),
                "seconds": seconds,
            }
        )

    def _repair(
        self, examples: Examples, loss: ExampleLoss, distance: Tensor, squares: Tensor
    ) -> None:
        """Gives each empty cluster the farthest example of the one that costs most."""
        distance = torch.where(distance > _RESOLUTION * squares, distance, 0.0)
        assignment, chosen = self.assignment.to(self.device), []
        empty = (self.cluster_size == 0).nonzero().flatten().tolist()
        for _ in empty:
            within = torch.zeros_like(self.weight).index_add_(0, assignment, distance)
            donor = int((self.weight * within).argmax())
            if within[donor] == 0:
                break
            row = int(torch.where(assignment == donor, distance, -1.0).argmax())
            distance[row] = 0.0
            chosen.append((row, donor))
        if not chosen:
            return
        gradients = self._of(examples, torch.tensor([row for row, _ in chosen]), loss)
        found = example_centres(gradients, self.center, self.rank)
        here = torch.tensor(empty[: len(chosen)], device=self.device)
        for centre, seed in zip(self.centres, found, strict=True):
            for factor, other in zip(centre, seed, strict=True):
                factor[:, here] = other
        if self.weighted == "frozen":  # each of the two weighs half
            for k, (_, donor) in zip(here.tolist(), chosen, strict=True):
                self.weight[donor] = self.weight[k] = (self.weight[donor] / 2).clamp(min=1)

    # --- the first centres

    def _seed(self, examples: Examples, loss: ExampleLoss) -> None:
        """K examples of a pool, drawn with a probability that grows with the distance (k-means++)."""
        generator = torch.Generator().manual_seed(self.seed)
        pool = torch.randperm(len(examples), generator=generator)[: _POOL * self.num_clusters]
        parts = pool.split(self.batch_size)
        found = [
            example_centres(self._of(examples, rows, loss), self.center, self.rank)
            for rows in parts
        ]
        candidates = [
            Rank1Centre(*(torch.cat(factors, 1) for factors in zip(*layer, strict=True)))
            for layer in zip(*found, strict=True)
        ]
        chosen = _spread(centre_products(candidates).cpu(), self.num_clusters, generator)
        self.centres = [
            Rank1Centre(*(factor[:, chosen.to(self.device)] for factor in centre))
            for centre in candidates
        ]
        self.weight.fill_(
            max(1.0, len(examples) / self.num_clusters) if self.weighted == "frozen" else 1.0
        )

    # --- gradients

    def _examples(self, data: Data) -> Examples:
        """Of the data that is clustered: enough of them, and always the same number."""
        examples = Examples(data, self.model, self._like)
        if len(examples) < self.num_clusters:
            raise ValueError(
                f"num_clusters is {self.num_clusters}, but data has {len(examples)} examples only; a "
                "cluster each is the most there can be"
            )
        if self.centres and len(examples) != len(self.assignment):
            raise ValueError(
                f"data has {len(examples)} examples, and was clustered with {len(self.assignment)}; "
                "use assign for other data, or a new GradientClustering"
            )
        return examples

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        with in_mode(self.model, "eval"), torch.no_grad():
            check_independence(self.model)
            yield

    def _gradients(
        self, examples: Examples, loss: ExampleLoss, processes: Processes
    ) -> Iterator[tuple[Tensor, list[LayerGradient]]]:
        """Rows of this process's part and their gradients, batch by batch."""
        part = processes.part(len(examples))
        for rows in torch.arange(part.start, part.stop).split(self.batch_size):
            yield rows.to(self.device), self._of(examples, rows, loss)

    def _of(self, examples: Examples, rows: Tensor, loss: ExampleLoss) -> list[LayerGradient]:
        return layer_gradients(self.model, self.layers, *examples.take(rows), loss)

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model; loads with ``torch.load(..., weights_only=True)``."""
        return {
            "centres": [tuple(centre) for centre in self.centres],
            "weight": self.weight,
            "assignment": self.assignment,
            "cluster_size": self.cluster_size,
            "distance": self.distance,
            "distortion": self.distortion,
            "history": self.history,
            "layers": list(self.layers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken, to the same bits."""
        centres = [Rank1Centre(*(f.to(self.device) for f in centre)) for centre in state["centres"]]
        if centres and not self._tried and set(state.get("layers", ())) <= set(self.layers):
            self.layers = {name: self.layers[name] for name in state.get("layers", self.layers)}
            self._tried = True
        if len(state["weight"]) != self.num_clusters or len(centres) not in (0, len(self.layers)):
            raise ValueError(
                f"state is of {len(state['weight'])} clusters and {len(centres)} layers, this "
                f"GradientClustering has {self.num_clusters} and {len(self.layers)}"
            )
        self.centres = centres
        self.weight = state["weight"].to(self.device)
        self.assignment = state["assignment"]
        self.cluster_size = state["cluster_size"]
        self.distance = state["distance"]
        self.distortion = state["distortion"]
        self.history = list(state["history"])


def _spread(product: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: ``count`` rows of the Gram matrix [M, M], far from each other."""
    square = product.diagonal()
    chosen = [0]
    nearest = torch.full_like(square, torch.inf)
    while len(chosen) < count:
        last = chosen[-1]
        distance = (square - 2 * product[last] + square[last]).clamp(min=0)
        distance[distance <= _RESOLUTION * (square + square[last])] = 0
        nearest = torch.minimum(nearest, distance)
        nearest[chosen] = 0
        if nearest.sum() > 0:
            chosen.append(int(torch.multinomial(nearest / nearest.sum(), 1, generator=generator)))
        else:  # the pool has no other gradient: whichever, and the cluster stays empty
            chosen.append(next(i for i in range(len(square)) if i not in chosen))
    return torch.tensor(chosen)


def _finite(distance: Tensor, rows: Tensor) -> Tensor:
    """distance [B] or [B, K] of these rows of the data."""
    if not distance.isfinite().all():
        row = int(rows[~distance.view(len(rows), -1).isfinite().all(1)][0])
        raise FloatingPointError(
            f"the gradient of example {row} is not finite; look at its pixels and at the model's "
            "weights"
        )
    return distance


def _line(row: dict[str, float]) -> str:
    return (
        f"round {row['round']:.0f}  objective {row['objective']:.4g}  explained "
        f"{100 * row['explained']:.1f} %  moved {100 * row['moved']:.1f} %  "
        f"empty {row['empty']:.0f}  {row['seconds']:.1f} s"
    )
