"""bench/device_check.py on the CPU: whatever becomes of a stage costs itself alone, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device import measure, report, stages, timing, tools
from device.records import FILE, append, read, turn
from device.run import Run, Stage, status
from device.timing import Event, kernels_between
from device.verdicts import verdicts

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "bench" / "device_check.py"
Records = list[dict[str, Any]]


def stage(name: str, code: str, limit: float = 20.0, **more: Any) -> Stage:
    return Stage(name, ("-c", f"from device.records import emit\n{code}"), limit, 1, **more)


@pytest.fixture
def ran(tmp_path: Path) -> Callable[..., tuple[dict[str, str], Records]]:
    """Runs batches; the outcomes by stage, and all records."""

    def run(*batches: list[Stage], seconds: float = 30.0) -> tuple[dict[str, str], Records]:
        one = Run(tmp_path, "a", seconds, report.render)
        one.all(batches, call="a", dry=True, date="2026-01-02", commit="abc")
        records = read(one.records)
        return {r["stage"]: r["outcome"] for r in records if r["record"] == "stage"}, records

    return run


def test_a_crash_costs_its_stage_alone(ran: Callable[..., Any], tmp_path: Path) -> None:
    crash = "emit('seen', n=1)\nimport os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)"
    outcomes, records = ran([stage("crash", crash)], [stage("next", "emit('seen', n=2)")])
    assert outcomes == {"crash": "crashed: SIGSEGV", "next": "passed"}
    assert [(r["stage"], r["n"]) for r in records if r["record"] == "seen"] == [
        ("crash", 1),
        ("next", 2),
    ]
    assert status(records) == 1
    assert "| crash | crashed: SIGSEGV |" in (tmp_path / "a.md").read_text()
    assert "last words" in (tmp_path / "a.log").read_text()


def test_a_hang_is_killed_with_all_that_it_started(ran: Callable[..., Any]) -> None:
    """Also one that shrugs off a polite signal; a stage beside it goes on."""
    hang = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
emit('child', pid=subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)
time.sleep(60)
"""
    begun = time.monotonic()
    outcomes, records = ran([stage("hang", hang, limit=1.5), stage("beside", "emit('seen')")])
    assert time.monotonic() - begun < 10
    assert outcomes == {"hang": "killed at its limit of 2 s", "beside": "passed"}
    (pid,) = (r["pid"] for r in records if r["record"] == "child")
    for _ in range(100):  # until init has reaped it
        if not _alive(pid):
            break
        time.sleep(0.02)
    assert not _alive(pid)
    assert status(records) == 3


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_time_is_shared_by_all_stages(ran: Callable[..., Any]) -> None:
    wait = "import time; time.sleep(60)"
    outcomes, records = ran([stage("first", wait)], [stage("second", "emit('seen')")], seconds=2.5)
    assert outcomes == {"first": "killed at its limit of 2 s", "second": "not run: no time left"}
    assert status(records) == 3
    assert not any(r["record"] == "seen" for r in records)


def test_what_goes_on_for_ever_may_and_what_is_missing_is_said(ran: Callable[..., Any]) -> None:
    wait = "import time; time.sleep(60)"
    outcomes, records = ran([stage("endless", wait, limit=0.5, endless=True)])
    assert outcomes == {"endless": "passed: until its time was up"}
    assert status(records) == 0
    outcomes, records = ran([stage("lacks", "", needs=("no_such_package",))])
    assert outcomes == {"lacks": "not run: no_such_package not installed"}
    assert status(records) == 1


def test_a_page_that_fails_ends_nothing(tmp_path: Path) -> None:
    def render(_: Records) -> str:
        raise KeyError("a record nobody knows")

    run = Run(tmp_path, "a", 20, render)
    run.all([[stage("one", "emit('odd')")]], call="a", dry=True)
    assert status(read(run.records)) == 0
    assert "a record nobody knows" in run.page.read_text()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=lambda by: by.name)
