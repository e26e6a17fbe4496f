"""Inner products of many rows with many."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_MANY = 2**21
"""Products from which they take longer than a call."""


def inner_products(x: Tensor, y: Tensor, constant: Tensor | None = None) -> Tensor:
    """x yᵀ + constant of x [N, D], y [M, D] and constant [M]: [N, M].

    torch multiplies matrices on the CPU by MKL, which on the processors of AMD keeps to vectors of 256
    bits. There, of 512 bits, large products of float32 without a gradient are oneDNN's, on Zen 5 in half
    the time (docs/kernels.md). It copies an x that is not contiguous on one thread, which a Zen 4, whose
    gain is less, would lose by. Which it is depends on the machine, shapes and strides alone.
    """
    if _large(x, y, constant) and _onednn_is_faster(x.is_contiguous()):
        return _of_onednn(x, y, constant)
    return F.linear(x, y, constant)


def _large(x: Tensor, y: Tensor, constant: Tensor | None) -> bool:
    given = [t for t in (x, y, constant) if t is not None]
    return (
        not torch.compiler.is_compiling()
        and all(type(t) is Tensor and t.device.type == "cpu" for t in given)
        and all(t.dtype == torch.float32 for t in given)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
        and len(x) * len(y) * x.shape[1] >= _MANY
    )


def _of_onednn(x: Tensor, y: Tensor, constant: Tensor | None) -> Tensor:
    # What torch.compile calls for a linear layer: torch's public ways to oneDNN copy the factors.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, y, constant, "none", [], "")
    return out


@cache
def _onednn_is_faster(contiguous: bool) -> bool:
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    zen4 = re.search(r"^cpu family\s*: 25$", cpu, re.MULTILINE)  # the one with AVX-512
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability() and (contiguous or not zen4)
    amd = "AuthenticAMD" in cpu
    return amd and wide and torch.backends.mkl.is_available() and _onednn_answers()


def _onednn_answers() -> bool:
    """Whether what is called is there, and does what it did."""
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    constant = torch.tensor([7.0, 8.0])
    try:
        return torch.equal(_of_onednn(x, y, constant), F.linear(x, y, constant))
    except (AttributeError, RuntimeError, TypeError):
        return False
