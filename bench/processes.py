"""How the cost of sharing grows with processes: extraction on 1 to 4, beside a model that goes on.

    python bench/processes.py --out runs/processes.md

    t(p) = a + ⌈b/p⌉ (w max(1, p/c) + m(p))

b batches of w seconds, on c cores; m(p), what putting a round together takes, measured without any
work; a, what is left of the time of one process. w and a are of one process alone, by its times for b
batches and for half of them, so that all other rows check the model. Beyond, every process has a core,
and m(p) = k (p - 1): in a ring each sends on what it has from p - 1 others; k is of the rows that had a
core for each process.

The machine should be idle. At most 3 minutes on two cores; the tables go to --out and standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hrrl_ext._tables import markdown
from hrrl_ext.models import build_model
from hrrl_ext.processes import joined
from hrrl_ext.storage import write_text
from hrrl_ext.transfer import stream_features
from hrrl_ext.transfer.feature_files import Features

SIDE, WIDTH, BATCH, ROUNDS = 64, 16, 64, 50
BEYOND, LARGER = (8, 16, 32, 64), 1024  # processes and batches of the second table


def main(arguments: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    measured = [under_torchrun(count, arguments.batches) for count in (1, *arguments.processes)]
    text = tables(measured, arguments.batches, cores)
    print(text, end="")
    if arguments.out is not None:
        write_text(arguments.out, text)


def tables(measured: list[dict[str, Any]], batches: int, cores: int) -> str:
    """What was measured beside the model, and the model beyond."""
    one = measured[0]
    w = (one["seconds"] - one["half"]) / (batches - batches // 2)
    a = one["seconds"] - batches * w
    checked = [["processes", "measured, s", "model, s", "off by", "speed-up", "m(p), ms"]]
    for row in measured:
        count, seconds = row["processes"], row["seconds"]
        model = a + -(-batches // count) * (w * max(1, count / cores) + row["round"])
        numbers = [f"{seconds:.2f}", f"{model:.2f}", f"{100 * (model / seconds - 1):+.0f} %"]
        more = [f"{one['seconds'] / seconds:.2f}", f"{1000 * row['round']:.2f}"]
        checked.append([str(count), *numbers, *more])
    k, beyond = per_other(measured, cores), [["processes", "seconds", "speed-up"]]
    for count in (1, *BEYOND):
        seconds = a + -(-LARGER // count) * (w + k * (count - 1))
        beyond.append([str(count), f"{seconds:.1f}", f"{(a + LARGER * w) / seconds:.1f}"])
    return (
        f"{batches} batches of {BATCH} images, {cores} cores: "
        f"w = {1000 * w:.0f} ms, a = {1000 * a:.0f} ms.\n\n"
        f"{markdown(checked)}\n\n"
        f"The model for {LARGER} batches, a core for each process, k = {1000 * k:.2f} ms:\n\n"
        f"{markdown(beyond)}\n"
    )


def per_other(measured: list[dict[str, Any]], cores: int) -> float:
    """k of m(p) = k (p - 1), by least squares."""
    several = [row for row in measured if row["processes"] > 1]
    rows = [row for row in several if row["processes"] <= cores] or several
    others = [row["processes"] - 1 for row in rows]
    products = sum(n * float(row["round"]) for n, row in zip(others, rows, strict=True))
    return products / sum(n * n for n in others)


def under_torchrun(count: int, batches: int) -> dict[str, Any]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={count}", __file__, f"--batches={batches}"]
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def measure(batches: int) -> None:
    """What each process runs; the first prints."""
    with joined("cpu") as (processes, device), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = build_model("resnet18", num_classes=10, image_size=SIDE, width=WIDTH).to(device)
        images = BATCH * batches
        x, target = torch.rand(images, 3, SIDE, SIDE), torch.arange(images) % 10
        file = Path(folder) / "features.safetensors"

        def extract(count: int) -> tuple[int, int]:
            data = x[: BATCH * count], target[: BATCH * count]
            return stream_features(file, model, data, batch_size=BATCH, processes=processes)

        def together() -> None:
            for _ in range(ROUNDS):
                processes.gather(of_a_batch)

        found = {"processes": processes.size, "seconds": seconds_of(lambda: extract(batches))}
        if processes.size == 1:
            found["half"] = seconds_of(lambda: extract(batches // 2))
        of_a_batch = Features(torch.rand(BATCH, extract(1)[1]), target[:BATCH])
        processes.wait()
        found["round"] = seconds_of(together) / ROUNDS
        if processes.main:
            print(json.dumps(found), flush=True)


def seconds_of(work: Any) -> float:
    """The least of three times."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3, 4], help="beside 1")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--out", type=Path, help="file of the tables, in Markdown")
    given = parser.parse_args()
    measure(given.batches) if "LOCAL_RANK" in os.environ else main(given)
