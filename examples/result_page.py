"""What every page of results says of where it was made."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def processor() -> str:
    """Of the machine that writes the page."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, torch {torch.__version__}"
