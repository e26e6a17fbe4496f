"""The CPU library under the compiler's sanitizers: no read or write outside an array, nothing undefined,
no race between threads.

Addresses and undefined behaviour: the whole library inside Python, and the tests of the operators as
they stand. Races: torch's pool of threads is not built for the sanitizer, which would take every use of
it for one; so the kernels, which know nothing of torch, run on threads of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

import hrrl_ext

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ["baseline", "avx2", "avx512"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "CMakeLists.txt").exists() or shutil.which("cmake") is None,
        reason="needs the source tree and cmake",
    ),
]


def build(source: Path, folder: Path, sanitizers: str, target: str) -> Path:
    configure = [
        *("cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja"),
        *(
            "-DHRRL_CUDA=OFF",
            f"-DHRRL_SANITIZE={sanitizers}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ),
        *("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0 -g1"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    for command in (configure, ["cmake", "--build", str(folder), "--target", target]):
        done = subprocess.run(command, capture_output=True, text=True)
        if "cannot find -l" in done.stderr + done.stdout:
            pytest.skip("the compiler has no sanitizers here")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return folder


def runtime(*names: str) -> str:
    """Libraries of the sanitizers, to be loaded before Python: all memory comes from them then."""
    compiler = os.environ.get("CXX", "c++")
    return " ".join(
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in names
    )


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a library that watches its addresses and its arithmetic."""
    folder = tmp_path_factory.mktemp("address")
    library = build(ROOT, folder / "build", "address;undefined", "hrrl_ops") / "libhrrl_ops.so"
    shutil.copytree(Path(hrrl_ext.__file__).parent, folder / "hrrl_ext")
    shutil.copy2(library, folder / "hrrl_ext")
    return folder


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": runtime("libasan.so", "libubsan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks at exit
        "PYTHONPATH": str(package),
    }
    return subprocess.run(  # not in ROOT, whose own package would come first
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=package
    )


def skip_unless_available(instructions: str) -> None:
    best = hrrl_ext.build_info()["cpu_best"]
    if BUILDS.index(instructions) > BUILDS.index(best):
        pytest.skip(f"this processor has no {instructions}")


@pytest.mark.parametrize("instructions", BUILDS)
def test_nothing_outside_the_arrays_and_nothing_undefined(
    sanitized: Path, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tests of the operators on the best instruction set, those of the vector loops on the others."""
    skip_unless_available(instructions)
    monkeypatch.setenv("HRRL_CPU_CAPABILITY", instructions)
    asked = "import hrrl_ext as h; print(h.__file__, h.build_info()['cpu_in_use'])"
    used = python(sanitized, "-c", asked)
    expected = f"{sanitized / 'hrrl_ext' / '__init__.py'} {instructions}"
    assert used.stdout.strip() == expected, used.stderr
    tests = ROOT / "tests" / "ops"
    if instructions == hrrl_ext.build_info()["cpu_best"]:
        # What torch makes of the operators is its own code, the properties are of values, and test_bounds.py
        # makes its own trap.
        left_out = ("registration", "transforms", "properties", "bounds")
        selection = [str(tests), "-k", " and ".join(f"not {name}" for name in left_out)]
    else:
        files = ("perturb", "concept_cross_entropy", "rank1")
        selection = [str(tests / f"test_{name}.py") for name in files]
    options = ["-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    config = ["-c", str(ROOT / "pyproject.toml")]
    done = python(sanitized, "-m", "pytest", *options, *config, *selection)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[:4000]
    assert " passed" in done.stdout


def test_the_address_sanitizer_sees_the_kernels(sanitized: Path) -> None:
    """A tensor that claims more memory than was allocated."""
    script = """
import ctypes, torch
from hrrl_ext import ops
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
memory = (ctypes.c_char * 400).from_address(libc.malloc(200))
x = torch.frombuffer(memory, dtype=torch.float32).view(1, 100)
ops.perturb(x, x, 0.0)
"""
    done = python(sanitized, "-c", script)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(ROOT, tmp_path_factory.mktemp("thread"), "thread", "kernel_threads")
    return folder / "kernel_threads"


@pytest.mark.parametrize("instructions", BUILDS)
@pytest.mark.parametrize("mode", ["apart", "race"])
def test_no_race_between_threads(threads: Path, mode: str, instructions: str) -> None:
    skip_unless_available(instructions)
    environment = os.environ | {
        "HRRL_CPU_CAPABILITY": instructions,
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    done = subprocess.run([str(threads), mode], capture_output=True, text=True, env=environment)
    if mode == "apart":
        assert done.returncode == 0, done.stderr[-4000:]
    else:
        assert "WARNING: ThreadSanitizer: data race" in done.stderr
