"""AugMix (Hendrycks et al., ICLR 2020) on batches: every image has chains and weights of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import operations

_LOW, _HIGH = 0.1, 10.0  # levels
_AT_ONCE = 2**17  # values of an operation on the CPU, so that what it works on stays in the cache


@dataclass(frozen=True)
class Chains:
    """What AugMix does with each of B images: W chains of up to D operations, and how they are mixed."""

    operation: Tensor
    """[B, W, D] int64, numbers in OPERATIONS; -1 behind the end of a chain"""
    level: Tensor
    """[B, W, D] float64, how strong, 0.1 .. severity; below 0 the other way, where there is one"""
    weight: Tensor
    """[B, W] float32, of each chain; they sum to 1"""
    mix: Tensor
    """[B] float32, m: the share of the chains in the new image"""

    def __getitem__(self, images: slice) -> Chains:
        return Chains(*(getattr(self, field.name)[images] for field in fields(self)))


def joined(chains: Sequence[Chains]) -> Chains:
    """Those of several batches, one after the other."""
    fields_ = (field.name for field in fields(Chains))
    return Chains(*(torch.cat([getattr(one, name) for one in chains]) for name in fields_))


@dataclass(frozen=True)
class AugMix:
    """x ↦ (1 - m) x + m Σ_j w_j chain_j(x),   w ~ Dirichlet(α, ..., α),   m ~ Beta(α, α).

    A chain is one to three of nine operations, each drawn uniformly and with a level L ~ U(0.1, severity)
    of its own. They work on 8-bit levels as Pillow's do; their mix is rounded where images are uint8.

    ::

        x = AugMix(severity=3)(images)     # [B, C, H, W], C = 1 or 3; uint8, or float in [0, 1]

    Args:
        severity: 0.1 .. 10. The paper has 3 for images of 32 pixels and 1 for 224.
        width: chains of an image.
        depth: operations of a chain, the fewest and the most.
        alpha: of both distributions.
        all_ops: color, contrast, brightness and sharpness as well. They are close to corruptions of
            ImageNet-C, which is then no longer unseen; and their factor is 1.8 L/10 + 0.1, where 1 is
            the identity, so that they are strongest at a low level.
    """

    severity: float = 3.0
    width: int = 3
    depth: tuple[int, int] = (1, 3)
    alpha: float = 1.0
    all_ops: bool = False

    def __post_init__(self) -> None:
        if not _LOW <= self.severity <= _HIGH:
            raise ValueError(
                f"AugMix: severity must lie between {_LOW} and {_HIGH:g}, got {self.severity}"
            )
        if self.width < 1:
            raise ValueError(f"AugMix: width must be at least 1, got {self.width}")
        fewest, most = self.depth
        if not 1 <= fewest <= most:
            raise ValueError(
                "AugMix: depth must be the fewest and the most operations of a chain, such as (1, 3), "
                f"got {self.depth}"
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"AugMix: alpha must be positive, got {self.alpha}")

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        part: range | None = None,
        of: int | None = None,
    ) -> Tensor:
        """images [B, C, H, W], of any device → new ones of the same kind.

        generator, part and of are as :class:`Augmentation` has them; without a generator the draws come
        from torch's global one.
        """
        return self.apply(images, self.draw(len(images), generator, part, of))

    def draw(
        self,
        count: int,
        generator: torch.Generator | None = None,
        part: range | None = None,
        of: int | None = None,
    ) -> Chains:
        """The chains of so many images. The severity scales their levels and changes nothing else."""
        shape = (count if of is None else of, self.width, self.depth[1])
        # By NumPy: torch's Dirichlet and Beta take no generator.
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (1,), generator=generator)))
        operation = rng.integers(len(OPERATIONS) if self.all_ops else _OF_PAPER, size=shape)
        length = rng.integers(*self.depth, size=shape[:2], endpoint=True)
        operation[np.arange(shape[2]) >= length[:, :, None]] = -1
        level = _LOW + rng.uniform(size=shape) * (self.severity - _LOW)
        level *= rng.choice([-1.0, 1.0], size=shape)
        weight = rng.dirichlet([self.alpha] * self.width, size=shape[0]).astype(np.float32)
        mix = rng.beta(self.alpha, self.alpha, size=shape[0]).astype(np.float32)
        chains = Chains(*map(torch.from_numpy, (operation, level, weight, mix)))
        return chains if part is None else chains[part.start : part.stop]

    def apply(self, images: Tensor, chains: Chains) -> Tensor:
        """images [B, C, H, W] as their chains mix them. The bits of one do not depend on the others."""
        _check(images)
        if len(images) == 0:
            return images.clone()
        kind = torch.promote_types(images.dtype, torch.float32)
        top = 255 if images.dtype == torch.uint8 else 1
        levels = (
            images if top == 255 else (images.to(kind) * 255).round().clamp(0, 255).to(torch.uint8)
        )
        original = (1 - chains.mix).to(images.device, kind)
        shares = (chains.mix * chains.weight.T * (top / 255)).to(images.device, kind)  # [W, B]
        mixed = images * original[:, None, None, None]
        for share, made in zip(shares, _made(levels, chains), strict=True):
            mixed += made * share[:, None, None, None]
        mixed = mixed.clamp_(0, top)  # shares sum to 1 only up to rounding
        return (mixed.round_() if top == 255 else mixed).to(images.dtype)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"AugMix: images must be [B, C, H, W] of one channel or three, got {list(images.shape)}"
        )
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"AugMix: images must be uint8, or float in [0, 1], got {images.dtype}")


def _made(levels: Tensor, chains: Chains) -> Tensor:
    """levels [B, C, H, W] → [W, B, C, H, W], what each chain makes of its image."""
    width, device = chains.weight.shape[1], levels.device
    made = levels.expand(width, *levels.shape).flatten(0, 1)  # [W B, C, H, W]
    values = max(1, math.prod(levels.shape[1:]))
    at_once = max(1, _AT_ONCE // values if device.type == "cpu" else len(made))
    for work in _steps(chains, levels.shape[2:]):
        rows, parts = [], []
        for function, found in work.items():
            having, *parameters = (torch.cat(tensors) for tensors in zip(*found, strict=True))
            rows.append(having)
            theirs = [t.to(device, non_blocking=True).split(at_once) for t in (having, *parameters)]
            for few, *parameter in zip(*theirs, strict=True):
                parts.append(function(made.index_select(0, few), *parameter))
        # index_select copies whole rows, which is far cheaper than putting them in their places.
        back = torch.cat(rows).argsort().to(device, non_blocking=True)
        made = torch.cat(parts).index_select(0, back)
    return made.view(width, *levels.shape)


def _steps(chains: Chains, size: torch.Size) -> list[_Step]:
    """For each step along the chains: every function, with the rows [n] of the W B chains that have it,
    and its parameters. All of it on the CPU: nothing waits for a device that the images are on."""
    operation, level = (t.permute(2, 1, 0).flatten(1) for t in (chains.operation, chains.level))
    steps: list[_Step] = [{} for _ in operation]
    for number, one in enumerate((_ENDED, *OPERATIONS), -1):
        step, row = (operation == number).nonzero(as_tuple=True)
        drawn = [row] if one.parameter is None else [row, one.parameter(level[step, row], *size)]
        counts = step.bincount(minlength=len(steps)).tolist()
        by_step = zip(*(t.split(counts) for t in drawn), strict=True)
        for work, few in zip(steps, by_step, strict=True):
            if len(few[0]):
                work.setdefault(one.function, []).append(few)
    return steps


# --- the operations, and what they make of a level


_Parameter: TypeAlias = Callable[[Tensor, int, int], Tensor]  # of level [n], height, width


@dataclass(frozen=True)
class Operation:
    """One that is drawn, by its number in OPERATIONS."""

    name: str
    function: Callable[..., Tensor]
    parameter: _Parameter | None = None
    """what the function takes after the images"""


_Step: TypeAlias = dict[Callable[..., Tensor], list[tuple[Tensor, ...]]]


def _whole(level: Tensor, most: float) -> Tensor:
    """The share L/10 of the most, cut off to a whole number."""
    return (level * most / _HIGH).trunc()


def _matrix(level: Tensor, **entries: Tensor) -> Tensor:
    """[n, 6], the identity's but for these entries [n], a to f."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    identity = {"a": one, "b": zero, "c": zero, "d": zero, "e": one, "f": zero}
    return torch.stack(list((identity | entries).values()), 1)