def test_a_run_that_is_killed_leaves_what_it_had(tmp_path: Path, by: signal.Signals) -> None:
    words = [sys.executable, str(SCRIPT), "a", "--dry-run", "--out", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=_environment())
    records, page = tmp_path / "a.jsonl", tmp_path / "a.md"
    end = time.monotonic() + 60
    while not any(r["record"] == "device" for r in read(records)) or not page.exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(by)
    assert process.wait(20) != 0
    assert page.read_text().startswith("# hrrl_ext on ")
    text = subprocess.run(
        [sys.executable, str(SCRIPT), "report", str(records)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "| a | build |" in text
    if by == signal.SIGTERM:
        assert {r["outcome"] for r in read(records) if r["record"] == "stage"} <= {
            "passed",
            "stopped",
        }


def _environment() -> dict[str, str]:
    # pytest-benchmark measures nothing where it sees other workers of pytest-xdist.
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}


@pytest.mark.slow
def test_a_dry_run_of_both_calls(tmp_path: Path) -> None:
    """Every stage with its stand-ins; then one report of both."""
    for call in "ab":
        words = [sys.executable, str(SCRIPT), call, "--dry-run", "--out", str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, env=_environment())
        log = (tmp_path / f"{call}.log").read_text()
        assert done.returncode == 0, done.stdout + done.stderr + log
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{call}.{end}" for call in "ab" for end in ("jsonl", "log", "md")
    ]
    records = read(tmp_path / "a.jsonl") + read(tmp_path / "b.jsonl")
    planned = {s.name for b in stages.call_a(True) + stages.call_b(True, None) for s in b}
    assert {r["stage"] for r in records if r["record"] == "stage"} == planned
    kinds = {"device", "built", "test", "time", "unmeasured", "step", "trained", "probed"}
    assert kinds <= {r["record"] for r in records}
    text = report.render(records)
    for heading in ("Bars", "Tests", "Times", "Sanitizers", "Training steps", "Transfer"):
        assert f"## {heading}\n" in text
    assert "What went wrong" not in text


