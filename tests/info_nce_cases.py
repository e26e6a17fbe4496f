"""Problems for InfoNCE, and what it comes to by cross-entropy over all K + 1 logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def problem(b: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    rows = (F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64)) for n in (b, b, k))
    query, key, queue = (t.to(dtype) for t in rows)
    return query.requires_grad_(), key, queue


def by_cross_entropy(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Losses, and the gradient of their sum in float64."""
    q, k, n = (t.detach().double() for t in (query, key, queue))
    q.requires_grad_()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], 1) / temperature
    losses = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64), reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), q)[0]


def check(
    arguments: tuple[Tensor, ...],
    temperature: float,
    loss: Tensor,
    grad: Tensor,
    weight: Tensor | float = 1.0,
) -> None:
    """In float64 to its rounding; in float32 to 24 bits of logits up to 1/T. grad is of loss @ weight."""
    tolerance = 1e-12 if loss.dtype == torch.float64 else 4e-7 / temperature
    query, key, queue = arguments
    expected, slope = by_cross_entropy(query, key, queue, temperature)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    slope *= torch.as_tensor(weight).double().view(-1, 1)  # of two keys' difference, divided by T
    torch.testing.assert_close(grad.double(), slope, rtol=0, atol=2 * tolerance / temperature)
