"""AugMix (Hendrycks et al., ICLR 2020) on batches: every image has chains and weights of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import ops
from .._streams import Draws
from ..spec import not_known

_LOW, _HIGH = 0.1, 10.0  # levels
Array: TypeAlias = npt.NDArray[Any]
AugMixOperations: TypeAlias = Literal["paper", "all", "moco"]


class ImageProgram(NamedTuple):
    """What is done with each image of a batch: the arguments of :func:`hrrl_ext.ops.mix_chains`."""

    operation: Tensor
    parameter: Tensor
    weight: Tensor
    mix: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return ops.mix_chains(images, *(t.to(images.device, non_blocking=True) for t in self))


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

    A chain is one to three operations, each drawn uniformly and with a level L ~ U(0.1, severity) of its
    own. They work on 8-bit levels as Pillow's do; their mix is rounded where images are uint8.

    ::

        x = AugMix(severity=3)(images)     # [B, C, H, W], C = 1 or 3; uint8, or float in [0, 1]

    Args:
        severity: 0.1 .. 10. The paper has 3 for images of 32 pixels and 1 for 224.
        width: chains of an image.
        depth: operations of a chain, the fewest and the most.
        alpha: of both distributions.
        operations: "paper", nine. "all": color, contrast, brightness and sharpness as well. They are
            close to corruptions of ImageNet-C, which is then no longer unseen; and their factor is
            1.8 L/10 + 0.1, where 1 is the identity, so that they are strongest at a low level. "moco":
            the nine and those of MoCo's views, as far as L/severity of their ranges.
    """

    severity: float = 3.0
    width: int = 3
    depth: tuple[int, int] = (1, 3)
    alpha: float = 1.0
    operations: AugMixOperations = "paper"

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
        if self.operations not in _OF:
            raise ValueError(
                f"AugMix: operations {not_known(self.operations, get_args(AugMixOperations))}"
            )

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        part: range | None = None,
        of: int | None = None,
    ) -> Tensor:
        """images [B, C, H, W], or one image [C, H, W], of any device → new ones of the same kind.

        generator, part and of are as :class:`Augmentation` has them; without a generator the draws come
        from torch's global one, which a worker of a DataLoader has to itself.
        """
        if images.ndim == 3 and images.shape[0] in (1, 3):
            return self(images[None], generator, part, of)[0]
        return self.apply(images, self.draw(len(images), generator, part, of))

    def draw(
        self,
        count: int,
        generator: torch.Generator | None = None,
        part: range | None = None,
        of: int | None = None,
    ) -> Chains:
        """The chains of so many images. The severity scales their levels and changes nothing else."""
        draws = Draws.of_generator(count if of is None else of, generator)
        return self.chains(draws if part is None else draws[part.start : part.stop])

    def chains(self, draws: Draws) -> Chains:
        """A row for each image that there are draws for."""
        shape = (self.width, self.depth[1])
        numbers = torch.tensor(_OF[self.operations])
        operation = numbers[draws.whole(len(numbers), shape)]
        fewest, most = self.depth
        length = fewest + draws.whole(most - fewest + 1, shape[:1])
        operation[torch.arange(most) >= length[:, :, None]] = -1
        level = draws.uniform(_LOW, self.severity, shape)
        level = torch.where(draws.chance(0.5, shape), -level, level)
        weight = draws.gamma(self.alpha, shape[:1])
        weight = weight / weight.sum(1, keepdim=True)
        ours, theirs = draws.gamma(self.alpha, (2,)).unbind(1)
        return Chains(operation, level, weight.float(), (ours / (ours + theirs)).float())

    def apply(self, images: Tensor, chains: Chains) -> Tensor:
        """images [B, C, H, W] as their chains mix them. The bits of one do not depend on the others."""
        check_images(images, "AugMix")
        return self.program(chains, *images.shape[2:])(images)

    def program(self, chains: Chains, height: int, width: int) -> ImageProgram:
        """What the chains are for images of this size."""
        number = chains.operation.numpy()
        level = chains.level.numpy()
        operation, parameter = _parameters(number, level, self.severity, height, width)
        return ImageProgram(operation, parameter, chains.weight, chains.mix)


