"""The linear SVM on more and more features: seconds and memory of liblinear and of the streamed solver.

    python bench/large_probe.py                                     # 20 000 to 80 000 rows, both
    python bench/large_probe.py --rows 1300000 --solvers streamed

Features of 512 numbers in 100 classes that overlap: a Gaussian cloud for each, in 96 directions of
falling variance, through a random layer with ReLU. They are written to a file block by block. Each fit,
of one C, is a process of its own that maps the file. "own MiB" is the peak of what it allocated itself;
``ru_maxrss`` also counts the pages of the file that happen to be in memory, which the system may drop.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from hrrl_ext.transfer import Features, LinearProbe, load_features
from hrrl_ext.transfer.feature_files import write_batches

BLOCK = 8192
DIRECTIONS = 96


def clouds(rows: int, columns: int, classes: int, seed: int) -> Iterator[Features]:
    """The same classes whatever the seed, which draws the rows."""
    g = torch.Generator().manual_seed(0)
    spread = torch.arange(1.0, DIRECTIONS + 1) ** -0.5
    centre = torch.randn(classes, DIRECTIONS, generator=g) * spread
    layer = torch.randn(DIRECTIONS, columns, generator=g) * 2 / DIRECTIONS**0.5
    g.manual_seed(seed)
    for first in range(0, rows, BLOCK):
        label = torch.randint(classes, (min(BLOCK, rows - first),), generator=g)
        hidden = centre[label] + 2.6 * spread * torch.randn(len(label), DIRECTIONS, generator=g)
        noise = 0.1 * torch.randn(len(label), columns, generator=g)
        yield Features((hidden @ layer + noise).relu(), label)


def fit(train: str, test: str, solver: str, C: str) -> None:
    """In a process of its own: a line of JSON."""
    start, used = time.perf_counter(), time.process_time()
    features = load_features(train)
    model = LinearProbe(
        "search" if C == "search" else float(C),
        solver=solver,  # type: ignore[arg-type]
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    ).fit(*features)
    measured = {
        "seconds": time.perf_counter() - start,
        "of the processor": time.process_time() - used,
        "C": model.C_,
        "passes": model.n_iter_,
        "converged": model.converged_,
        "max RSS MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "accuracy": model.score(*load_features(test)),
    }
    print(json.dumps(measured))


def own_mib(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--solvers", nargs="+", default=["liblinear", "streamed"])
    parser.add_argument("--C", default="1", help="a number, or search")
    parser.add_argument("--folder", type=Path, help="where to write the features; a temporary one")
    parser.add_argument("--fit", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        return fit(*args.fit)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        train, test = Path(folder) / "train.safetensors", Path(folder) / "test.safetensors"
        write_batches(test, clouds(10_000, args.columns, args.classes, 2))
        for rows in args.rows:
            write_batches(train, clouds(rows, args.columns, args.classes, 1))
            for solver in args.solvers:
                command = [sys.executable, __file__, "--fit", train, test, solver, args.C]
                own = 0.0
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                    while child.poll() is None:
                        own = max(own, own_mib(child.pid))
                        time.sleep(0.02)
                    assert child.stdout is not None
                    found = json.loads(child.stdout.read()) | {"own MiB": own}
                print(
                    f"{rows} rows  {solver:9}",
                    *(f"{k} {v:.6g} " for k, v in found.items()),
                    flush=True,
                )
    return None


if __name__ == "__main__":
    main()
