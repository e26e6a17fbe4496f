"""Norms: of perturbations of images, in balls cut with the box [0, 1], and of vectors, with their duals.

The sets an attack searches: perturbations δ are [N, C, H, W] in float32 or wider; every norm is over
one example. Shrinking |δ| pixel by pixel never raises an lp norm, which is why clamping and rounding
towards x stay in the ball. Weights of linear classifiers are vectors without a box: `vector_norm`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .spec import not_known

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


# --- vectors


class VectorNorm(ABC):
    """‖·‖ on vectors [..., d]: size, dual, steepest direction, projection on its balls and prox."""

    name: str

    @property
    @abstractmethod
    def dual(self) -> VectorNorm:
        """‖g‖* = max ⟨g, v⟩ over ‖v‖ ≤ 1."""

    @abstractmethod
    def size(self, v: Tensor) -> Tensor:
        """‖v‖ [...]."""

    @abstractmethod
    def steepest(self, g: Tensor) -> Tensor:
        """A v with ‖v‖ ≤ 1 and ⟨g, v⟩ = ‖g‖*; of several places the lowest index; 0 where g is 0."""

    @abstractmethod
    def project(self, v: Tensor, radius: Length = 1.0) -> Tensor:
        """The nearest u with ‖u‖ ≤ radius, a number, or [..., 1], not negative."""

    def prox(self, v: Tensor, step: Length) -> Tensor:
        """argmin_u ½‖u - v‖₂² + step ‖u‖: what is left of v outside the dual ball (Moreau)."""
        return v - self.dual.project(v, step)

    def __repr__(self) -> str:
        return f"vector_norm({self.name!r})"


class _VectorL1(VectorNorm):
    name = "l1"

    @property
    def dual(self) -> VectorNorm:
        return vector_norm("linf")

    def size(self, v: Tensor) -> Tensor:
        return v.abs().sum(-1)

    def steepest(self, g: Tensor) -> Tensor:
        first = _lowest_largest(g.abs())
        return torch.zeros_like(g).scatter(-1, first, g.gather(-1, first).sign())

    def project(self, v: Tensor, radius: Length = 1.0) -> Tensor:
        return _onto_l1(v.abs(), radius) * v.sign()


class _VectorLinf(VectorNorm):
    name = "linf"

    @property
    def dual(self) -> VectorNorm:
        return vector_norm("l1")

    def size(self, v: Tensor) -> Tensor:
        return v.abs().amax(-1)

    def steepest(self, g: Tensor) -> Tensor:
        return g.sign()

    def project(self, v: Tensor, radius: Length = 1.0) -> Tensor:
        bound = torch.as_tensor(radius, dtype=v.dtype, device=v.device)
        return torch.minimum(torch.maximum(v, -bound), bound)


@dataclass(frozen=True, repr=False)
class _VectorLp(VectorNorm):
    """(Σ_j |v_j|^p)^{1/p}, 1 < p < ∞. Its dual has 1/p + 1/q = 1. Projections: p = 2 alone."""

    p: float

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"l{self.p:g}"

    @property
    def dual(self) -> VectorNorm:
        return _VectorLp(self.p / (self.p - 1))

    def size(self, v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, self.p, dim=-1)

    def steepest(self, g: Tensor) -> Tensor:
        size = g.abs() / _positive(g.abs().amax(-1, keepdim=True))  # powers of what is ≤ 1
        v = g.sign() * size ** (self.dual.p - 1)  # type: ignore[attr-defined]
        return v / _positive(self.size(v).unsqueeze(-1))

    def project(self, v: Tensor, radius: Length = 1.0) -> Tensor:
        if self.p != 2:
            raise NotImplementedError(
                f"the projection on balls of {self.name} has no closed form; l1, l2, linf, "
                "fourier-l1 and fourier-linf have one"
            )
        return v * (radius / _positive(self.size(v).unsqueeze(-1))).clamp(max=1)


class _FourierNorm(VectorNorm):
    """l1 or linf of the moduli of the unitary transform F: both of ±k count, DC and Nyquist once."""

    def moduli(self, v: Tensor) -> Tensor:
        return torch.fft.fft(v, norm="ortho").abs()


class _FourierL1(_FourierNorm):
    name = "fourier-l1"

    @property
    def dual(self) -> VectorNorm:
        return vector_norm("fourier-linf")

    def size(self, v: Tensor) -> Tensor:
        return self.moduli(v).sum(-1)

    def steepest(self, g: Tensor) -> Tensor:
        """The wave of g's strongest frequency, of modulus 1 in all."""
        half = torch.fft.rfft(g, norm="ortho")
        k = _lowest_largest(half.abs())
        alone = (k == 0) | (2 * k == g.shape[-1])  # DC and Nyquist, which have no partner at -k
        share = torch.where(alone, 1.0, 0.5) * half.gather(-1, k).sgn()
        wave = torch.zeros_like(half).scatter(-1, k, share.to(half.dtype))
        return torch.fft.irfft(wave, n=g.shape[-1], norm="ortho")

    def project(self, v: Tensor, radius: Length = 1.0) -> Tensor:
        spectrum = torch.fft.fft(v, norm="ortho")
        return torch.fft.ifft(_onto_l1(spectrum.abs(), radius) * spectrum.sgn(), norm="ortho").real

    def prox(self, v: Tensor, step: Length) -> Tensor:
        """Frequency by frequency, so that 0 is exactly 0."""
        spectrum = torch.fft.rfft(v, norm="ortho")
        left = (1 - step / _positive(spectrum.abs())).clamp(min=0)
        return torch.fft.irfft(left * spectrum, n=v.shape[-1], norm="ortho")


