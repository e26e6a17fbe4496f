"""Fixtures: the place a case runs at, and the measurement."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from measurement import Measurement
from places import Place, all_places, as_parameters
from pytest_benchmark.fixture import BenchmarkFixture

from hrrl_ext import __version__, build_info

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_LOAD_BEFORE: pytest.StashKey[float | None] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compile: torch.compile, which compiles for seconds")
    config.stash[_LOAD_BEFORE] = _load()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Tells glibc to give no freed memory back to the system; elsewhere does nothing.

    By default it maps a tensor of more than 32 MiB anew for each call, whose page faults then take five
    times as long as perturb; and a smaller one depending on what ran before, which made ratios jump.
    """
    libc = ctypes.CDLL(None) if platform.system() == "Linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@pytest.fixture(params=as_parameters(all_places()))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    here: Place = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(here.threads)
    yield here
    torch.set_num_threads(before)


@pytest.fixture
def measure(benchmark: BenchmarkFixture, place: Place) -> Measurement:
    return Measurement(benchmark, place)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    info = build_info()
    machine_info["hrrl_ext"] = {
        "version": __version__,
        "compiler": info["compiler"],
        "instructions": info["cpu_in_use"],
        "torch": info["torch"],
        "cuda_device": info["cuda_device"],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_before": config.stash[_LOAD_BEFORE],
        "load_after": _load(),  # pytest-benchmark asks at the end of the run
    }


def _load() -> float | None:
    """Processes that wanted a core in the last minute, ours included."""
    return None if platform.system() == "Windows" else os.getloadavg()[0]
