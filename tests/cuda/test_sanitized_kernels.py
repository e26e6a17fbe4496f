"""The emulated kernels under the address and undefined-behaviour sanitizers, in their own process:
no read or write outside an array, no misaligned pack, no overflow, not even one without effect.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated import Emulation

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Python, started with the libraries of the sanitizers: all memory comes from them then."""
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip("g++ has no sanitizers here")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks at exit
        "HRRL_EMULATION_SANITIZE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.usefixtures("emulation")  # skips where there is no g++
def test_nothing_outside_the_arrays() -> None:
    selection = (
        "kernels_pass or bad_targets or bad_concepts or any_alignment or update_distribution"
    )
    files = sorted(map(str, HERE.glob("test_emulated_*.py")))
    result = run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection, *files])
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize(
    ("file", "text", "replacement", "message"),
    [
        ("perturb.cu", ": size - chunk * kChunk;", ": kChunk;", "heap-buffer-overflow"),
        ("scalar.cuh", "% bytes == 0", "% bytes < 999", "misaligned address"),
        ("concept_cross_entropy.cu", "valid ? to_acc", "true ? to_acc", "AddressSanitizer"),
    ],
)
def test_sanitizers_notice(
    mutant: Callable[[str, str, str], Emulation],
    tmp_path: Path,
    file: str,
    text: str,
    replacement: str,
    message: str,
) -> None:
    mutant(file, text, replacement)
    script = f"""
from pathlib import Path
import torch
from cases import ConceptCase
from emulated import Emulation
kernels = Emulation(Path({str(tmp_path)!r}), Path({str(tmp_path / "csrc")!r}))
if {file!r} != "concept_cross_entropy.cu":
    kernels.perturb(torch.ones(1, 40008), torch.ones(1, 40008), 1.0, offset=1)
else:
    arguments = ConceptCase(5, 10, 3).arguments()
    arguments["target"][3] = 2**40
    kernels.concept_cross_entropy(**arguments)
"""
    result = run(["-c", script])
    assert result.returncode != 0
    assert message in result.stderr
