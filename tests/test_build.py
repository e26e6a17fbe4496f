"""CMakeLists.txt refuses what it cannot do, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists() or shutil.which("cmake") is None,
    reason="needs the source tree and cmake",
)


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """CMake with a PATH that has its tools and no nvcc."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("cmake", "ninja", "cc", "c++", "ld", "as", "ar", "ranlib"):
        found = shutil.which(tool)
        assert found, tool
        (tools / tool).symlink_to(found)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja"),
        f"-DPython_EXECUTABLE={sys.executable}",
        *options,
    ]
    return subprocess.run(
        command, env=environment | {"PATH": str(tools)}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_cuda_on_without_nvcc_is_an_error(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DHRRL_CUDA=ON")
    assert done.returncode != 0
    assert "HRRL_CUDA=ON needs nvcc, and none was found" in " ".join(done.stderr.split())


def test_unknown_value(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DHRRL_CUDA=MAYBE")
    assert done.returncode != 0
    assert "HRRL_CUDA must be AUTO, ON or OFF, got MAYBE" in done.stderr
