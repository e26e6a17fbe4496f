"""Inner products of many rows with many."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_MANY = 2**22
"""Products from which they take longer than a call."""


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ of x [N, D] and y [M, D]: [N, M].

    torch multiplies matrices on the CPU by MKL, which on the processors of AMD keeps to vectors of 256
    bits. There, of 512 bits, large products of float32 without a gradient are oneDNN's, in half the time
    (docs/kernels.md). Which it is depends on the machine and the shapes alone.
    """
    if _large(x, y) and _onednn_is_faster():
        return _of_onednn(x, y)
    return x @ y.T


def _large(x: Tensor, y: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and all(type(t) is Tensor and t.device.type == "cpu" for t in (x, y))
        and x.dtype == y.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad))
        and len(x) * len(y) * x.shape[1] >= _MANY
    )


def _of_onednn(x: Tensor, y: Tensor) -> Tensor:
    # What torch.compile calls for a linear layer: torch's public ways to oneDNN copy the factors.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")
    return out


@cache
def _onednn_is_faster() -> bool:
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return amd and wide and torch.backends.mkl.is_available() and _onednn_answers()


def _onednn_answers() -> bool:
    """Whether what is called is there, and does what it did."""
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    try:
        return torch.equal(_of_onednn(x, y), x @ y.T)
    except (AttributeError, RuntimeError, TypeError):
        return False
