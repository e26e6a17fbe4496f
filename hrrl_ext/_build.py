"""What was built, and what of it is in use."""

from __future__ import annotations

from typing import Any

import torch

from . import _C


def build_info() -> dict[str, Any]:
    """Facts about the native build and this machine, as printed by ``hrrl info``.

    ``compiler``; ``torch_target``, the oldest torch that the build runs on, ``torch_headers``, the one
    it was compiled with, and ``torch``, the one in use; ``cuda`` (nvcc's version, or None) and
    ``cuda_architectures`` of the kernels; ``cuda_device``, the GPU in use, or None; ``cpu_best``, the
    best instruction set this processor shares with the kernels, and ``cpu_in_use`` (the environment
    variable HRRL_CPU_CAPABILITY can lower it: baseline, avx2, avx512).
    """
    info: dict[str, Any] = _C.build_info()
    info["torch"] = torch.__version__
    info["cuda_device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return info
