from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated import ROOT, SANITIZE, SHARED, Change, Emulation, compiled_once


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The kernels compiled for the host, each when it is first called."""
    if shutil.which("g++") is None:
        pytest.skip("the emulation of CUDA needs g++")
    level = "-O0" if SANITIZE else "-O1"  # they take longer to compile than to run
    own = tmp_path_factory.getbasetemp()
    of_run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    os.environ.setdefault(SHARED, str(of_run / "emulation"))
    return Emulation(compiled_once(level), level=level)


@pytest.fixture
def changed(tmp_path: Path, emulation: Emulation) -> Callable[..., Emulation]:
    """Compiles the kernels with some changes: changed(*changes). That takes longer than what a mutant runs
    until it is caught, hence the level."""

    def make(*changes: Change, level: str = "-O0") -> Emulation:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        csrc = folder / "csrc"
        for part in ("cuda", "common"):
            shutil.copytree(ROOT / "csrc" / part, csrc / part)
        for file, text, replacement in changes:
            source = csrc / "cuda" / file
            assert source.read_text().count(text) == 1, f"{file} has not exactly one: {text}"
            source.write_text(source.read_text().replace(text, replacement))
        return Emulation(folder, csrc, level)

    return make


@pytest.fixture
def mutant(changed: Callable[..., Emulation]) -> Callable[[str, str, str], Emulation]:
    """Compiles the kernels with one change: mutant(file in csrc/cuda, text, replacement)."""
    return lambda *change: changed(change)
