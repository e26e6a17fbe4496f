"""Images per second of HRRLTrainer under torchrun, on one process and on two, a thread each (gloo).

Every process has the same number of images per batch: with twice the processes a batch is twice as large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

PER_PROCESS, STEPS, EPOCHS, WIDTH, SIDE = 64, 8, 3, 16, 32


@pytest.mark.parametrize("processes", [1, 2])
def test_scaling(processes: int, benchmark: BenchmarkFixture) -> None:
    if (cores := os.cpu_count() or 1) < processes:
        pytest.skip(f"{processes} processes on {cores} cores measure the operating system")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", __file__]
    run = benchmark.pedantic(
        lambda: subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _paths()},
            capture_output=True,
            text=True,
            timeout=600,
        ),
        rounds=1,
        iterations=1,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert found["processes"] == processes
    benchmark.group = f"scaling {processes}"
    benchmark.extra_info.update(
        op="scaling",
        case=f"resnet18-w{WIDTH}, {PER_PROCESS} images of {SIDE}×{SIDE} per process",
        provider="trainer",
        device="cpu",
        threads=1,
        **found,
    )


def _paths() -> str:
    root = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def main() -> None:
    """What each process runs: the fastest of a few epochs, from the first of them."""
    import torch

    from hrrl_ext import HRRLTrainer
    from hrrl_ext.data import ArrayImages
    from hrrl_ext.processes import stop_processes

    processes = int(os.environ["WORLD_SIZE"])
    shape = (STEPS * PER_PROCESS * processes, 3, SIDE, SIDE)
    images = torch.randint(
        256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    trainer = HRRLTrainer(
        data=ArrayImages(images, torch.arange(len(images)) % 100),
        concepts=(torch.arange(len(images)) % 20).tolist(),
        tau=0.3,
        lam=20.0,
        lr=1e-3,
        epochs=EPOCHS,
        batch_size=PER_PROCESS * processes,
        width=WIDTH,
        device="cpu",
        progress="off",
    )
    history = trainer.fit().history
    if trainer.processes.main:
        fastest = max(row["images_per_second"] for row in history)
        print(json.dumps({"processes": trainer.processes.size, "images_per_second": fastest}))
    stop_processes()


if __name__ == "__main__":
    main()