def test_a_gpu_is_not_made_up(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "a", "--out", str(tmp_path), "--seconds", "6"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1
    assert (
        "sees no CUDA device; --dry-run tries the stages without"
        in (tmp_path / "a.log").read_text()
    )
    assert "a device not reached" in (tmp_path / "a.md").read_text()


# --- measuring


def test_a_wrong_result_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a peer costs the peer, one of ours the case."""
    path = tmp_path / "records"
    monkeypatch.setenv(FILE, str(path))
    (case, *_) = measure.cases.of("a", "simplex", dry=True)
    clock = timing.clock("cpu")
    for wrong, timed in (("eager", ["ours"]), ("ours", [])):
        path.unlink(missing_ok=True)
        good = measure.COMPARISONS[case.op](case.shape, "cpu")
        ways = good.ways | {wrong: lambda _: lambda: torch.ones(11)}
        spoilt = type(good)(good.op, good.case, good.check, ways)
        monkeypatch.setitem(measure.COMPARISONS, case.op, lambda *_, spoilt=spoilt: spoilt)
        assert not measure.measure(case, clock, measure.as_it_is, samples=3)
        monkeypatch.undo()
        monkeypatch.setenv(FILE, str(path))
        found = read(path)
        assert [r["provider"] for r in found if r["record"] == "time"] == timed
        assert [r["provider"] for r in found if r["record"] == "wrong"] == [wrong]


def test_kernels_are_told_apart_by_the_flush() -> None:
    names = ["flush", "a", "b", "flush", "Context Sync", "a", "flush"]
    events = [Event(name, 10 * i, i) for i, name in enumerate(names)]
    events = [Event("before", -5, 7), *events[::-1]]  # in any order
    parts = kernels_between(events, {"flush"}, 3)
    assert [[e.name for e in part] for part in parts] == [["a", "b"], ["a"], []]
    with pytest.raises(RuntimeError, match="3 flushes of 4"):
        kernels_between(events, {"flush"}, 4)


def test_a_provider_has_the_kernels_of_its_own_calls() -> None:
    """On a device made up here, which runs what it is told in order."""
    done: list[Event] = []

    def kernel(name: str, *microseconds: int) -> Callable[[], None]:
        def launch() -> None:
            for us in microseconds:
                done.append(Event(name, len(done), 1000 * us))

        return launch

    def traced(run: Callable[[], None]) -> list[Event]:
        run()
        return done

    clock = timing.CudaClock.__new__(timing.CudaClock)
    clock.flush_names, clock.source = {"flush"}, "CUPTI"
    clock.flush, clock.traced = kernel("flush", 170), traced  # type: ignore[assignment]
    calls = {"ours": kernel("a", 5), "eager": kernel("a", 3, 4, 2)}
    found = clock.kernels(calls, samples=7)
    assert found["ours"] == timing.Kernels([5.0] * 3, 1, "CUPTI")
    assert found["eager"] == timing.Kernels([9.0] * 3, 3, "CUPTI")


def test_one_times_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE, str(tmp_path / "records"))
    monkeypatch.setattr("device.records._PATIENCE", 0.1)
    with turn(alone=False) as first, turn(alone=False) as second:
        assert first and second
        with turn(alone=True) as alone:
            assert not alone
    with turn(alone=True) as alone, turn(alone=False) as beside:
        assert alone and not beside


def test_counters_are_read_from_the_table_of_ncu() -> None:
    lines = [
        "==PROF== Connected to process 1",
        '"ID","Process Name","Kernel Name","Metric Name","Metric Unit","Metric Value"',
        '"0","python","perturb<float>","gpu__time_duration.sum","us","140.5"',
        '"0","python","perturb<float>","launch__registers_per_thread","register/thread","40"',
        '"1","python","perturb<bf16>","sm__throughput.avg.pct_of_peak_sustained_elapsed","%","12.5"',
        "==PROF== Disconnected",
    ]
    assert tools.parse_counters(lines) == [
        {"kernel": "perturb<float>", "duration": "140.5 us", "registers": "40"},
        {"kernel": "perturb<bf16>", "multiprocessors %": "12.5"},
    ]
    refusal = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    assert tools.REFUSED.search(f"x\n{refusal}\n")


def test_every_test_of_the_kernels_is_run_once() -> None:
    source = (ROOT / "tests/cuda/test_cuda.py").read_text()
    groups = stages.tests_by_operator(source)
    names = [name for group in groups.values() for name in group]
    assert len(names) == len(set(names)) == source.count("\ndef test_")
    assert all(groups.values())
    words = [word for s in stages.call_a(dry=False)[1] for word in s.words if "test_cuda" in word]
    assert sorted(words) == sorted(f"tests/cuda/test_cuda.py::{name}" for name in names)
    files = {path.stem for path in (ROOT / "tests/ops").glob("test_*.py") if _uses_device(path)}
    assert files == set(stages.OPS_TESTS)


def _uses_device(path: Path) -> bool:
    """Whether its tests take the fixture that is a GPU as well."""
    return "device: str" in path.read_text()


# --- the report


def time_of(op: str, case: str, provider: str, us: float, **more: Any) -> dict[str, Any]:
    defaults = {"stage": "perturb", "launches": 1, "wall_us": us, "alone": True, "by": "CUPTI"}
    memory = {"held_bytes": None, "beyond_bytes": None}
    facts = {"op": op, "case": case, "provider": provider, "us": [us, us, us]}
    return {"record": "time", **facts, **defaults, **memory, **more}


PLAN = {
    "record": "plan",
    "stage": "",
    "call": "a",
    "dry": False,
    "stages": [],
    "date": "",
    "commit": "",
}
LARGE = "256x3x224x224-fp32-contiguous"


def test_bars_are_met_missed_or_not_measured_for_a_reason(tmp_path: Path) -> None:
    records: Records = [
        PLAN,
        {"record": "stage", "stage": "perturb", "outcome": "passed", "seconds": 1, "limit": 2},
        {"record": "stage", "stage": "rank1", "outcome": "killed at its limit of 40 s"},
        time_of("perturb", LARGE, "eager", 900.0, stage="another process"),
        time_of("perturb", LARGE, "ours", 160.0),
        time_of("perturb", LARGE, "copy", 140.0),
        time_of("perturb", LARGE, "eager", 290.0),
        {"record": "wrong", "stage": "perturb", "op": "perturb", "case": LARGE,
         "provider": "torchattacks", "message": "AssertionError: not close"},
    ]  # fmt: skip
    path = tmp_path / "records"
    for record in records:
        append(path, record)
    with path.open("a") as file:
        file.write('{"record": "time", "op": "per')  # cut off
    found = {(v.op, v.case, v.bar): v for v in verdicts(read(path))}
    large = {
        bar: v.outcome for (op, case, bar), v in found.items() if (op, case) == ("perturb", LARGE)
    }
    assert large == {
        "copy ≥ 0.85×": "met",
        "eager ≥ 1.9×": "missed by 5 %",
        "torchattacks ≥ 1.9×": "not measured: wrong: AssertionError: not close",
    }
    outcomes = {(op, bar): v.outcome for (op, _, bar), v in found.items()}
    assert outcomes["rank1_assign", "gemm ≥ 0.8×"] == "not measured: killed at its limit of 40 s"
    assert outcomes["concept_cross_entropy", "copy ≥ 0.85×"] == "not measured: not begun"
    assert (
        outcomes["concept_cross_entropy", "quack ≥ 1.35×"] == "not measured: no call has this peer"
    )
    assert not any("compile" in bar for _, bar in outcomes)  # those are call b's
    text = report.render(read(path))
    assert "1 met, 1 missed" in text
    assert "| **missed by 5 %** |" in text


def test_a_share_of_a_copy_or_microseconds_and_memory() -> None:
    fc100, fc1000 = "B512-784-1024-1024-10-K100", "B512-784-1024-1024-10-K1000"
    records: Records = [
        PLAN,
        time_of("rank1_assign", fc100, "ours", 7.9),
        time_of("rank1_assign", fc100, "copy", 2.0),
        time_of("rank1_assign", fc1000, "ours", 100.0, held_bytes=30, beyond_bytes=10),
        time_of("rank1_assign", fc1000, "explicit", 9000.0, beyond_bytes=12_400),
    ]
    found = {(v.case, v.bar): (v.measured, v.outcome) for v in verdicts(records)}
    assert found[fc100, "copy ≥ 0.75×, or ≤ 8 µs"] == ("0.253×, 7.9 µs", "met")
    assert found[fc1000, "explicit ≥ 100×"] == ("90×", "missed by 11 %")
    assert found[fc1000, "memory of explicit ≥ 300×"] == ("310×", "met")


def test_differences_of_transfer_are_paired() -> None:
    setting = {"images": 12_500, "config": {"epochs": 10, "width": 64}}
    records: Records = [{"record": "transfer", **setting}]
    assert report.transfer(records) == "No model was trained before its time was up."
    for variant, seed, value in (
        *(("ERM", 0, 0.50), ("HRRL", 0, 0.52), ("ERM", 1, 0.40), ("HRRL", 1, 0.44)),
        ("ERM", 2, 0.10),  # stopped before its pair
    ):
        both = {"accuracy": value, "worst_concept": value / 2}
        records.append({"record": "trained", "variant": variant, "seed": seed, **both})
    text = report.transfer(records)
    assert "| accuracy | 33.3 ± 20.8 (3) | 48.0 ± 5.7 (2) |" in text
    assert "| accuracy | +3.0 ± 1.4 (2) |" in text


def test_a_test_that_took_its_process_along_is_named() -> None:
    records: Records = [
        {"record": "test", "stage": "s", "test": name, "outcome": outcome}
        for name, outcome in (("one", "begun"), ("one", "passed"), ("two", "begun"))
    ]
    assert report.tests(records) == (
        "1 passed, 0 failed, 0 skipped.\n\n- `two`: begun, and its process ended"
    )
