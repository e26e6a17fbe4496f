#!/usr/bin/env python3
"""Whether a change of the trainer moved a bit: short runs of every kind, as digests.

    PYTHONPATH=OLD python tools/same_bits.py before.json      # a checkout of before the change
    PYTHONPATH=NEW python tools/same_bits.py after.json
    diff before.json after.json                               # empty if nothing moved

For one machine and one torch: sums may be formed in another order elsewhere. Times are left out, and so
are settings that one of the two checkouts does not know.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TIMES = {"seconds", "images_per_second", "peak_memory_mib"}
SHORT: dict[str, Any] = {
    **{"concepts": "classes", "epochs": 2, "batch_size": 100, "lr": 0.05, "width": 8},
    **{"crop_padding": 1, "flip": False, "progress": "off"},
}
RUNS: dict[str, dict[str, Any]] = {
    "erm": {"tau": 0.0, "lam": None},
    "hrrl": {"tau": 0.1, "lam": 10.0, "c": "auto", "s": 10, "milestones": [1]},
    "fp16, accumulated": {"tau": 0.1, "lam": 5.0, "precision": "fp16", "accumulate": 3},
    "bf16, channels_last": {"tau": 0.1, "lam": 5.0, "precision": "bf16", "channels_last": True},
    "group_dro": {"tau": 0.0, "lam": None, "adversary": "group_dro", "label_smoothing": 0.1},
    "cvar": {"tau": 0.05, "lam": None, "adversary": "cvar", "batch_norm": "running"},
    "discovered": {"tau": 0.0, "lam": 5.0, "concepts": "clusters:3,every=1,rounds=2", "c": "auto"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file of digests")
    parser.add_argument("--processes", type=int, default=2, help="for the run under torchrun")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # one of several processes
    args = parser.parse_args()
    if args.train is not None:
        train(args.train, RUNS["hrrl"])
        return
    torch.set_num_threads(1)
    digests = {}
    for name, digest in recorded(args.processes):
        digests[name] = digest
        print(name, flush=True)
    args.out.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def recorded(processes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, settings in RUNS.items():
        yield name, of_run(partial(train, settings=settings))
    for method in ("plain", "l2sp", "similarity:w_sim=0.3"):
        yield f"fine-tuning, {method}", of_run(partial(finetune, method=method))
    yield f"{processes} processes", of_run(lambda out: under_torchrun(out, processes))


def train(out: Path, settings: dict[str, Any]) -> None:
    import hrrl_ext
    from hrrl_ext.processes import stop_processes

    images = hrrl_ext.load_images("digits", split="train")
    test = hrrl_ext.load_images("digits", split="test")
    hrrl_ext.HRRLTrainer(
        data=images, validation=test, out=out, checkpoint_every=7, **SHORT | settings
    ).fit()
    stop_processes()


def finetune(out: Path, method: str) -> None:
    import hrrl_ext
    from hrrl_ext.data import lower_resolution

    torch.manual_seed(0)
    start = hrrl_ext.resnet18(num_classes=10, width=8)
    images = lower_resolution(hrrl_ext.load_images("digits", split="train"))
    test = hrrl_ext.load_images("digits", split="test")
    hrrl_ext.finetune(
        start, images, method=method, validation=test, out=out, **SHORT | {"concepts": None}
    )


def under_torchrun(out: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--master-port=29871", __file__, "unused", "--train", str(out)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def of_run(run: Callable[[Path], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        torch.manual_seed(0)
        run(out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        results = json.loads((out / "results.json").read_text())
        (newest,) = sorted((out / "checkpoints").iterdir())[-1:]
        state = torch.load(newest / "state.pt", weights_only=True)
        return {
            "files": sorted(
                str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()
            ),
            "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
            "columns": next(csv.reader((out / "metrics.csv").open())),
            "log": [line.rpartition("  ")[0] for line in (out / "train.log").open()],
            "results": {k: sorted(v) if isinstance(v, dict) else None for k, v in results.items()},
            "config": sorted(json.loads((out / "config.json").read_text())),
            "weights": sha(newest / "model.safetensors"),
            "best": sha(out / "best" / "model.safetensors"),
            "state": {name: digest(state[name]) for name in state if name != "history"},
        }


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(value: Any) -> Any:
    """Of a checkpoint's state: tensors by their bytes."""
    if isinstance(value, Tensor):
        return hashlib.sha256(
            value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
    if isinstance(value, dict):
        return {str(k): digest(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list | tuple):
        return [digest(v) for v in value]
    return value


if __name__ == "__main__":
    main()
