"""Features as scikit-learn takes them."""

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
