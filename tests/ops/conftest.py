from __future__ import annotations

import pytest
import torch

from hrrl_ext import build_info


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where an operator is tried: the CPU, and a GPU where torch and hrrl_ext have one."""
    name: str = request.param
    if name == "cuda" and not (torch.cuda.is_available() and build_info()["cuda"]):
        pytest.skip("needs a CUDA device, and hrrl_ext built with HRRL_CUDA=ON")
    return name
