"""How the cost of sharing grows with processes: extraction on 1, 2 and 4 of them, and a model of it.

    python bench/processes.py --processes 1 2 4 --out runs/processes.json

    t(p) = a + ⌈b/p⌉ (w + m(p))

b batches of w seconds; m(p), what a round of putting together takes, measured without any work; a, what
is left of the time of one process. The machine should be idle, and have a core for each process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDE, WIDTH, IMAGES, BATCH, ROUNDS = 64, 16, 2048, 64, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, help="JSON file of the table")
    args = parser.parse_args()
    if max(args.processes) > (cores := os.cpu_count() or 1):
        print(f"{cores} cores: more processes than that measure the operating system")
    measured = [under_torchrun(count) for count in args.processes]
    rows = [row | {"predicted": predicted(measured, row)} for row in measured]
    print(f"{'processes':>9} {'seconds':>9} {'model':>9} {'round, ms':>9}")
    for row in rows:
        ms = 1000 * row["round"]
        print(f"{row['processes']:9} {row['seconds']:9.3f} {row['predicted']:9.3f} {ms:9.2f}")
    if args.out is not None:
        from hrrl_ext.storage import write_json

        write_json(args.out, {"rows": rows, "batches": IMAGES // BATCH})


def predicted(measured: list[dict[str, Any]], row: dict[str, Any]) -> float:
    """From the first row, of the fewest processes, and the rounds of this one."""
    first, batches = measured[0], IMAGES // BATCH
    rounds = math.ceil(batches / row["processes"])
    before = math.ceil(batches / first["processes"])
    alone = first["seconds"] - before * (first["batch"] + first["round"])
    return float(alone + rounds * (first["batch"] + row["round"]))


def under_torchrun(count: int) -> dict[str, Any]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={count}", __file__]
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def measure() -> None:
    """What each process runs; the first prints."""
    import tempfile

    import torch

    from hrrl_ext.models import build_model
    from hrrl_ext.processes import joined
    from hrrl_ext.transfer import stream_features

    with joined("cpu") as (processes, device), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = build_model("resnet18", num_classes=10, image_size=SIDE, width=WIDTH).to(device)
        x, target = torch.rand(IMAGES, 3, SIDE, SIDE), torch.arange(IMAGES) % 10
        file = Path(folder) / "features.safetensors"
        batch = seconds_of(lambda: stream_features(file, model, (x[:BATCH], target[:BATCH])))
        rows = torch.rand(BATCH, model(x[:1]).shape[1])
        round_ = seconds_of(lambda: [processes.gather(rows) for _ in range(ROUNDS)]) / ROUNDS
        whole = seconds_of(
            lambda: stream_features(file, model, (x, target), batch_size=BATCH, processes=processes)
        )
        if processes.main:
            found = {"processes": processes.size, "seconds": whole, "batch": batch, "round": round_}
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
    measure() if "LOCAL_RANK" in os.environ else main()
