"""Tensors as scikit-learn takes them, in full precision, with rows of norm 1, and digests of labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_positive(x: object) -> bool:
    return isinstance(x, Real) and 0 < float(x) < np.inf


def is_numbers(x: object, count: int) -> bool:
    """Whether x is a tuple or list of so many real numbers."""
    return isinstance(x, tuple | list) and len(x) == count and all(isinstance(v, Real) for v in x)


def to_numpy(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach().cpu()
    return (wide(x) if x.is_floating_point() else x).numpy()  # NumPy has no bfloat16


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def like(x: Any, array: np.ndarray) -> Any:
    """``array``, as a tensor on the device of x where x is a tensor; words stay an array."""
    if not isinstance(x, torch.Tensor) or array.dtype.kind not in "biuf":
        return array
    return torch.from_numpy(array).to(x.device)


def unit_rows(z: Tensor) -> Tensor:
    """z [B, D] with rows of norm 1, of any scale; rows of zeros stay, with a gradient that is finite."""
    # By the largest entry first, whose square may be out of range. The result does not depend on this
    # scale, so it is a constant to the gradient.
    z = z / _nonzero(z.detach().abs().amax(1, keepdim=True))
    return z / _nonzero(torch.linalg.vector_norm(z, dim=1, keepdim=True))


def _nonzero(scale: Tensor) -> Tensor:
    return scale.masked_fill(scale == 0, 1)


def labels_digest(*labels: Tensor | Sequence[str]) -> str:
    """SHA-256 of what is known of every example, such as its class and its concept: what goes on must
    have the same, and names and numbers of them do not tell."""
    digest = hashlib.sha256()
    for of_each in labels:
        if isinstance(of_each, Tensor):
            content = of_each.to("cpu", torch.int64).numpy().tobytes()
        else:
            content = json.dumps(list(of_each)).encode()
        digest.update(b"%d " % len(content) + content)
    return digest.hexdigest()
