"""The data of a clustering: every example at its own index, with the same pixels each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._pixels import PixelCheck, warn_unnormalised
from ..data import ImageSet, Source, load_images
from ..data.image_sets import as_float
from ..layers import logits_of
from ..losses import class_ids

Data: TypeAlias = "Source | tuple[Tensor, Tensor]"
"""What :func:`hrrl_ext.data.load_images` opens, or tensors (x [N, ...], target [N, ...])."""

ExampleLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(what the model returns, target) → the loss of each example, [B]."""


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """[B] the cross-entropy of every example, in float32 or wider: the loss unless another is given.

    It takes the logits from what a model returns (:func:`hrrl_ext.layers.logits_of`); another loss is
    given that as it is.
    """
    logits = logits_of(output)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, class_ids(target), reduction="none")


def check_losses(example_loss: Tensor, batch: int) -> None:
    if example_loss.shape != (batch,):
        raise ValueError(
            f"loss must give one loss per example, shape [{batch}], got "
            f"{list(example_loss.shape)}; a loss of torch's does with reduction='none'"
        )


class Examples:
    """N examples by index, for ``model`` with parameters like ``like``: on its device, never augmented.

    Images, which tensors of uint8 are too, become floats in [0, 1] of its dtype; other tensors stay
    as they are. ``data`` is what was opened, and opens again at no cost.
    """

    def __init__(self, data: Data, model: nn.Module, like: Tensor) -> None:
        self._like = like
        self.data: ImageSet | tuple[Tensor, Tensor]
        if isinstance(data, tuple | list) and len(data) == 2 and all(map(torch.is_tensor, data)):
            x, target = cast("tuple[Tensor, Tensor]", data)
            if x.ndim == 0 or target.shape[:1] != x.shape[:1]:
                raise ValueError(
                    "data must be x [N, ...] and target [N, ...] of the same N, "
                    f"got {list(x.shape)} and {list(target.shape)}"
                )
            PixelCheck(model, "data")(x)
            self.data, self._count = (x, target), len(x)
        else:
            warn_unnormalised(model, "data")
            self.data = load_images(data)
            self._count = len(self.data)
        if self._count == 0:
            raise ValueError("data has no examples; check its path and split")

    def __len__(self) -> int:
        return self._count

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """index [B] on the CPU → (x [B, ...], target [B, ...])."""
        if isinstance(self.data, ImageSet):
            x, target = self.data.__getitems__(index)
        else:
            x, target = (t[index.to(t.device)] for t in self.data)
        images = isinstance(self.data, ImageSet) or x.dtype == torch.uint8
        x, target = x.to(self._like.device), target.to(self._like.device)
        return as_float(x).to(self._like.dtype) if images else x, target
