"""The native code compiles against the headers of every torch that is supported.

    make test

fetches the headers of the oldest one and of one in between (tools/torch_headers.py) and names their
folders in HRRL_OTHER_HEADERS; the build itself is against those of the installed torch. That
the library then runs under other torches is tests/test_abi.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
OTHERS = [Path(p) for p in os.environ.get("HRRL_OTHER_HEADERS", "").split(os.pathsep) if p]
INSTALLED = str(Path(torch.__file__).parent / "include")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "CMakeLists.txt").exists() or shutil.which("cmake") is None,
        reason="needs the source tree and cmake",
    ),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By file, how the build compiles what may include torch: all C++ but the loops, which do not.

    The .cu files include nothing of torch (the last test below), so the build compiles them for all.
    """
    pybind11 = pytest.importorskip("pybind11")
    build = tmp_path_factory.mktemp("build")
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        *("-DHRRL_WERROR=ON", "-DHRRL_CUDA_ARCHS=90"),
    ]
    done = subprocess.run(configure, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((build / "compile_commands.json").read_text())
    found = {
        str(Path(entry["file"]).relative_to(ROOT)): shlex.split(entry["command"])
        for entry in entries
    }
    return {
        file: command
        for file, command in found.items()
        if INSTALLED in command and file.endswith(".cpp")
    }


def errors(command: list[str], include: Path) -> str:
    """Of the compiler, with other headers in the place of the installed ones."""
    output = command.index("-o")
    flags = [str(include) if flag == INSTALLED else flag for flag in command]
    flags = [*flags[:output], *flags[output + 2 :], "-fsyntax-only"]
    return subprocess.run(flags, capture_output=True, text=True, cwd=ROOT).stderr


@cache
def versions(folder: Path) -> str:
    defines = dict(
        line.split()[1:3]
        for line in (folder / "include/torch/headeronly/version.h").read_text().splitlines()
        if line.startswith("#define TORCH_VERSION_M")
    )
    return f"{defines['TORCH_VERSION_MAJOR']}.{defines['TORCH_VERSION_MINOR']}"


@pytest.mark.skipif(not OTHERS, reason="HRRL_OTHER_HEADERS names no folder; see make test")
@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_every_file_compiles(commands: dict[str, list[str]], folder: Path) -> None:
    assert versions(folder) in folder.name
    files = [file for file in commands if not file.startswith("csrc/cuda/")]
    assert {"csrc/ops.cpp", "csrc/cpu/perturb_cpu.cpp"} <= set(files)
    failed = {file: errors(commands[file], folder / "include") for file in files}
    assert not any(failed.values()), failed


@pytest.mark.skipif(not OTHERS, reason="HRRL_OTHER_HEADERS names no folder; see make test")
@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_every_cuda_file_compiles(commands: dict[str, list[str]], folder: Path) -> None:
    files = [file for file in commands if file.startswith("csrc/cuda/")]
    if not files:
        pytest.skip("CMake found no nvcc, and so no headers of CUDA")
    assert set(files) == {str(f.relative_to(ROOT)) for f in ROOT.glob("csrc/cuda/*_cuda.cpp")}
    failed = {file: errors(commands[file], folder / "include") for file in files}
    assert not any(failed.values()), failed


def test_missing_header(commands: dict[str, list[str]], tmp_path: Path) -> None:
    """The installed headers do not stand in for what others lack."""
    header = tmp_path / "torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.write_text("#include <torch/csrc/stable/tensor.h>\n")
    assert "torch/csrc/stable/tensor.h: No such file" in errors(commands["csrc/ops.cpp"], tmp_path)


def test_kernels_include_nothing_of_torch() -> None:
    border = {"stream.h", "reals.h"}
    for file in (ROOT / "csrc/cuda").iterdir():
        if not file.name.endswith("_cuda.cpp") and file.name not in border:
            assert "#include <torch" not in file.read_text(), file.name
