"""A script or a module on several processes, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def run(processes: int, *arguments: str) -> str:
    """What it printed; with one process it is started without torchrun."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tensors_of(processes: int, script: str, folder: Path) -> list[dict[str, Tensor]]:
    """Runs the script with a folder and the number of processes as its arguments.

    Process r writes what it found to rank-r.safetensors in the folder; these are what is returned.
    """
    out = folder / str(processes)
    out.mkdir()
    path = folder / "script.py"
    path.write_text(script)
    run(processes, str(path), str(out), str(processes))
    found = [load_file(file) for file in sorted(out.iterdir())]
    assert len(found) == processes
    return found
