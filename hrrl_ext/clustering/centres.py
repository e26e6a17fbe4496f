"""Centres of low rank, layer by layer, and the sums over a cluster's examples that move them (U step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .._precision import full_float32
from ..ops import LayerGradient, Rank1Centre

CentreRule = Literal["svd", "mean"]
_RESOLUTION = 1e-6  # of factors in float32
_FIRST_STEPS = 4  # of power iteration towards the factors of a single example


class ClusterSums:
    """What one pass over the data adds up for the U step: per cluster and layer, in float64.

    The rule "mean" is Eq. 4.6, c_k = mean of A, d_k = mean of D over the cluster. For a convolution
    A is averaged over positions too and D is summed over them, which is right where the two are
    independent.

    The rule "svd" moves towards the best centre of rank R: the leading R singular triplets of the
    cluster's mean gradient M_k. One side is held, with orthonormal columns V: then M V is the other
    side of the least-squares centre. Holding inputs and outputs in turn is power iteration (in
    blocks) that never forms M, since M V = 1/N_k Σ_i G_i V is a sum over examples, and each step
    lowers Σ_i ‖C_{a_i} - G_i‖² for its assignment.
    """

    def __init__(
        self, centres: Sequence[Rank1Centre], rule: CentreRule, *, hold_outputs: bool
    ) -> None:
        self.rule = rule
        self.hold_outputs = hold_outputs
        self._layers = len(centres)
        held = [c.centre_out if hold_outputs else c.centre_in for c in centres]
        moved = [c.centre_in if hold_outputs else c.centre_out for c in centres]
        self._held = [_orthonormal(factor) for factor in held] if rule == "svd" else []
        self.totals: list[Tensor] = [_zeros(factor) for factor in moved]
        """Σ over the cluster, [K, G, R, ·] per layer; several processes add theirs up."""
        if rule == "mean":
            self.totals += [_zeros(factor) for factor in held]

    def add(self, gradients: Sequence[LayerGradient], assignment: Tensor) -> None:
        with full_float32(assignment.device):
            self._add(gradients, assignment)

    def _add(self, gradients: Sequence[LayerGradient], assignment: Tensor) -> None:
        for layer, gradient in enumerate(gradients):
            if self.rule == "mean":
                means = _mean_inputs(gradient), _sum_outputs(gradient)
                moved, other = means if self.hold_outputs else means[::-1]
                self.totals[self._layers + layer].index_add_(0, assignment, other.double())
            else:
                held = self._held[layer][assignment]
                moved = (
                    inputs_of(gradient, held) if self.hold_outputs else outputs_of(gradient, held)
                )
            self.totals[layer].index_add_(0, assignment, moved.double())

    def centres(self, size: Tensor, empty: Sequence[Rank1Centre]) -> list[Rank1Centre]:
        """The centres of clusters of these sizes [K]; an empty one keeps that of ``empty``."""
        divisor, live = size.clamp(min=1).view(-1, 1, 1, 1), (size > 0).view(1, -1, 1, 1)
        means = [total / divisor for total in self.totals]
        moved = means[: self._layers]
        held = means[self._layers :] if self.rule == "mean" else self._held
        centres = []
        for new, old, before in zip(moved, held, empty, strict=True):
            pair = (new, old) if self.hold_outputs else (old, new)
            factors = [
                torch.where(live, factor.transpose(0, 1).to(kept.dtype), kept).contiguous()
                for factor, kept in zip(pair, before, strict=True)
            ]
            centres.append(Rank1Centre(*factors))
        return centres


def example_centres(
    gradients: Sequence[LayerGradient], rule: CentreRule, rank: int
) -> list[Rank1Centre]:
    """A centre at each example: its gradient in a linear layer, else as near as the rule comes."""
    own = torch.arange(len(gradients[0].act), device=gradients[0].act.device)
    with full_float32(own.device):
        centres = [_start(gradient, rank) for gradient in gradients]
    for step in range(1 if rule == "mean" else _FIRST_STEPS):
        sums = ClusterSums(centres, rule, hold_outputs=step % 2 == 0)
        sums.add(gradients, own)
        centres = sums.centres(torch.ones_like(own), centres)
    return centres


def inputs_of(gradient: LayerGradient, outputs: Tensor) -> Tensor:
    """G_iᵀ d_i = Σ_t A_it (D_it·d_i):  d [B, G, R, O] → [B, G, R, J]."""
    dout = _by_group(gradient.dout, gradient.shape[0])  # [B, G, O, T]
    seen = outputs @ dout  # [B, G, R, T]
    seen = seen.reshape(len(dout), -1, *gradient.dout.shape[2:])
    return gradient._replace(dout=seen).materialize()  # R outputs in the place of O


def outputs_of(gradient: LayerGradient, inputs: Tensor) -> Tensor:
    """G_i c_i = Σ_t D_it (A_it·c_i):  c [B, G, R, J] → [B, G, R, O]."""
    act, _, conv, bias = gradient
    batch, groups, rank, _ = inputs.shape
    weight, constant = (inputs[..., :-1], inputs[..., -1:]) if bias else (inputs, None)
    if conv is None:
        seen = weight @ act[:, None, :, None]  # [B, 1, R, 1]
    else:
        each = conv._replace(groups=batch * groups)
        kernels = weight.reshape(batch * groups * rank, -1, *conv.kernel)
        seen = each(act.reshape(1, -1, *act.shape[2:]), kernels).view(batch, groups, rank, -1)
    if constant is not None:
        seen = seen + constant
    return seen @ _by_group(gradient.dout, groups).transpose(2, 3)


def _by_group(dout: Tensor, groups: int) -> Tensor:
    """[B, G O, H, W] → [B, G, O, T]"""
    return dout.reshape(len(dout), groups, dout.shape[1] // groups, -1)


def _mean_inputs(gradient: LayerGradient) -> Tensor:
    """Mean over positions of A_it, [B, G, 1, J]."""
    groups = gradient.shape[0]
    dout = gradient.dout
    once = torch.full_like(dout[:, :groups], 1 / math.prod(dout.shape[2:]))
    return gradient._replace(dout=once).materialize()


def _sum_outputs(gradient: LayerGradient) -> Tensor:
    """Sum over positions of D_it, [B, G, 1, O]."""
    return _by_group(gradient.dout, gradient.shape[0]).sum(3)[:, :, None]


def _start(gradient: LayerGradient, rank: int) -> Rank1Centre:
    """Something to start from, [G, B, R, ·], the same for every example."""
    groups, outputs, inputs = gradient.shape
    rank, batch = min(rank, outputs, inputs), len(gradient.act)
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(groups, 1, rank, outputs, generator=generator).to(gradient.dout)
    centre_in = factor.new_zeros(groups, batch, rank, inputs)
    return Rank1Centre(centre_in, factor.expand(-1, batch, -1, -1))


def _orthonormal(factor: Tensor) -> Tensor:
    """[G, K, R, ·] → [K, G, R, ·] with orthonormal rows, also where they were zero or parallel."""
    columns = factor.double().permute(1, 0, 3, 2)
    size = (
        columns.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    )  # whose squares may vanish or overflow
    columns = columns / torch.where(size > 0, size, 1.0)
    own = torch.linalg.qr(columns).R.diagonal(dim1=2, dim2=3).abs()[..., None, :]
    # What is only rounding would point anywhere; a zero is completed in the same way each time.
    columns = torch.where(own > _RESOLUTION * own.amax(3, keepdim=True), columns, 0.0)
    return torch.linalg.qr(columns).Q.transpose(2, 3).to(factor.dtype)


def _zeros(factor: Tensor) -> Tensor:
    return torch.zeros_like(factor.transpose(0, 1), dtype=torch.float64).contiguous()
