#!/usr/bin/env python3
"""One command on a machine with a GPU, in two short calls: build, test, measure, and write it down.

    python bench/device_check.py a --out runs/gpu                 # right? fast beside a copy and eager?
    python bench/device_check.py b --out runs/gpu --data FOLDER   # beside other peers; steps; transfer
    python bench/device_check.py report runs/gpu/a.jsonl runs/gpu/b.jsonl > bench/results/NAME.md

Each call ends within its --seconds, needs no network, and leaves three files that are up to date at any
moment: a line of JSON per measurement (a.jsonl), the report made of them (a.md), and what the stages
printed (a.log). A stage is a process group with a limit and a hard kill; whatever becomes of it costs
itself alone. Exit status: 0 if every stage passed, 1 if one failed, 3 if none did but time ran out.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from device import records, report, stages
from device.run import ROOT, Run, status

SECONDS = 290.0
PEERS = """
entmax and Liger take part in call b where they are installed. Without a network, bring their wheels:

  pip download --no-deps --dest wheels entmax liger-kernel        # where there is one: 1 MB
  pip install --no-index --no-deps --target site wheels/*.whl     # on the machine
  PYTHONPATH=site python bench/device_check.py b ...

--data is a folder of NumPy archives (docs/data.md): cifar100-train-*.npz, one part or more, and
cifar100-test.npz; and as targets any of cifar10, fashion-mnist and grocery, as NAME-test.npz, with
NAME-train.npz or else halved. One part of CIFAR-100 with the test images of it, of CIFAR-10 and of
Fashion-MNIST take 56 MiB.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=PEERS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="call", required=True)
    for call, what in (("a", "tests, times, counters"), ("b", "peers, training steps, transfer")):
        command = commands.add_parser(call, help=what)
        command.add_argument("--out", type=Path, required=True, help="folder for the three files")
        command.add_argument("--seconds", type=float, default=SECONDS, help="for the whole call")
        command.add_argument("--commit", help="what is measured, where git does not know")
        command.add_argument(
            "--dry-run", action="store_true", help="all of it on a CPU, with small stand-ins"
        )
        if call == "b":
            command.add_argument("--data", type=Path, help="images to learn on; digits without it")
    both = commands.add_parser("report", help="one report of both calls, to standard output")
    both.add_argument("files", type=Path, nargs="+", metavar="RECORDS")
    args = parser.parse_args()
    if args.call == "report":
        print(report.render([r for path in args.files for r in records.read(path)]), end="")
        return
    sys.exit(check(args))


def check(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stages end too
    dry = args.dry_run
    batches = stages.call_a(dry) if args.call == "a" else stages.call_b(dry, args.data)
    facts: dict[str, Any] = {
        "call": args.call,
        "dry": dry,
        "date": datetime.date.today().isoformat(),
        "commit": args.commit or commit(),
    }
    run = Run(args.out, args.call, args.seconds, report.render)
    run.all(batches, **facts)
    found = records.read(run.records)
    for record in found:
        if record["record"] == "stage":
            print("{stage}: {outcome}, {seconds:.1f} s of {limit:.0f}".format(**record))
    print(f"wrote {run.page}")
    return status(found)


def commit() -> str:
    try:
        words = ["git", "describe", "--always", "--dirty"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    main()
