"""Tensors as scikit-learn takes them."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch


def is_positive(x: object) -> bool:
    return isinstance(x, Real) and 0 < float(x) < np.inf


def to_numpy(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach().cpu()
    if x.is_floating_point():
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # NumPy has no bfloat16
    return x.numpy()


def like(x: Any, array: np.ndarray) -> Any:
    """``array``, as a tensor on the device of x where x is a tensor; words stay an array."""
    if not isinstance(x, torch.Tensor) or array.dtype.kind not in "biuf":
        return array
    return torch.from_numpy(array).to(x.device)
