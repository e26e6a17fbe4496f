"""What the operators are compared on, as data: neither torch nor a device is needed to name a case."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from bars import ITEMSIZE


@dataclass(frozen=True)
class Images:
    """x and its gradient, for perturb."""

    shape: tuple[int, int, int, int]
    dtype: str = "fp32"
    channels_last: bool = False

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.dtype}-{self.layout}"

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": self.shape, "dtype": self.dtype, "layout": self.layout}


@dataclass(frozen=True)
class StoredImages:
    """Images and their gradients beside stored directions, of 8 bits or 1."""

    shape: tuple[int, int, int, int]
    bits: int = 8
    dtype: str = "fp32"

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.bits}bit-{self.dtype}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": self.shape, "dtype": self.dtype, "bits": self.bits}


@dataclass(frozen=True)
class Mixtures:
    """uint8 images with the chains of AugMix, of a set of operations."""

    shape: tuple[int, int, int, int]
    operations: Literal["paper", "all"] = "paper"

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.operations}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": self.shape, "dtype": "uint8", "kind": self.operations}


@dataclass(frozen=True)
class Logits:
    """A batch for concept_cross_entropy."""

    batch: int
    classes: int
    dtype: str = "fp32"
    concepts: int = 20

    def __str__(self) -> str:
        return f"{self.batch}x{self.classes}-{self.dtype}"

    @property
    def bytes(self) -> int:
        return self.batch * self.classes * ITEMSIZE[self.dtype]

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.classes), "dtype": self.dtype}


@dataclass(frozen=True)
class Vector:
    """normal: standard normal entries, few of which stay. near: close to the simplex, most stay."""

    size: int
    entries: str = "normal"

    def __str__(self) -> str:
        return f"K{self.size}-{self.entries}"

    @property
    def bytes(self) -> int:
        return 4 * self.size

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.size,), "dtype": "fp32", "layout": self.entries}


@dataclass(frozen=True)
class Game:
    """A chi-square game: the penalty alone, a cap beside it, or a ball and a cap."""

    size: int
    held_by: str = "penalty"

    def __str__(self) -> str:
        return f"K{self.size}-{self.held_by}"

    @property
    def limits(self) -> tuple[float, float, float]:
        """lam, rho and max_weight"""
        return {
            "penalty": (0.5, math.inf, math.inf),
            "cap": (0.2, math.inf, 4.0),
            "ball": (0.0, 0.7, 4.0),
        }[self.held_by]

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.size,), "dtype": "fp64", "layout": self.held_by}


@dataclass(frozen=True)
class Rows:
    """Many vectors at once, of normal entries."""

    rows: int
    size: int

    def __str__(self) -> str:
        return f"{self.rows}xK{self.size}"

    @property
    def bytes(self) -> int:
        return 4 * self.rows * self.size

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.rows, self.size), "dtype": "fp32"}


@dataclass(frozen=True)
class Products:
    """p and q for rank1_dot."""

    batch: int
    clusters: int
    terms: int

    def __str__(self) -> str:
        return f"B{self.batch}-K{self.clusters}-M{self.terms}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.clusters, self.terms), "dtype": "fp32"}


@dataclass(frozen=True)
class Centres:
    """The scores that rank1_argmin chooses from."""

    batch: int
    clusters: int

    def __str__(self) -> str:
        return f"B{self.batch}-K{self.clusters}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.clusters), "dtype": "fp64"}


@dataclass(frozen=True)
class Perceptron:
    """The layers of 784-1024-1024-10, as in the thesis, for rank1_assign."""

    batch: int
    clusters: int
    widths: tuple[int, ...] = (784, 1024, 1024, 10)

    kind = "linear"

    def __str__(self) -> str:
        return f"B{self.batch}-{'-'.join(map(str, self.widths))}-K{self.clusters}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.clusters), "dtype": "fp32", "kind": self.kind}


@dataclass(frozen=True)
class Layer3x3:
    """A convolution of 3×3 with as many channels out as in, for rank1_assign."""

    batch: int
    channels: int
    side: int
    clusters: int

    kind = "convolution"

    def __str__(self) -> str:
        return f"B{self.batch}-3x3x{self.channels}-{self.side}x{self.side}-K{self.clusters}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.clusters), "dtype": "fp32", "kind": self.kind}


@dataclass(frozen=True)
class Embeddings:
    """Pairs of an image and a caption."""

    batch: int
    size: int
    similarity: Literal["cosine", "order"] = "cosine"

    def __str__(self) -> str:
        return f"B{self.batch}-D{self.size}-{self.similarity}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.size), "dtype": "fp32", "kind": self.similarity}


@dataclass(frozen=True)
class Negatives:
    """Queries against a queue of keys."""

    batch: int
    keys: int
    size: int = 128

    def __str__(self) -> str:
        return f"B{self.batch}-K{self.keys}-D{self.size}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"shape": (self.batch, self.keys, self.size), "dtype": "fp32"}


Shape = (
    Images
    | Mixtures
    | StoredImages
    | Logits
    | Vector
    | Game
    | Rows
    | Negatives
    | Products
    | Centres
    | Perceptron
    | Layer3x3
    | Embeddings
)