def check_images(images: Tensor, caller: str) -> None:
    """Before anything asks for their sides."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{caller}: images must be [B, C, H, W] of one channel or three, got {list(images.shape)}"
        )
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"{caller}: images must be uint8, or float in [0, 1], got {images.dtype}")


# --- the operations, and what they make of a level


class Operation(NamedTuple):
    """One that is drawn. Its number is start ± |L| most/10, with the sign of L or without."""

    name: str
    does: str
    """its name in :data:`hrrl_ext.ops.IMAGE_OPERATIONS`"""
    start: float = 0.0
    most: float = 0.0
    whole: bool = False
    """the second term is cut off to a whole number"""
    signed: bool = False
    place: int = 0
    """of the number among the six"""
    of: Literal["", "width", "height"] = ""
    """the side that most counts in"""


OPERATIONS = (
    Operation("autocontrast", "autocontrast"),
    Operation("equalize", "equalize"),
    Operation("posterize", "posterize", 4, -4, whole=True),
    Operation("rotate", "affine", 0, 30, whole=True, signed=True),
    Operation("solarize", "solarize", 256, -256, whole=True),
    Operation("shear_x", "affine", 0, 0.3, signed=True, place=1),
    Operation("shear_y", "affine", 0, 0.3, signed=True, place=3),
    Operation("translate_x", "affine", 0, 1 / 3, whole=True, signed=True, place=2, of="width"),
    Operation("translate_y", "affine", 0, 1 / 3, whole=True, signed=True, place=5, of="height"),
    *(Operation(n, n, 0.1, 1.8) for n in ("color", "contrast", "brightness", "sharpness")),
    # MoCo's, at |L| = 10 as far as its views go
    *(
        Operation(f"{n}_jitter", n, 1, 0.4, signed=True)
        for n in ("brightness", "contrast", "color")
    ),
    Operation("hue_jitter", "hue", 0, 0.1, signed=True),
    Operation("grey", "color"),
    Operation("blur", "blur", 0.1, 1.9),
)
_NUMBER = {one.name: number for number, one in enumerate(OPERATIONS)}
_MOCO = _NUMBER["brightness_jitter"]  # the first of those
_OF: dict[AugMixOperations, tuple[int, ...]] = {
    "paper": tuple(range(9)),
    "all": tuple(range(_MOCO)),
    "moco": (*range(9), *range(_MOCO, len(OPERATIONS))),
}
_AFFINE = ops.IMAGE_OPERATIONS.index("affine")
_DOES = np.array([ops.IMAGE_OPERATIONS.index(one.does) for one in OPERATIONS] + [-1])
_START, _WHOLE, _SIGNED, _PLACE = (
    np.array([getattr(one, field) for one in OPERATIONS] + [0])
    for field in ("start", "whole", "signed", "place")
)


def _parameters(
    number: Array, level: Array, severity: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Of numbers in OPERATIONS [...] and levels, those of the operator, and parameters [..., 6]."""
    sides = {"width": width / 3, "height": height / 3}
    most = np.array([sides.get(one.of, one.most) for one in OPERATIONS] + [0.0])
    level = np.where(_SIGNED[number] != 0, level, np.abs(level))
    level = np.where(number >= _MOCO, level * (_HIGH / severity), level)
    moved = level * most[number] / _HIGH
    value = _START[number] + np.where(_WHOLE[number] != 0, np.trunc(moved), moved)
    operation = _DOES[number]
    parameter = np.zeros((*number.shape, 6))
    parameter[operation == _AFFINE, 0] = parameter[operation == _AFFINE, 4] = 1
    np.put_along_axis(parameter, _PLACE[number][..., None], value[..., None], -1)
    rotated = number == _NUMBER["rotate"]
    parameter[rotated] = _rotation(value[rotated], height, width)
    return torch.from_numpy(operation), torch.from_numpy(parameter)


def _rotation(degrees: Array, height: int, width: int) -> Array:
    """About the middle of the image."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    return np.stack([cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos], -1)