def _rotation(level: Tensor, height: int, width: int) -> Tensor:
    """About the middle of the image, by whole degrees."""
    angle = torch.deg2rad(_whole(level, 30))
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    c, f = x - x * cos + y * sin, y - x * sin - y * cos
    return _matrix(level, a=cos, b=-sin, c=c, d=sin, e=cos, f=f)


def _shear(entry: str) -> _Parameter:
    return lambda level, height, width: _matrix(level, **{entry: level * 0.3 / _HIGH})


def _factor(level: Tensor, height: int, width: int) -> Tensor:
    return level.abs() * 1.8 / _HIGH + 0.1


OPERATIONS = (  # those from color on with all_ops alone
    Operation("autocontrast", operations.autocontrast),
    Operation("equalize", operations.equalize),
    Operation("posterize", operations.posterize, lambda level, *_: 4 - _whole(level.abs(), 4)),
    Operation("rotate", operations.affine, _rotation),
    Operation("solarize", operations.solarize, lambda level, *_: 256 - _whole(level.abs(), 256)),
    Operation("shear_x", operations.affine, _shear("b")),
    Operation("shear_y", operations.affine, _shear("d")),
    Operation(
        "translate_x", operations.affine, lambda level, _, w: _matrix(level, c=_whole(level, w / 3))
    ),
    Operation(
        "translate_y", operations.affine, lambda level, h, _: _matrix(level, f=_whole(level, h / 3))
    ),
    Operation("color", operations.color, _factor),
    Operation("contrast", operations.contrast, _factor),
    Operation("brightness", operations.brightness, _factor),
    Operation("sharpness", operations.sharpness, _factor),
)
_OF_PAPER = 9  # the first ones
_ENDED = Operation("none", lambda images: images)
