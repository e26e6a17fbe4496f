"""The published variants of joint embeddings: how embeddings are compared, and by which loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .._arrays import unit_rows, wide
from ..ops import Similarity
from .losses import max_hinge, sum_hinge


@dataclass(frozen=True)
class Preset:
    """What the published variants differ in."""

    negatives: Literal["hardest", "all"]
    similarity: Similarity
    margin: float = 0.2
    normalise_image: bool = True
    normalise_caption: bool = True
    absolute: bool = False
    """Of both embeddings, after normalising."""

    def embed(self, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings that the loss, and a search, compare (`as_compared`)."""
        image = as_compared(image, self.normalise_image, self.absolute)
        return image, as_compared(caption, self.normalise_caption, self.absolute)

    def loss(self, image: Tensor, caption: Tensor, **settings: Any) -> Tensor:
        """Of embeddings as the networks return them; ``settings`` are those of :func:`max_hinge`."""
        settings = {"margin": self.margin, "similarity": self.similarity} | settings
        hinge = max_hinge if self.negatives == "hardest" else sum_hinge
        return hinge(*self.embed(image, caption), **settings)


def as_compared(x: Tensor, unit: bool, absolute: bool) -> Tensor:
    """Embeddings [B, D] in float32 or float64; ``unit`` brings their rows to norm 1, where a row of zeros
    stays one, and ``absolute`` takes the absolute values of that."""
    x = unit_rows(wide(x)) if unit else wide(x)
    return x.abs() if absolute else x


PRESETS = {
    "VSE0": Preset("all", "cosine", normalise_image=False),
    "VSE++": Preset("hardest", "cosine"),
    "Order0": Preset("all", "order", margin=0.05, absolute=True),
    "Order++": Preset("hardest", "order"),
}
