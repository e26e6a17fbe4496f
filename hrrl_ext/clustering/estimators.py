"""Unbiased estimators of the mean gradient, all of the same function of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from .._modes import evaluating
from ..data.ids import Ids
from ..processes import ALONE, Processes
from ..spec import nearest
from .examples import Data, ExampleLoss, Examples, check_losses, cross_entropy
from .sampler import StratifiedSampler


@dataclass(frozen=True)
class Snapshot:
    """A model as it was, and the mean gradient that it had over all examples. See :class:`SVRG`."""

    state: dict[str, Tensor]
    """copies of all parameters and buffers"""
    full_gradient: Tensor
    """[P] float64: ∇L(θ̃)"""
    parameters: tuple[str, ...]
    """the names that ``full_gradient`` is of, in its order"""
    num_examples: int


class MeanGradient:
    """∇_θ 1/B Σ_i w_i ℓ_i(θ) over B examples of a data set, as one vector [P] float64.

    The model is borrowed. It is evaluated in eval mode: batch normalisation uses its running
    statistics and dropout is off, so that ℓ_i is a function of example i and θ alone. (In train
    mode the batch would be part of the function, and no estimate unbiased.) Clusters should be made in
    the same mode, of the same pixels: nothing is augmented here. What the weights are is read anew
    at every call. ``.grad``, buffers, every module's training flag and the global random state are
    as before: gradients are taken of other tensors that share the weights' memory. A model that draws
    random numbers in eval mode too is not a function of its weights, and not for this.

    Args:
        model: runs where its parameters are; the data is brought there batch by batch.
        data: what :func:`hrrl_ext.data.load_images` opens, or tensors (x [N, ...], target [N, ...]).
            Images, which uint8 tensors are too, become floats in [0, 1] of the dtype of the model;
            other tensors stay as they are.
        loss: (outputs, target) → [B], a value for each example; :func:`cross_entropy` by default.
        parameters: the names that count, in this order, such as those that the clusters were made
            of; None are all that require a gradient. Named ones need not require it. A parameter
            that the loss does not depend on has gradient 0.

    Deterministic where the model is. Raises ValueError for empty data, another number of targets than
    of inputs, an unknown name, a loss that is not [B], and for a gradient that is not finite, naming
    the example or the parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        loss: ExampleLoss = cross_entropy,
        parameters: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.examples = Examples(data, model, _weight(model))
        self.num_examples = len(self.examples)
        self.loss = loss
        self.parameters = _checked_names(model, parameters)
        chosen = dict(model.named_parameters())
        self.num_parameters = sum(chosen[name].numel() for name in self.parameters)

    def __call__(
        self,
        index: Tensor,
        weight: Tensor | None = None,
        *,
        state: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """index [B] on the CPU, weight [B] or None for all 1 → [P] float64.

        ``state``: parameters and buffers to use in place of the model's own.
        """
        state = _state(self.model) if state is None else state
        # Tensors of this call's own: weights share memory, buffers are copies that may be written to.
        own = {name: state[name].detach() for name, _ in self.model.named_parameters()}
        own |= {name: state[name].clone() for name, _ in self.model.named_buffers()}
        leaves = [own[name].requires_grad_() for name in self.parameters]
        x, target = self.examples.take(index)
        with evaluating(self.model), torch.enable_grad():
            example_loss = self.loss(torch.func.functional_call(self.model, own, (x,)), target)
            check_losses(example_loss, len(index))
            weighted = example_loss if weight is None else weight.to(example_loss) * example_loss
            grads = torch.autograd.grad(
                weighted.mean(), leaves, allow_unused=True, materialize_grads=True
            )
        flat = torch.cat([grad.flatten().double() for grad in grads])
        if not bool(flat.isfinite().all()):
            raise ValueError(self._not_finite(index, example_loss, grads))
        return flat

    def full(
        self,
        chunk: int,
        *,
        state: Mapping[str, Tensor] | None = None,
        processes: Processes = ALONE,
    ) -> Tensor:
        """[P] float64: the mean gradient over all examples, ``chunk`` of them at a time; ``processes``
        take one in turn, and add up to the rounding of float64."""
        total = torch.zeros(
            self.num_parameters, dtype=torch.float64, device=_weight(self.model).device
        )
        for index in processes.turns(torch.arange(self.num_examples).split(chunk)):
            total += self(index, state=state) * len(index)  # a smaller last chunk counts for less
        return processes.sum(total) / self.num_examples

    def snapshot(
        self,
        chunk: int = 128,
        *,
        processes: Processes = ALONE,
    ) -> Snapshot:
        """The model as it is now, for :class:`SVRG`: one pass over the data, copies of the weights."""
        state = {name: t.detach().clone() for name, t in _state(self.model).items()}
        return Snapshot(
            state,
            self.full(chunk, state=state, processes=processes),
            self.parameters,
            self.num_examples,
        )

    def _not_finite(self, index: Tensor, example_loss: Tensor, grads: Sequence[Tensor]) -> str:
        bad = example_loss.detach().isfinite().logical_not().nonzero().flatten().tolist()
        if bad:
            value = example_loss[bad[0]].item()
            return (
                f"the loss of example {int(index[bad[0]])} is {value}; "
                "check its input and target, and that the weights are finite"
            )
        names = [
            name
            for name, grad in zip(self.parameters, grads, strict=True)
            if not bool(grad.isfinite().all())
        ]
        return (
            f"the gradient of {names[0]!r} is not finite over the examples "
            f"{index[:4].tolist()}{' ...' if len(index) > 4 else ''}, whose losses are; "
            "leave the parameter out, or look for a root or a division at 0"
        )


class GradientEstimator:
    """An unbiased estimate of the mean gradient from a few examples, drawn by a generator of its own.

    draw() is the next estimate, [P] float64, independent of those before. What it costs and which
    examples are drawn is the subclass's: :class:`StochasticGradient`, :class:`SVRG`,
    :class:`StratifiedGradient`.

    Args:
        gradient: which model, data, loss and parameters.
        batch_size: examples per estimate, 1..N.
        generator: on the CPU; nothing else is drawn from.
    """

    def __init__(self, gradient: MeanGradient, batch_size: int, generator: torch.Generator) -> None:
        if not 1 <= batch_size <= gradient.num_examples:
            raise ValueError(
                f"{type(self).__name__}: a batch must have 1..{gradient.num_examples} examples, as "
                f"many as the data has at most, got {batch_size}; take a smaller batch_size"
            )
        self.gradient = gradient
        self.batch_size = batch_size
        self.generator = generator

    def draw(self) -> Tensor:
        """[P] float64, the next estimate."""
        return self.estimate(self.indices())

    def indices(self) -> Tensor:
        """[B] int64, the examples of the next estimate."""
        raise NotImplementedError

    def estimate(self, index: Tensor) -> Tensor:
        """[P] float64, the estimate that the examples index [B] give."""
        raise NotImplementedError


class StochasticGradient(GradientEstimator):
    """SG-B: the mean gradient of B examples drawn uniformly.

        V = σ²/B (N - B)/(N - 1),   σ² = 1/N Σ_i ‖g_i - g‖²          V = σ²/B with replacement

    Without replacement is what training draws, and what a comparison with strata needs: one
    example of each of B random strata *is* such a batch. With 2B examples the variance is half of
    that with B: exactly with replacement, else (N - 2B)/(2 (N - B)) of it.
    """

    def __init__(
        self,
        gradient: MeanGradient,
        batch_size: int,
        generator: torch.Generator,
        *,
        replacement: bool = False,
    ) -> None:
        super().__init__(gradient, batch_size, generator)
        self.replacement = replacement

    def indices(self) -> Tensor:
        n, size = self.gradient.num_examples, self.batch_size
        if self.replacement:
            return torch.randint(n, (size,), generator=self.generator)
        return torch.randperm(n, generator=self.generator)[:size]

    def estimate(self, index: Tensor) -> Tensor:
        return self.gradient(index)


class SVRG(StochasticGradient):
    """ĝ = ∇L(θ̃) + 1/B Σ_i [∇ℓ_i(θ) - ∇ℓ_i(θ̃)]            θ̃: the snapshot, B examples drawn uniformly

    The variance is that of the differences: 0 at the snapshot (to rounding), and it grows as the
    model leaves it. An estimate costs two mini-batch gradients, a snapshot a pass over the data. The
    snapshot has the buffers too: running statistics that moved on would make it another function.

    snapshot: of the same data and parameters, by :meth:`MeanGradient.snapshot`; ValueError if not.
    """

    def __init__(
        self,
        gradient: MeanGradient,
        batch_size: int,
        generator: torch.Generator,
        snapshot: Snapshot,
        *,
        replacement: bool = False,
    ) -> None:
        super().__init__(gradient, batch_size, generator, replacement=replacement)
        if snapshot.parameters != gradient.parameters:
            raise ValueError(
                f"SVRG: the snapshot has the gradient of {list(snapshot.parameters)}, "
                f"wanted is that of {list(gradient.parameters)}; take it with the same parameters"
            )
        if snapshot.num_examples != gradient.num_examples:
            raise ValueError(
                f"SVRG: the snapshot is over {snapshot.num_examples} examples, "
                f"the data has {gradient.num_examples}; take it over the same data"
            )
        self.snapshot = snapshot

    def estimate(self, index: Tensor) -> Tensor:
        difference = self.gradient(index) - self.gradient(index, state=self.snapshot.state)
        return self.snapshot.full_gradient.to(difference.device) + difference


class StratifiedGradient(GradientEstimator):
    """GC: the weighted mean gradient of a stratified mini-batch (Faghri et al., Eq. 4.1).

        ĝ = 1/B Σ_i (M N_k / N) g_i,   k the cluster of i; examples as :class:`StratifiedSampler` draws

    Every estimate starts with a new permutation of the M clusters. A batch of B = M has one example
    of each; take a multiple of M, since with B < M the differences between clusters add to the
    variance. It costs what SG-B costs, and pays where examples of one cluster have like gradients:
    duplicates, many easy examples, few hard ones. It is below SG-B for a good partition only; clusters
    of very unequal sizes can be worse, because each has the same share of the batch.

    assignment: [N] cluster of each example. ValueError if it is for another number of examples.
    """

    def __init__(
        self,
        gradient: MeanGradient,
        batch_size: int,
        generator: torch.Generator,
        assignment: Ids,
        *,
        replacement: bool = False,
    ) -> None:
        super().__init__(gradient, batch_size, generator)
        self.sampler = StratifiedSampler(assignment, replacement=replacement)
        if len(self.sampler.weight) != gradient.num_examples:
            raise ValueError(
                f"StratifiedGradient: assignment must have shape [{gradient.num_examples}], a "
                f"cluster for each example of the data, got [{len(self.sampler.weight)}]"
            )

    def indices(self) -> Tensor:
        return torch.tensor(list(islice(self.sampler.stream(self.generator), self.batch_size)))

    def estimate(self, index: Tensor) -> Tensor:
        return self.gradient(index, self.sampler.weight[index])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _weight(model: nn.Module) -> Tensor:
    """The parameter whose device the data gets, and images its dtype."""
    for p in model.parameters():
        if p.is_floating_point():
            return p
    raise ValueError(f"model: {type(model).__name__} has no parameter, so there is no gradient")


def _checked_names(model: nn.Module, parameters: Sequence[str] | None) -> tuple[str, ...]:
    known = dict(model.named_parameters())
    if parameters is None:
        names = tuple(name for name, p in known.items() if p.requires_grad)
        if not names:
            raise ValueError(
                f"{type(model).__name__} has no parameter that requires a gradient; "
                "name those that count with parameters="
            )
        return names
    if isinstance(parameters, str):
        raise TypeError(f"parameters must be a list of names, got the string {parameters!r}")
    names = tuple(parameters)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"parameters must be one or more different names, got {list(names)}")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{type(model).__name__} has no parameter {nearest(unknown, known)}; "
            "names are those of model.named_parameters()"
        )
    return names
