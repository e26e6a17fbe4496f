"""bench/device_check.py on the CPU: the stages run, their results are found, a failure stops nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hrrl_ext

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "bench" / "device_check.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCRIPT.exists(), reason="needs the source tree"),
]


def check(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--device", "cpu", "--out", str(out), "--results", str(out), *arguments]
    # pytest-benchmark measures nothing where it sees other workers of pytest-xdist.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment = inherited | {"PYTHONPATH": str(Path(hrrl_ext.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, env=environment
    )


def test_tests_and_benchmark(tmp_path: Path) -> None:
    """Not the build: it would install into the environment that runs this."""
    done = check(
        tmp_path,
        "--stages",
        "test",
        "bench",
        "--tests",
        "literal_values",
        "--benchmarks",
        "call and ours",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (named,) = tmp_path.glob("*-20??-??-??.md")
    report = named.read_text()
    assert report == (tmp_path / "report.md").read_text()
    assert "| test | passed |" in report
    assert "| bench | passed |" in report
    assert "1 passed, 0 failed, 0 skipped" in report
    assert "| perturb | 1 | fp32 |" in report
    assert json.loads((tmp_path / "bench.json").read_text())["benchmarks"]
    assert "1 passed" in (tmp_path / "test.log").read_text()


def test_a_stage_out_of_time_stops_nothing(tmp_path: Path) -> None:
    done = check(tmp_path, "--stages", "test", "bench", "--minutes", "0.36")
    assert done.returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert "| test | out of time |" in report
    assert "| bench | out of time |" in report


def test_a_gpu_is_not_made_up(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "sees no CUDA device; --device cpu tries the CPU alone" in done.stderr
