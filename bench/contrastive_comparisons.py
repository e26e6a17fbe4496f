"""InfoNCE against a queue (comparisons.py), forward and backward to the queries; and steps of MoCo v2.

Peers of the loss: MoCo's own lines, which make all B x (K + 1) logits; and attention by torch's public
function, with a key of zeros whose share of the softmax says what the others sum to. The floor is the two
products that each of them has: the logits, and the sum of the queue that they weigh.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from comparisons import Call, Comparison, Compiler, agree, generator, plain
from shapes import Negatives
from torch import Tensor, nn

from hrrl_ext import URRLTrainer
from hrrl_ext.contrastive import info_nce
from hrrl_ext.data import ArrayImages
from hrrl_ext.models import resnet18

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


# --- a step


@dataclass(frozen=True)
class PretrainingCase:
    width: int
    dtype: str
    batch: int = 256
    keys: int = 4096
    side: int = 32

    def __str__(self) -> str:
        return f"resnet18-w{self.width}-B{self.batch}-K{self.keys}-{self.dtype}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, 3, self.side, self.side), "dtype": self.dtype}

    def views(self, device: str) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        x, y = (torch.rand(self.batch, 3, self.side, self.side, generator=g) for _ in range(2))
        return x.to(device), y.to(device)


class _NoViews:
    def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return images, images


def our_step(case: PretrainingCase, device: str) -> Call:
    images = torch.zeros(case.batch, 3, case.side, case.side, dtype=torch.uint8)
    trainer = URRLTrainer(
        data=ArrayImages(images, torch.zeros(case.batch, dtype=torch.int64), classes=["a", "b"]),
        views=_NoViews(), width=case.width, batch_size=case.batch, queue=case.keys, lr=1e-3,
        schedule="constant", precision=case.dtype, device=device, progress="off",
    )  # fmt: skip
    target = torch.zeros(case.batch, dtype=torch.int64, device=device)
    move = trainer.loop.move.of(case.batch)
    batch = (*case.views(device), target)
    trainer.encoder.train()

    def step() -> Tensor:
        trainer.recipe._steps = 0
        return trainer.recipe.step(batch, move)[0]

    return step


class SplitBatchNorm(nn.BatchNorm2d):
    """As in MoCo's notebook for CIFAR: eight groups as channels of their own."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        mean, var = (t.repeat(8) for t in (self.running_mean, self.running_var))  # type: ignore[union-attr]
        out = F.batch_norm(
            x.view(-1, c * 8, h, w), mean, var, self.weight.repeat(8), self.bias.repeat(8), True,
            self.momentum or 0.0, self.eps,
        ).view(n, c, h, w)  # fmt: skip
        self.running_mean.copy_(mean.view(8, c).mean(0))  # type: ignore[union-attr]
        self.running_var.copy_(var.view(8, c).mean(0))  # type: ignore[union-attr]
        return out


def notebook_step(case: PretrainingCase, device: str) -> Call:
    """MoCo's notebook, with the two-layer head."""
    query = resnet18(2, stem="small", width=case.width)
    features = query.num_features
    query.fc = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128))  # type: ignore[assignment]
    for module in query.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SplitBatchNorm
    query = query.to(device).train()
    key = copy.deepcopy(query).requires_grad_(False)
    queue = F.normalize(torch.randn(128, case.keys, device=device), dim=0)
    optimizer = torch.optim.SGD(query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    x, y = case.views(device)
    place = 0

    def step() -> Tensor:
        nonlocal place
        with torch.no_grad():
            for k, q in zip(key.parameters(), query.parameters(), strict=True):
                k.data = k.data * 0.999 + q.detach() * 0.001
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16"):
            z = F.normalize(query(x), dim=1)
            with torch.no_grad():
                order = torch.randperm(len(y), device=device)
                keys = F.normalize(key(y[order]), dim=1)[order.argsort()]
            positive = torch.einsum("nc,nc->n", z, keys)[:, None]
            negative = torch.einsum("nc,ck->nk", z, queue.clone().detach())
            logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
            loss = F.cross_entropy(logits.float(), logits.new_zeros(len(x), dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[:, place : place + len(keys)] = keys.T.float()
        place = (place + len(keys)) % case.keys
        return loss.detach()

    return step


def lightly_step(case: PretrainingCase, device: str) -> Call:
    """lightly's parts, as its examples put them together: batch normalisation sees a batch whole."""
    modules = importlib.import_module("lightly.models.modules")
    tools: Any = importlib.import_module("lightly.models.utils")
    losses = importlib.import_module("lightly.loss")
    backbone = resnet18(2, stem="small", width=case.width)
    features = backbone.num_features
    backbone.fc = nn.Identity()  # type: ignore[assignment]
    query = nn.Sequential(backbone, modules.MoCoProjectionHead(features, features, 128))
    query = query.to(device).train()
    key = copy.deepcopy(query)
    tools.deactivate_requires_grad(key)
    criterion = losses.NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(case.keys, 128))
    criterion = criterion.to(device)
    optimizer = torch.optim.SGD(query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    x, y = case.views(device)

    def step() -> Tensor:
        tools.update_momentum(query, key, m=0.999)
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16"):
            z = query(x)
            with torch.no_grad():
                shuffled, order = tools.batch_shuffle(y)
                keys = tools.batch_unshuffle(key(shuffled), order)
            loss: Tensor = criterion(z, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


PRETRAINING_STEPS = {"ours": our_step, "eager": notebook_step, "lightly": lightly_step}
