"""The negatives: keys of the last batches."""

from __future__ import annotations

import torch
from torch import Tensor

from .._arrays import unit_rows
from .._streams import random_stream
from ..row_queue import RowQueue


class KeyQueue(RowQueue):
    """The last ``size`` keys [D] that were put in.

    It begins with random directions, as MoCo's does: the loss is low while they last, and rises as keys
    take their places.
    """

    keys: Tensor
    """[size, dim] float32, of norm 1"""

    def __init__(self, size: int, dim: int, seed: int) -> None:
        directions = torch.randn(size, dim, generator=random_stream(seed, "queue"))
        super().__init__(keys=unit_rows(directions))
