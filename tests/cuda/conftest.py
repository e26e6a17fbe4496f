from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated import ROOT, Emulation


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The kernels compiled for the host, each when it is first called."""
    if shutil.which("g++") is None:
        pytest.skip("the emulation of CUDA needs g++")
    return Emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def mutant(tmp_path: Path, emulation: Emulation) -> Callable[[str, str, str], Emulation]:
    """Compiles the kernels with one change: mutant(file in csrc/cuda, text, replacement)."""

    def make(file: str, text: str, replacement: str) -> Emulation:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        csrc = folder / "csrc"
        for part in ("cuda", "common"):
            shutil.copytree(ROOT / "csrc" / part, csrc / part)
        source = csrc / "cuda" / file
        assert source.read_text().count(text) == 1, f"{file} has not exactly one: {text}"
        source.write_text(source.read_text().replace(text, replacement))
        return Emulation(folder, csrc)

    return make
