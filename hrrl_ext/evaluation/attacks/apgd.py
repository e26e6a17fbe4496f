"""APGD: projected steepest ascent that sets its own step size, per example."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...norms import L1, Ball, Norm
from .gradient import Best
from .losses import Loss
from .victim import attackable, borrowed

_MOMENTUM = 0.75  # α
_PROGRESS = 0.75  # ρ: a smaller share of steps that raised the loss halves the step size

_FIRST_SPARSITY = 0.2  # share of the pixels that the first l1 step moves
_SPARSER = 1.5  # later ones move as many as the best point has, divided by this
_STABLE = 0.95  # the number has settled when it keeps this share of itself
_SHORTER, _SHORTEST = 1.5, 0.1  # then η falls by this factor, down to this part of eps


def apgd(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: str | Norm = "linf",
    steps: int = 100,
    loss: Loss = "ce",
    towards: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Auto-PGD (Croce & Hein 2020): PGD without a step size to choose.

        z' = P(z_k + η s(∇ℓ(z_k))),   z_{k+1} = P(z_k + α (z' - z_k) + (1 - α)(z_k - z_{k-1}))

    s is the steepest direction in the norm, α = 0.75 (1 in the first step), and η = 2 eps at first. At
    the checkpoints (22, 41, 57, 70, 80, 87, 93, 99 % of the steps) an example halves its η and goes on
    from its best point, if fewer than 3/4 of its steps since the last one raised the loss, or if η
    was kept then and the highest loss has not risen since.

    For l1 the rule is that of Croce & Hein (2021): no momentum, a step moves the k pixels of largest
    gradient by η/k each; every 4 % of the steps k becomes the number of pixels that the best point
    moves, over 1.5. While that number shrinks by more than 5 %, η is eps and the example goes on from
    its best point; else η is divided by 1.5, down to eps/10.

    loss     "ce"; "dlr", which the scale of the logits does not change and which needs 3 classes;
             "targeted dlr", towards the classes ``towards`` [N], which needs 4; "margin"

    The other arguments, the image that is returned, determinism and errors are those of `pgd`.
    """
    if steps < 1:
        raise ValueError(f"apgd: steps must be at least 1, got {steps}")
    if (towards is not None) != (loss == "targeted dlr"):
        raise ValueError(
            "apgd: loss='targeted dlr' and towards=, the classes aimed at, go together, "
            f"got loss={loss!r} and towards={'None' if towards is None else 'a tensor'}"
        )
    ball = attackable("apgd", x, target, eps, norm)
    if eps == 0 or len(x) == 0:
        return x
    with borrowed("apgd", model, x.device) as victim:
        z = ball.begin(start)
        look = victim.look(z, target, loss, towards=towards)
        best = Best.of(ball.x).or_better(z, look)
        here = top = _Point(ball.delta(z), look.loss, look.grad)
        rule: _Rule = (_Sparse if isinstance(ball.norm, L1) else _Halving)(ball, steps, look.loss)
        for k in range(1, steps + 1):
            z = ball.image(rule.step(here))
            look = victim.look(z, target, loss, towards=towards, gradient=k < steps)
            best = best.or_better(z, look)
            last, here = here, _Point(ball.delta(z), look.loss, look.grad)
            top = _choose(here.loss > top.loss, here, top)
            here = _choose(rule.restarts(k, here.loss > last.loss, top), top, here)
    return best.image


class _Point(NamedTuple):
    delta: Tensor
    loss: Tensor
    grad: Tensor


def _choose(first: Tensor | None, a: _Point, b: _Point) -> _Point:
    """Per example: a where ``first`` [N], else b. None: b."""
    if first is None:
        return b
    pixels = first.view(-1, 1, 1, 1)
    return _Point(
        torch.where(pixels, a.delta, b.delta),
        torch.where(first, a.loss, b.loss),
        torch.where(pixels, a.grad, b.grad),
    )


class _Rule(Protocol):
    """How far to step, and which examples go back to their best point."""

    def __init__(self, ball: Ball, steps: int, loss: Tensor) -> None: ...

    def step(self, here: _Point) -> Tensor: ...

    def restarts(self, k: int, raised: Tensor, top: _Point) -> Tensor | None: ...


class _Halving:
    """The rule of Croce & Hein (2020), section 3."""

    def __init__(self, ball: Ball, steps: int, loss: Tensor) -> None:
        self.ball = ball
        self.length = torch.full_like(ball.base[:, :1, :1, :1], 2 * ball.eps)
        self.before: Tensor | None = None  # δ one step earlier
        self.checkpoints = checkpoints(steps)
        self.last_checkpoint = 0
        self.raised = torch.zeros_like(loss)
        self.kept = torch.ones_like(loss, dtype=torch.bool)
        self.top_loss = loss

    def step(self, here: _Point) -> Tensor:
        delta = self.ball.move(here.delta, here.grad, self.length)
        if self.before is not None:
            # α z' + (1 - α)(2 z_k - z_{k-1}): the equation above, in two passes
            ahead = self.before.lerp(here.delta, 2)
            delta = self.ball.project(ahead.lerp(delta, _MOMENTUM))
        self.before = here.delta
        return delta

    def restarts(self, k: int, raised: Tensor, top: _Point) -> Tensor | None:
        self.raised = self.raised + raised
        if k not in self.checkpoints:
            return None
        few = self.raised < _PROGRESS * (k - self.last_checkpoint)
        halve = few | (self.kept & (top.loss <= self.top_loss))
        self.length = torch.where(halve.view(-1, 1, 1, 1), self.length / 2, self.length)
        self.kept, self.top_loss = ~halve, top.loss
        self.raised, self.last_checkpoint = torch.zeros_like(self.raised), k
        return halve


def checkpoints(steps: int) -> set[int]:
    """⌈p_j steps⌉ with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    found, percent, gap = set(), 22, 22
    while percent <= 100:
        found.add(-(-percent * steps // 100))
        gap = max(gap - 3, 6)
        percent += gap
    return found


class _Sparse:
    """The rule of Croce & Hein (2021) for l1, whose best points move few pixels."""

    def __init__(self, ball: Ball, steps: int, loss: Tensor) -> None:
        self.ball = ball
        self.every = math.ceil(0.04 * steps)
        self.length = torch.full_like(ball.base[:, :1, :1, :1], ball.eps)
        pixels = ball.base[0].numel()
        self.moved = torch.full_like(loss, pixels)
        self.k = torch.full_like(loss, _FIRST_SPARSITY * pixels)

    def step(self, here: _Point) -> Tensor:
        size = here.grad.abs()
        place = self.k.long().clamp(min=1) - 1
        least = size.flatten(1).sort(1, descending=True).values.gather(1, place[:, None])
        direction = here.grad.sign() * (size >= least.view(-1, 1, 1, 1))
        share = direction.abs().sum((1, 2, 3), keepdim=True).clamp(min=1)
        return self.ball.project(here.delta + self.length * direction / share)

    def restarts(self, k: int, raised: Tensor, top: _Point) -> Tensor | None:
        if k % self.every:
            return None
        moved = (top.delta != 0).sum((1, 2, 3)).to(self.moved.dtype)
        shrinks = moved < _STABLE * self.moved
        shorter = (self.length / _SHORTER).clamp(min=_SHORTEST * self.ball.eps)
        self.length = torch.where(shrinks.view(-1, 1, 1, 1), self.ball.eps, shorter)
        self.moved, self.k = moved, moved / _SPARSER
        return shrinks