class _FourierLinf(_FourierNorm):
    name = "fourier-linf"

    @property
    def dual(self) -> VectorNorm:
        return vector_norm("fourier-l1")

    def size(self, v: Tensor) -> Tensor:
        return self.moduli(v).amax(-1)

    def steepest(self, g: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(g, norm="ortho").sgn(), norm="ortho").real

    def project(self, v: Tensor, radius: Length = 1.0) -> Tensor:
        spectrum = torch.fft.rfft(v, norm="ortho")
        shrink = (radius / _positive(spectrum.abs())).clamp(max=1)
        return torch.fft.irfft(spectrum * shrink, n=v.shape[-1], norm="ortho")


_VECTOR_NORMS: dict[str, VectorNorm] = {
    norm.name: norm
    for norm in (_VectorL1(), _VectorLp(2.0), _VectorLinf(), _FourierL1(), _FourierLinf())
}


def vector_norm(name: str | VectorNorm) -> VectorNorm:
    """By name: l1, l2, linf, fourier-l1, fourier-linf, or another lp with 1 < p < ∞ such as l1.5."""
    if isinstance(name, VectorNorm):
        return name
    if name in _VECTOR_NORMS:
        return _VECTOR_NORMS[name]
    try:
        p = float(name.removeprefix("l")) if name.startswith("l") else math.nan
    except ValueError:
        p = math.nan
    if 1 < p < math.inf:
        return _VectorLp(p)
    raise ValueError(
        f"norm {not_known(name, _VECTOR_NORMS)}, and lp with a number p above 1, such as l1.5"
    )


def _positive(size: Tensor) -> Tensor:
    """``size``, and 1 in the place of 0, to divide by."""
    return torch.where(size > 0, size, torch.ones_like(size))


def _lowest_largest(size: Tensor) -> Tensor:
    """[..., 1] where the largest entry is; of equal ones the first, on every device."""
    place = torch.arange(size.shape[-1], device=size.device)
    is_largest = size == size.amax(-1, keepdim=True)
    return torch.where(is_largest, place, size.shape[-1] - 1).amin(-1, keepdim=True)


def _onto_l1(size: Tensor, radius: Length) -> Tensor:
    """Moduli [..., d] ≥ 0, projected on Σ ≤ radius."""
    bound = torch.as_tensor(radius, dtype=size.dtype, device=size.device)
    scale = _positive(bound)
    inside = size.sum(-1, keepdim=True) <= bound
    projected = scale * ops.project_simplex(size / scale)
    return torch.where(inside, size, torch.where(bound > 0, projected, 0.0))
