"""A stage: what the device is, and the package built for its architecture alone, in the source tree."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys

import torch

from .records import emit
from .run import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="describes the host, builds nothing")
    dry = parser.parse_args().dry_run
    describe(dry)
    if not dry:
        major, minor = torch.cuda.get_device_capability()
        wanted = {"HRRL_CUDA": "ON", "HRRL_CUDA_ARCHS": f"{major}{minor}"}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        subprocess.run(command, cwd=ROOT, env=os.environ | wanted, check=True)
    from hrrl_ext import build_info  # what was built loads

    emit("built", **build_info())


def describe(dry: bool) -> None:
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    if dry:
        emit("device", name=f"a dry run on {platform.machine()}", **facts)
        return
    if not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} sees no CUDA device; --dry-run tries the stages without"
        )
    device = torch.cuda.get_device_properties(0)
    emit(
        "device",
        name=device.name,
        multiprocessors=device.multi_processor_count,
        memory_gib=round(device.total_memory / 2**30, 1),
        cache_mb=round(device.L2_cache_size / 1e6, 1),
        driver=_said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        nvcc=_said_by("nvcc", "--version"),
        **facts,
    )


def _said_by(*words: str) -> str:
    """The last line that a program prints."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip().splitlines()[-1]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


if __name__ == "__main__":
    main()
