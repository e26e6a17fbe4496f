"""InfoNCE against a queue (comparisons.py), forward and backward to the queries.

Peers of the loss: MoCo's own lines, which make all B x (K + 1) logits; and attention by torch's public
function, with a key of zeros whose share of the softmax says what the others sum to. The floor is the two
products that each of them has: the logits, and the sum of the queue that they weigh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from comparisons import Call, Comparison, Compiler, agree, generator, plain
from shapes import Negatives
from torch import Tensor

from hrrl_ext.contrastive import info_nce

TEMPERATURE = 0.2
AGREEMENT = 1e-6


def eager_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """As MoCo's builder and main write it."""
    positive = torch.einsum("nc,nc->n", query, key)[:, None]
    logits = torch.cat([positive, query @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def attention_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient, by scaled_dot_product_attention over the queue [K + 1, D + 8], whose last
    row is zeros but for a one in column D."""
    size = query.shape[1]
    with torch.no_grad():
        q = F.pad(query, (0, queue.shape[1] - size))[None, None]
        n = queue[None, None]
        out = F.scaled_dot_product_attention(q, n, n, scale=1 / TEMPERATURE)[0, 0]
        zero = out[:, size]  # 1/(1 + Σ e^l)
        mean = out[:, :size] / (1 - zero)[:, None]
        negative = torch.log1p(-zero) - zero.log()
        positive = (query * key).sum(1) / TEMPERATURE
        total = torch.logaddexp(positive, negative)
        weight = (negative - total).exp()[:, None], (positive - total).expm1()[:, None]
        grad = (weight[0] * mean + weight[1] * key) / (TEMPERATURE * len(query))
        return (total - positive).mean(), grad


def two_products(query: Tensor, queue: Tensor) -> Call:
    """In the pieces that ours takes on the CPU, which stay in the cache."""
    total, pieces = torch.empty_like(query), queue.split(2**17 // len(query))

    def run() -> None:
        for piece in pieces:
            torch.mm(query @ piece.T, piece, out=total)

    return torch.no_grad()(run)


@lru_cache(maxsize=1)
def negatives(case: Negatives, device: str) -> Comparison:
    g = generator(device)
    query, key, queue = (
        F.normalize(torch.randn(n, case.size, generator=g, device=device))
        for n in (case.batch, case.batch, case.keys)
    )
    query.requires_grad_()
    padded = F.pad(queue, (0, 8, 0, 1))
    padded[-1, case.size] = 1

    def call(loss: Callable[..., Tensor], *arguments: Tensor) -> Call:
        def run() -> list[Tensor]:
            value = loss(*(arguments or (query, key, queue)))
            return [value.detach(), *torch.autograd.grad(value, arguments[:1] or query)]

        return run

    def compiled(compiler: Compiler) -> Call:
        return call(compiler(eager_info_nce))

    wide = query.detach().double().requires_grad_(), key.double(), queue.double()
    expected = call(eager_info_nce, *wide)()
    return Comparison(
        op="info_nce",
        case=case,
        check=lambda actual: agree(actual, expected, AGREEMENT),
        ways={
            "ours": plain(call(lambda *rows: info_nce(*rows, temperature=TEMPERATURE).mean())),
            "eager": plain(call(eager_info_nce)),
            "attention": plain(lambda: attention_info_nce(query, key, padded)),
            "compile": compiled,
            "products": plain(two_products(query.detach(), queue)),
        },
        held=(query, key, queue),
        unchecked=frozenset({"products"}),
    )
