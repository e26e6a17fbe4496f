"""AugMix (Hendrycks et al., ICLR 2020) on batches: every image has chains and weights of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from . import operations

_LOW, _HIGH = 0.1, 10.0  # levels
_AT_ONCE = 2**16  # values of an operation on the CPU, so that what it works on stays in the cache


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
        kind = torch.promote_types(images.dtype, torch.float32)
        top = 255 if images.dtype == torch.uint8 else 1
        levels = images if top == 255 else (images * 255).round().clamp(0, 255).to(torch.uint8)
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
    width, depth = chains.operation.shape[1:]
    made = levels.expand(width, *levels.shape).flatten(0, 1).clone()  # [W B, C, H, W]
    operation, level = (t.permute(2, 1, 0).flatten(1) for t in (chains.operation, chains.level))
    at_once = max(1, _AT_ONCE // levels[0].numel() if levels.device.type == "cpu" else len(made))
    for step in range(depth):
        for function, numbers in _TOGETHER.items():
            rows, parameter = _having(numbers, operation[step], level[step], levels)
            for start in range(0, len(rows), at_once):
                few = rows[start : start + at_once]
                theirs = (p[start : start + at_once] for p in parameter)
                made.index_copy_(0, few, function(made[few], *theirs))
    return made.view(width, *levels.shape)


def _having(
    numbers: list[int], operation: Tensor, level: Tensor, levels: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Which of operation [N] are among these numbers, and their parameters, if they have any.

    It is found on the CPU, and sent to the device that ``levels`` are on: nothing waits for that.
    """
    rows, parameters = [], []
    for number in numbers:
        rows.append((operation == number).nonzero()[:, 0])
        parameter = _OPERATIONS[number].parameter
        if parameter is not None:
            parameters.append(parameter(level[rows[-1]], *levels.shape[2:]))
    found = [torch.cat(rows), *([torch.cat(parameters)] if parameters else [])]
    device_rows, *rest = (t.to(levels.device, non_blocking=True) for t in found)
    return device_rows, rest


# --- the operations, and what they make of a level


@dataclass(frozen=True)
class _Operation:
    name: str
    function: Callable[..., Tensor]
    parameter: Callable[[Tensor, int, int], Tensor] | None = None
    """(level [n], height, width) → what the function takes after the images"""


def _whole(level: Tensor, most: float) -> Tensor:
    """The share L/10 of the most, cut off to a whole number."""
    return (level * most / _HIGH).trunc()


def _matrix(*entries: Tensor | float) -> Tensor:
    """Six numbers, or one for each image, → [n, 6]."""
    columns = [torch.as_tensor(entry, dtype=torch.float64) for entry in entries]
    return torch.stack(torch.broadcast_tensors(*columns), -1)


def _rotation(level: Tensor, height: int, width: int) -> Tensor:
    """About the middle of the image, by whole degrees."""
    angle = torch.deg2rad(_whole(level, 30))
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return _matrix(cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos)


def _shear(level: Tensor) -> Tensor:
    return level * 0.3 / _HIGH


def _factor(level: Tensor, height: int, width: int) -> Tensor:
    return level.abs() * 1.8 / _HIGH + 0.1


_OPERATIONS = (
    _Operation("autocontrast", operations.autocontrast),
    _Operation("equalize", operations.equalize),
    _Operation("posterize", operations.posterize, lambda level, h, w: 4 - _whole(level.abs(), 4)),
    _Operation("rotate", operations.affine, _rotation),
    _Operation("solarize", operations.solarize, lambda level, h, w: 256 - _whole(level.abs(), 256)),
    _Operation(
        "shear_x", operations.affine, lambda level, h, w: _matrix(1, _shear(level), 0, 0, 1, 0)
    ),
    _Operation(
        "shear_y", operations.affine, lambda level, h, w: _matrix(1, 0, 0, _shear(level), 1, 0)
    ),
    _Operation(
        "translate_x",
        operations.affine,
        lambda level, h, w: _matrix(1, 0, _whole(level, w / 3), 0, 1, 0),
    ),
    _Operation(
        "translate_y",
        operations.affine,
        lambda level, h, w: _matrix(1, 0, 0, 0, 1, _whole(level, h / 3)),
    ),
    _Operation("color", operations.color, _factor),
    _Operation("contrast", operations.contrast, _factor),
    _Operation("brightness", operations.brightness, _factor),
    _Operation("sharpness", operations.sharpness, _factor),
)
_OF_PAPER = 9  # the first ones
_TOGETHER = {
    function: [n for n, one in enumerate(_OPERATIONS) if one.function == function]
    for function in dict.fromkeys(one.function for one in _OPERATIONS)
}
OPERATIONS = tuple(one.name for one in _OPERATIONS)
"""By number; those from color on are drawn with ``all_ops`` alone."""
