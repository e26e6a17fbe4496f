"""Problems as data: what the operators are tried on, with names that show in the tests' ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EPS = {dtype: torch.finfo(dtype).eps for dtype in FLOATS}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class ConceptCase:
    """A batch for concept_cross_entropy."""

    batch: int
    classes: int
    concepts: int
    dtype: torch.dtype = torch.float32
    label_smoothing: float = 0.0
    scale: float = 3.0

    def __str__(self) -> str:
        name = f"B{self.batch}-C{self.classes}-K{self.concepts}-{str(self.dtype)[6:]}"
        name += f"-eps{self.label_smoothing:g}" if self.label_smoothing else ""
        return name + (f"-scale{self.scale:g}" if self.scale != 3.0 else "")

    def arguments(self) -> dict[str, Tensor]:
        g = generator(hash((self.batch, self.classes, self.concepts)) % 2**31)
        q = torch.rand(self.concepts, generator=g, dtype=torch.float64)
        return {
            "logits": (self.scale * torch.randn(self.batch, self.classes, generator=g)).to(
                self.dtype
            ),
            "target": torch.randint(self.classes, (self.batch,), generator=g),
            "concept": torch.randint(self.concepts, (self.batch,), generator=g),
            "q": q / q.sum(),
            "concept_count": torch.randint(1, 500, (self.concepts,), generator=g),
        }


# Widths of the vector loops are 4, 8 and 16: one less, one more, several, primes.
SIZES = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 251, 1000]
CONCEPT_CASES = [
    ConceptCase(1, 1, 1),
    ConceptCase(0, 5, 3),
    ConceptCase(3, 2, 7),  # absent concepts
    *(ConceptCase(13, classes, 4) for classes in SIZES),
    *(ConceptCase(13, classes, 4, dtype) for dtype in FLOATS[1:] for classes in (1, 10, 37, 100)),
    *(ConceptCase(29, 37, 5, dtype, label_smoothing=0.1) for dtype in FLOATS),
    ConceptCase(7, 5, 2, label_smoothing=0.9),
    ConceptCase(257, 10, 11),
    ConceptCase(1024, 3, 1009),  # nearly every concept once
    ConceptCase(16, 12, 3, scale=80.0),
    ConceptCase(16, 12, 3, scale=1e4),
    ConceptCase(16, 12, 3, scale=1e-6),
]


def images(batch: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(batch, *shape, generator=generator(seed)).to(dtype)


def gradients(batch: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(batch, *shape, generator=generator(seed)).to(dtype)


def _behind_others(t: Tensor) -> Tensor:
    """At a storage offset of 3 elements, which breaks every alignment."""
    whole = t.new_zeros(3 + t.numel())
    return whole[3:].view(t.shape).copy_(t)


# How a tensor of any shape may lie in memory. All but the last three keep its values; those that make
# no sense for its shape return it as it is.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: (
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    ),
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "batch inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "offset": _behind_others,
    "expanded rows": lambda t: t[:1].expand_as(t),  # stride 0 between examples
    "expanded inside": lambda t: t[..., :1].expand_as(t),  # stride 0 in an example
    "empty": lambda t: t[:0],
}


def raw(t: Tensor) -> Tensor:
    """The bytes of the values: NaN equals itself, and -0.0 is not 0.0."""
    dense = torch.empty(t.numel(), dtype=t.dtype, device=t.device)
    return dense.copy_(t.detach().reshape(-1)).view(torch.uint8)
