"""A script or a module on several processes, connected as torchrun connects them.

They are forked from a server that has imported what they need, where each would import for four seconds;
`launched` is torchrun itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch._dynamo", "hrrl_ext.cli", "hrrl_ext.contrastive.recipe", "hrrl_ext.retrieval", "pytest"]
)


def launched(processes: int, *arguments: str) -> str:
    """By torchrun, as a user starts it: what it printed."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments], capture_output=True, text=True, env=environment,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run(processes: int, *arguments: str) -> str:
    """A file and its arguments, or -m, a module and its: what it printed on standard output."""
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / str(rank) for rank in range(processes)]
        running = [
            FORKS.Process(target=_run, args=(arguments, environment, file))
            for environment, file in zip(connected(processes), said, strict=True)
        ]
        for process in running:
            process.start()
        end = time.monotonic() + 100
        while any(process.is_alive() for process in running) and time.monotonic() < end:
            if any(process.exitcode for process in running):
                end = min(end, time.monotonic() + 10)  # the others stop with it, or hang
            time.sleep(0.01)
        for process in running:
            process.kill()
            process.join()
        errors = "\n".join(file.with_suffix(".err").read_text()[-3000:] for file in said)
        assert [process.exitcode for process in running] == [0] * processes, errors
        return "".join(file.read_text() for file in said)


def connected(processes: int) -> list[dict[str, str]]:
    """What torchrun would tell each process in its environment; nothing where there is one."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [together | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def forked(environment: Mapping[str, str]) -> None:
    """Makes a process of the server what one would be that nobody forked."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)


def _run(arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
    forked(environment)
    for descriptor, file in ((1, said), (2, said.with_suffix(".err"))):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), descriptor)
    module = arguments[0] == "-m"
    sys.argv = list(arguments[module:])
    if module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


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
