"""How long the native build takes from nothing, on so many cores.

    python tools/build_time.py            # the CPU library
    python tools/build_time.py --cuda     # and the CUDA library, for all default architectures

Whoever installs the package waits for it, so it has a bar. Time it on an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARS = {"hrrl_ops": 30, "hrrl_ops_cuda": 180}  # seconds on two cores
SLOWEST = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", action="store_true", help="build the CUDA library as well")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time")
    args = parser.parse_args()
    print(f"| target | configure s | build s, {args.jobs} jobs | bar s | slowest files, s |")
    print("| --- | --- | --- | --- | --- |")
    for target in ("hrrl_ops", "hrrl_ops_cuda")[: 1 + args.cuda]:
        with tempfile.TemporaryDirectory() as folder:
            configure, build = times(target, Path(folder), args.jobs)
            files = ", ".join(f"{name} {seconds:.0f}" for seconds, name in slowest(Path(folder)))
        print(
            f"| {target} | {configure:.1f} | {build:.1f} | {BARS[target]} | {files} |", flush=True
        )


def times(target: str, folder: Path, jobs: int) -> tuple[float, float]:
    """Seconds of the configuration, which looks for compilers, and of the build."""
    import pybind11

    cuda = "ON" if target == "hrrl_ops_cuda" else "OFF"
    commands = [
        [
            *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DHRRL_CUDA={cuda}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ],
        ["cmake", "--build", str(folder), "--parallel", str(jobs), "--target", target],
    ]
    seconds = []
    for command in commands:
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
    return seconds[0], seconds[1]


def slowest(folder: Path) -> list[tuple[float, str]]:
    """From Ninja's log: begin and end in milliseconds, a time stamp, the output, a hash."""
    lines = (folder / ".ninja_log").read_text().splitlines()[1:]
    entries = (line.split("\t") for line in lines)
    took = [((int(end) - int(begin)) / 1000, output) for begin, end, _, output, _ in entries]
    named = [
        (seconds, f"{Path(output).parts[1].removesuffix('.dir')}/{Path(output).stem}")
        for seconds, output in took
        if output.endswith(".o")
    ]
    return sorted(named, reverse=True)[:SLOWEST]


if __name__ == "__main__":
    main()
