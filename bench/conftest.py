"""Fixtures: the place a case runs at, and the measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from measurement import Measurement
from memory import keep_freed_memory
from places import Place, all_places, as_parameters
from pytest_benchmark.fixture import BenchmarkFixture

from hrrl_ext import __version__, build_info

_LOAD_BEFORE: pytest.StashKey[float | None] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compile: torch.compile, which compiles for seconds")
    config.stash[_LOAD_BEFORE] = _load()
    keep_freed_memory()


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
