#!/usr/bin/env python3
"""One command on a machine with a GPU: build, test, measure, and write down what was seen.

    bench/device_check.py --out runs/gpu    # 10 minutes at most; needs no network

A stage has its own log and limit, and one that fails or runs out of time does not stop the next: what
the tests and the benchmark had finished by then is in the report, bench/results/DEVICE-DATE.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"build": 2, "test": 3, "bench": 5}  # of the time that is left
BUILD_NEEDS = ("pip", "setuptools", "pybind11")
NEEDS = {"build": BUILD_NEEDS, "test": ("pytest",), "bench": ("pytest", "pytest_benchmark")}
PROCESSOR = "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2"
OPTIONAL = ("hypothesis", "entmax")  # property tests, and a peer of the simplex
GRACE = 20  # seconds for pytest to write its results after an interrupt


class Stage(NamedTuple):
    name: str
    outcome: str
    seconds: float
    limit: float


def main() -> None:
    args = arguments()
    gpu, out = args.device == "cuda", args.out
    if gpu and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no CUDA device; --device cpu tries the CPU alone")
    if gpu and "build" in args.stages and shutil.which("nvcc") is None:
        sys.exit("nvcc is not on PATH, and the CUDA kernels cannot be built without it")
    out.mkdir(parents=True, exist_ok=True)
    for old in ("tests.xml", "bench.json"):
        (out / old).unlink(missing_ok=True)
    device = torch.cuda.get_device_name() if gpu else said_by("sh", "-c", PROCESSOR)
    end = time.monotonic() + 60 * args.minutes - GRACE
    stages = []
    for i, name in enumerate(args.stages):
        left = sum(SHARES[later] for later in args.stages[i:])
        limit = max(0.0, end - time.monotonic()) * SHARES[name] / left
        stages.append(run(name, command(name, args), out, limit, environment(gpu)))
        print(f"{name}: {stages[-1].outcome}, {stages[-1].seconds:.0f} s", flush=True)
    table = ["| stage | result | seconds | limit |", "| --- | --- | --- | --- |"]
    table += [f"| {s.name} | {s.outcome} | {s.seconds:.0f} | {s.limit:.0f} |" for s in stages]
    parts = [heading(device, gpu), "\n".join(table), test_summary(out), benchmark(out)]
    slug = re.sub(r"\W+", "-", device.lower()).strip("-")
    result: Path = args.results / f"{slug}-{datetime.date.today()}.md"
    for path in (result, out / "report.md"):
        path.write_text("\n\n".join(parts) + "\n")
    print(f"wrote {result}; logs are in {out}")
    sys.exit(any(stage.outcome != "passed" for stage in stages))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and raw results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=10, help="for all stages together")
    parser.add_argument(
        "--stages", nargs="+", choices=SHARES, default=list(SHARES), metavar="STAGE"
    )
    parser.add_argument("--tests", default="", help="pytest -k for the tests")
    parser.add_argument("--benchmarks", default="", help="pytest -k for the benchmark")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    return parser.parse_args()


def environment(gpu: bool) -> dict[str, str]:
    """The kernels for this device alone, so that they are built in seconds."""
    if not gpu:
        return os.environ | {"HRRL_CUDA": "OFF"}
    major, minor = torch.cuda.get_device_capability()
    return os.environ | {"HRRL_CUDA": "ON", "HRRL_CUDA_ARCHS": f"{major}{minor}"}


def command(stage: str, args: argparse.Namespace) -> list[str]:
    python, out = sys.executable, args.out.resolve()
    gpu = args.device == "cuda"
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    if stage == "build":
        return [
            python,
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "--no-deps",
            "-v",
            "-e",
            ".",
        ]
    if stage == "test":
        pytest += ["tests", "-m", "gpu" if gpu else "not gpu and not slow", "-k", args.tests]
        return [*pytest, f"--junitxml={out / 'tests.xml'}", "--continue-on-collection-errors"]
    pytest += ["bench", "-m", "gpu" if gpu else "not gpu", "-k", args.benchmarks]
    return [*pytest, "--benchmark-only", f"--benchmark-json={out / 'bench.json'}"]


def run(name: str, words: list[str], out: Path, limit: float, env: dict[str, str]) -> Stage:
    missing = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
    if missing:
        return Stage(name, f"not run: {', '.join(missing)} not installed", 0.0, limit)
    start = time.monotonic()
    with (out / f"{name}.log").open("w") as log:
        log.write(" ".join(words) + "\n\n")
        log.flush()
        process = subprocess.Popen(
            words, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait(limit)
            outcome = "passed" if code == 0 else f"failed, exit status {code}"
        except subprocess.TimeoutExpired:
            outcome = "out of time"
            process.send_signal(signal.SIGINT)  # pytest then writes what it has
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):  # and whatever it has started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Stage(name, outcome, time.monotonic() - start, limit)


def said_by(*words: str) -> str:
    """The last line that a program prints."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError, IndexError):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[-1]
    return "unknown"


def heading(device: str, gpu: bool) -> str:
    absent = [module for module in OPTIONAL if importlib.util.find_spec(module) is None]
    changed = said_by("git", "status", "--porcelain", "-uno") != "unknown"  # it says nothing if not
    lines = [
        f"# hrrl_ext on {device}, {datetime.date.today()}\n",
        f"- commit {said_by('git', 'rev-parse', '--short', 'HEAD')}{', changed' * changed}",
        f"- torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}",
    ]
    if gpu:
        driver = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        lines.append(f"- driver {driver}, nvcc {said_by('nvcc', '--version')}")
    if absent:
        lines.append(f"- not installed, so left out: {', '.join(absent)}")
    return "\n".join(lines)


def test_summary(out: Path) -> str:
    path = out / "tests.xml"
    if not path.exists():
        return "## Tests\n\nNo results; see test.log."
    cases = list(ElementTree.parse(path).iter("testcase"))
    bad = [(case, mark) for case in cases for mark in case if mark.tag in ("failure", "error")]
    skipped = Counter(mark.get("message") for c in cases for mark in c if mark.tag == "skipped")
    passed = len(cases) - len(bad) - skipped.total()
    lines = [f"## Tests\n\n{passed} passed, {len(bad)} failed, {skipped.total()} skipped.\n"]
    lines += [f"- skipped {times} times: {reason}" for reason, times in skipped.items()]
    for case, mark in bad:
        message = (mark.get("message") or "").splitlines() or [""]
        name = f"{case.get('classname')}::{case.get('name')}".strip(":")
        lines.append(f"- `{name}`: {message[0][:200]}")
    return "\n".join(lines).strip()


def benchmark(out: Path) -> str:
    path = out / "bench.json"
    if not path.exists() or not path.stat().st_size:
        return "## Benchmark\n\nNo results; see bench.log."
    words = [sys.executable, str(ROOT / "bench" / "table.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        return f"## Benchmark\n\ntable.py failed:\n\n    {done.stderr.splitlines()[-1]}"
    return re.sub("^#", "##", done.stdout.strip(), flags=re.MULTILINE)


if __name__ == "__main__":
    main()
