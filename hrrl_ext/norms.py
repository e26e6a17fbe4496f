"""The sets an attack searches: a norm, and the ball around an image cut with the box [0, 1].

Perturbations δ are [N, C, H, W] in float32 or wider; every norm is over one example. Shrinking |δ|
pixel by pixel never raises an lp norm, which is why clamping and rounding towards x stay in the ball.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops

_PIXELS = (1, 2, 3)
_INSIDE = 1 - 1e-6
"""Part of the radius that projections aim at, so that float32 sums do not end outside."""
_HALVINGS = 26
"""Of the bracket of the l1 threshold: 2^-26 of the largest |δ| is below float32's resolution of it."""

Length = float | Tensor
"""A number, or one per example as [N, 1, 1, 1]."""


class Norm(ABC):
    """‖·‖ on perturbations: its size, its steepest step and the projection on its balls."""

    name: str

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """‖δ_i‖ [N]."""

    @abstractmethod
    def move(
        self, delta: Tensor, grad: Tensor, length: Length, low: Tensor, high: Tensor
    ) -> Tensor:
        """δ + argmax of ⟨grad, d⟩ over ‖d‖ ≤ length: it gains length ‖grad‖* (the dual norm).

        A zero gradient moves nothing. The box is left to ``project``, but for l1, whose step has to
        know where the box ends.
        """

    @abstractmethod
    def project(self, delta: Tensor, eps: float, low: Tensor, high: Tensor) -> Tensor:
        """A δ with ‖δ‖ ≤ eps and low ≤ δ ≤ high, where low ≤ 0 ≤ high."""

    def image(self, x: Tensor, delta: Tensor, eps: float) -> Tensor:
        """x + δ in the dtype of x, rounded towards x where rounding would move a pixel further than δ."""
        z = (x + delta).to(x.dtype)
        further = (z.to(delta.dtype) - x).abs_() > delta.abs()
        return torch.where(further, torch.nextafter(z, x), z)


class Linf(Norm):
    """max_j |δ_j|. Dual: l1. Steepest step: the sign."""

    name = "linf"

    def size(self, delta: Tensor) -> Tensor:
        return delta.abs().amax(_PIXELS)

    def move(
        self, delta: Tensor, grad: Tensor, length: Length, low: Tensor, high: Tensor
    ) -> Tensor:
        return grad.sign().mul_(length).add_(delta)

    def project(self, delta: Tensor, eps: float, low: Tensor, high: Tensor) -> Tensor:
        return delta.clamp(-eps, eps).clamp_(low, high)


class L2(Norm):
    """(Σ_j δ_j²)^½, its own dual. Steepest step: grad / ‖grad‖, by `ops.perturb`.

    The projection shrinks onto the ball, then clamps: in both sets, though not always the nearest point.
    """

    name = "l2"

    def size(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, dim=_PIXELS)

    def move(
        self, delta: Tensor, grad: Tensor, length: Length, low: Tensor, high: Tensor
    ) -> Tensor:
        return ops.perturb(delta, grad, length.flatten() if isinstance(length, Tensor) else length)[
            0
        ]

    def project(self, delta: Tensor, eps: float, low: Tensor, high: Tensor) -> Tensor:
        shrink = (_INSIDE * eps / self.size(delta)).clamp(max=1)
        return (delta * shrink.view(-1, 1, 1, 1)).clamp_(low, high)


class L1(Norm):
    """Σ_j |δ_j|. Dual: linf.

    One pixel can take at most what is left to the end of the box, so both the steepest step and the
    projection are those of the ball cut with the box (Croce & Hein, "Mind the box", 2021).
    """

    name = "l1"

    def size(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(_PIXELS)

    def move(
        self, delta: Tensor, grad: Tensor, length: Length, low: Tensor, high: Tensor
    ) -> Tensor:
        """The pixels of largest |grad| in turn, each to the end of the box, until length is spent."""
        room = torch.where(grad > 0, high - delta, delta - low).clamp(min=0)
        room = torch.where(grad == 0, 0.0, room)
        order = grad.abs().flatten(1).argsort(dim=1, descending=True, stable=True)
        sorted_room = room.flatten(1).gather(1, order)
        before = sorted_room.cumsum(1, dtype=torch.float64) - sorted_room
        budget = length.flatten(1) if isinstance(length, Tensor) else length
        spent = torch.minimum((budget - before).clamp(min=0).to(room.dtype), sorted_room)
        step = torch.zeros_like(spent).scatter(1, order, spent).view_as(delta)
        return delta + step * grad.sign()

    def project(self, delta: Tensor, eps: float, low: Tensor, high: Tensor) -> Tensor:
        """The nearest point of both sets: δ_j = clamp(sign(v_j) max(|v_j| - λ, 0), low_j, high_j).

        Its l1 norm falls as λ grows; λ is found by halving a bracket, and its upper end is taken,
        which is inside.
        """
        size = delta.abs()
        cap = torch.where(delta > 0, high, -low)
        below, above = torch.zeros_like(size[:, :1, :1, :1]), size.amax(_PIXELS, keepdim=True)
        inside = torch.minimum(size, cap).sum(_PIXELS, keepdim=True) <= _INSIDE * eps
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            total = torch.minimum((size - middle).clamp_(min=0), cap).sum(_PIXELS, keepdim=True)
            over = total > _INSIDE * eps
            below, above = torch.where(over, middle, below), torch.where(over, above, middle)
        threshold = torch.where(inside, 0.0, above)
        return torch.minimum((size - threshold).clamp_(min=0), cap) * delta.sign()


@dataclass(frozen=True)
class Ball:
    """{z in [0, 1] : ‖z - x_i‖ ≤ eps}, one per image of x [N, C, H, W] in [0, 1]."""

    norm: Norm
    x: Tensor
    eps: float
    base: Tensor
    """x in the dtype that attacks compute in: float32 or wider."""
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: float, norm: Norm) -> Ball:
        base = x.to(torch.promote_types(x.dtype, torch.float32))
        return cls(norm, x, eps, base, -base, 1 - base)

    def __getitem__(self, rows: Tensor) -> Ball:
        return Ball(
            self.norm, self.x[rows], self.eps, self.base[rows], self.low[rows], self.high[rows]
        )

    def delta(self, z: Tensor) -> Tensor:
        return z.to(self.base.dtype) - self.base

    def project(self, delta: Tensor) -> Tensor:
        return self.norm.project(delta, self.eps, self.low, self.high)

    def begin(self, start: Tensor | None) -> Tensor:
        """The image to start from: ``start`` projected, or x itself."""
        if start is None:
            return self.x
        if start.shape != self.x.shape:
            raise ValueError(
                f"start must have the shape {list(self.x.shape)} of x, got {list(start.shape)}"
            )
        return self.image(self.project(self.delta(start.detach())))

    def move(self, delta: Tensor, grad: Tensor, length: Length) -> Tensor:
        """A steepest step of this length, projected."""
        return self.project(self.norm.move(delta, grad, length, self.low, self.high))

    def image(self, delta: Tensor) -> Tensor:
        """The image x + δ as it is stored: in [0, 1], and in the ball as it was before rounding."""
        return self.norm.image(self.x, delta, self.eps)
