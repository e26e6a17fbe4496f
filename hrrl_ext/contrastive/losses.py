"""InfoNCE against a queue of negatives: attention whose keys and values are the queue."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._products import inner_products
from ..ops._library import operator

_AT_ONCE = 3 * 2**15  # logits, which stay in the cache
_by_kernels = operator("_info_nce")


def info_nce(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """The loss of each of B queries, whose positive is its own key, among K negatives they share.

        ℓ_i = -log( e^{q_i·k_i/T} / (e^{q_i·k_i/T} + Σ_j e^{q_i·n_j/T}) ),    log(K + 1) where all agree

    Args:
        query: [B, D], usually of norm 1; the only one with a gradient.
        key: [B, D].
        queue: [K, D], n_j; K may be 0, and the loss is 0 then.
        temperature: T.

    Returns:
        [B], in float32 or, where the arguments are, float64; also under autocast.

    With p_j the softmax over a query's K + 1 logits, dℓ/dq = (Σ_j p_j n_j + (p⁺ - 1) k)/T: the sum is
    what attention over the queue gives, and comes with the loss. The queue is gone through in pieces,
    once, or on the CPU twice where a logit is some 80 above those of the first piece; there is no [B, K]
    tensor, and backward is a product. Deterministic.
    On CUDA two kernels do it, whose products are of full float32, and a query's bits those of any batch;
    elsewhere float32 products are those that torch is set to.

    Raises ValueError for shapes that do not belong together, or a temperature that is not positive.
    Equivalent to F.cross_entropy(cat([(q*k).sum(1, keepdim=True), q @ queue.T], 1)/T, 0).
    """
    if query.ndim != 2 or key.shape != query.shape:
        raise ValueError(
            f"info_nce: query and key must be [B, D] both, got {list(query.shape)} and {list(key.shape)}"
        )
    if queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(
            f"info_nce: queue must be [K, {query.shape[1]}], as wide as query, got {list(queue.shape)}"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"info_nce: temperature must be positive and finite, got {temperature}")
    loss: Tensor = _InfoNCE.apply(query, key, queue, float(temperature))
    return loss


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
        kind = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            q, k, negatives = (t.detach().to(kind) for t in (query, key, queue))
            find = _by_kernels if q.is_cuda else _in_pieces
            loss, grad = find(q, k, negatives, temperature, ctx.needs_input_grad[0])
        ctx.save_for_backward(grad)
        ctx.kind = query.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * grad_loss[:, None]).to(ctx.kind), None, None, None


def _in_pieces(
    q: Tensor, k: Tensor, negatives: Tensor, temperature: float, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """The loss [B], and its gradient [B, D], [0] unless asked for."""
    positive = torch.bmm(q[:, None], k[:, :, None]).view(-1) / temperature
    log_sum, shift, grad = _attend(q, negatives, temperature, with_grad)
    total = torch.logaddexp(positive, log_sum)
    if grad is None:
        return total - positive, q.new_empty(0)
    grad.mul_((shift - total).exp()[:, None])
    grad.addcmul_(k, (positive - total).expm1()[:, None]).div_(temperature)
    return total - positive, grad


def _attend(
    q: Tensor, negatives: Tensor, temperature: float, with_sum: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """log Σ_j e^{l_j} [B] of the logits l_j = q·n_j/T; what they were lessened by, m [B]; and, if asked
    for, the sum Σ_j e^{l_j - m} n_j [B, D]."""
    # m is the largest of the first piece, which will do for all unless one is larger by some 80. What is
    # compiled cannot look at that, nor another device without waiting for it.
    looks = q.device.type == "cpu" and not torch.compiler.is_compiling()
    total, shift, weighted = _sums(q, negatives, temperature, with_sum, at_each=not looks)
    if looks and not all(t.isfinite().all() for t in (total, weighted) if t is not None):
        total, shift, weighted = _sums(q, negatives, temperature, with_sum, at_each=True)
    return (shift + total.log()).view(-1), shift.view(-1), weighted


def _sums(
    q: Tensor, negatives: Tensor, temperature: float, with_sum: bool, at_each: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Σ_j e^{l_j - m}, m and the weighted sum; m the largest logit, seen to ``at_each`` piece."""
    columns = max(1, _AT_ONCE // max(1, len(q)))
    shift, total = q.new_full((len(q), 1), -math.inf), q.new_zeros(len(q), 1)
    weighted = torch.zeros_like(q) if with_sum else None
    for i, piece in enumerate(negatives.split(columns) if len(negatives) else ()):
        logits = inner_products(q, piece)
        if at_each or i == 0:
            higher = torch.maximum(shift, logits.amax(1, keepdim=True) / temperature)
            fade, shift = (shift - higher).exp_(), higher
            total.mul_(fade)
            if weighted is not None:
                weighted.mul_(fade)
        torch.add(-shift, logits, alpha=1 / temperature, out=logits).exp_()
        total.add_(logits.sum(1, keepdim=True))
        if weighted is not None:
            weighted.add_(inner_products(logits, piece.T))
        del logits  # before the next are made
    return total, shift, weighted
