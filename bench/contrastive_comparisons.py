"""InfoNCE against a queue (comparisons.py), forward and backward to the queries.

Peers of the loss: MoCo's own lines, which make all B x (K + 1) logits; and attention by torch's public
function, with a key of zeros whose share of the softmax says what the others sum to. On CUDA it takes the
queue in chunks side by side, as a few hundred queries alone leave most of a device idle. The floor is the
two products that each of them has: the logits, and the sum of the queue that they weigh.
"""

from __future__ import annotations

import math
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
CHUNKS = {"cpu": 1, "cuda": 64}
"""Of the queue, for attention: 256 queries, 64 in a block, are 256 blocks for 132 multiprocessors."""


def eager_info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """As MoCo's builder and main write it."""
    positive = torch.einsum("nc,nc->n", query, key)[:, None]
    logits = torch.cat([positive, query @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def in_chunks(queue: Tensor, count: int) -> Tensor:
    """[K, D] in at most so many chunks of M rows, [S, M + 1, D + 8]. The last row of each is zeros but
    for a one in column D, and so are those that the last chunk has too many."""
    parts, size = queue.split(math.ceil(len(queue) / count)), queue.shape[1]
    chunks = queue.new_zeros(len(parts), len(parts[0]) + 1, size + 8)
    chunks[..., size] = 1
    for chunk, part in zip(chunks, parts, strict=True):
        chunk[: len(part)] = F.pad(part, (0, 8))
    return chunks


def attention_info_nce(query: Tensor, key: Tensor, chunks: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient, by scaled_dot_product_attention over chunks of the queue (in_chunks), whose
    log-sum-exps weigh what comes of each."""
    size = query.shape[1]
    with torch.no_grad():
        q = F.pad(query, (0, chunks.shape[2] - size)).expand(len(chunks), 1, -1, -1)
        n = chunks[:, None]
        out = F.scaled_dot_product_attention(q, n, n, scale=1 / TEMPERATURE)[:, 0]  # [S, B, D + 8]
        zeros = out[..., size]  # z/(z + Σ e^l), of a chunk with z rows of zeros
        whole = chunks[..., size].sum(1, keepdim=True).log() - zeros.log()  # log(z + Σ e^l)
        positive = (query * key).sum(1) / TEMPERATURE
        negative = (whole + torch.log1p(-zeros)).logsumexp(0)
        total = torch.logaddexp(positive, negative)
        sums = torch.einsum("sb,sbd->bd", (whole - total).exp(), out[..., :size])
        grad = sums + (positive - total).expm1()[:, None] * key
        return (total - positive).mean(), grad / (TEMPERATURE * len(query))


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
    chunks = in_chunks(queue, CHUNKS[device])

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
            "attention": plain(lambda: attention_info_nce(query, key, chunks)),
            "compile": compiled,
            "products": plain(two_products(query.detach(), queue)),
        },
        held=(query, key, queue),
        unchecked=frozenset({"products"}),
    )
