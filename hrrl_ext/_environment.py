"""What a number was measured with."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import torch

from ._build import build_info


def environment(device: str) -> dict[str, Any]:
    """Time, command, commit, versions and the device, by name, as of now."""
    from . import __version__

    cuda = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _commit(),
        "hrrl_ext": __version__,
        "kernels": build_info()["cpu_in_use"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": cuda or f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _commit() -> str | None:
    """Of the repository that the program was started in, if any."""
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(
            git, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
