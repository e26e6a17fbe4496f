"""A stage: NVIDIA's tools on a few launches. Where one is not there, or may not, the report says so."""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable

from .cases import HOT_LAUNCHES
from .records import emit

METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "multiprocessors %",
    "launch__registers_per_thread": "registers",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
}
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# What the tools say of a machine that does not let them; anything else is a result.
REFUSED = re.compile(
    r".*(ERR_NVGPUCTRPERM|Failed to initialize the profiler|LibraryNotLoaded|Device not supported"
    r"|No supported GPUs).*"
)
_FOUND = 9  # compute-sanitizer's exit status where it found something


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=("ncu", *SANITIZERS))
    parser.add_argument(
        "--dry-run", action="store_true", help="memcheck: the calls, on the CPU, alone"
    )
    args = parser.parse_args()
    tool = args.tool
    if args.dry_run:
        if tool == "memcheck":
            _run(sys.executable, "-m", "device.hot", "small", "--device", "cpu")
        emit("unmeasured", tool=tool, reason="a dry run")
        return
    program = "ncu" if tool == "ncu" else "compute-sanitizer"
    if shutil.which(program) is None:
        emit("unmeasured", tool=tool, reason=f"{program} is not on PATH")
        return
    sys.exit(_counters() if tool == "ncu" else _sanitize(tool))


def _counters() -> int:
    """The clocks stay as they are: the card is not ours to set."""
    done = _run(
        "ncu",
        *("--profile-from-start", "off", "--clock-control", "none", "--csv"),
        *("--metrics", ",".join(METRICS), "--target-processes", "all"),
        *(sys.executable, "-m", "device.hot", "hot"),
    )
    if refused := REFUSED.search(done):
        emit("unmeasured", tool="ncu", reason=refused[0].strip()[:200])
        return 0
    launches = parse_counters(done.splitlines())
    for number, counters in enumerate(launches):
        case = (
            " ".join(map(str, HOT_LAUNCHES[number])) if len(launches) == len(HOT_LAUNCHES) else ""
        )
        emit("counters", number=number, case=case, **counters)
    return 0 if launches else 1


def parse_counters(lines: Iterable[str]) -> list[dict[str, str]]:
    """ncu's table, a row per launch and metric, as one dictionary per launch."""
    table = [line for line in lines if line.startswith('"')]
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(table):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        name = METRICS.get(row["Metric Name"])
        if name is not None:
            unit = "" if name.endswith("%") or name == "registers" else f" {row['Metric Unit']}"
            launch[name] = row["Metric Value"] + unit
    return list(launches.values())


def _sanitize(tool: str) -> int:
    done = _run(
        "compute-sanitizer",
        *("--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "20"),
        *("--kernel-name", "kernel_substring=hrrl"),  # ours alone
        *(sys.executable, "-m", "device.hot", "small"),
    )
    if refused := REFUSED.search(done):
        emit("unmeasured", tool=tool, reason=refused[0].strip()[:200])
        return 0
    summaries = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", done, re.MULTILINE)
    clean = bool(summaries) and all(re.search(r"SUMMARY: 0 ", s) for s in summaries)
    emit("sanitizer", tool=tool, clean=clean, summary="; ".join(summaries) or "no summary")
    return 0 if clean else 1


def _run(*words: str) -> str:
    # Every tensor an allocation of its own: else one that is overrun ends within a block of torch's.
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    print(done.stdout)
    if done.returncode not in (0, _FOUND) and not REFUSED.search(done.stdout):
        sys.exit(f"{words[0]} ended with status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
