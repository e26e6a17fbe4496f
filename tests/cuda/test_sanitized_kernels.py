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
from emulated import FLOAT_ALONE, Emulation

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
        "(kernels_pass or bad_targets or bad_concepts or any_alignment or _distribution or backward_of"
        " or any_type) and not 100400"
    )
    files = sorted(map(str, HERE.glob("test_emulated_*.py")))
    result = run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection, *files])
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout


MUTANTS = [
    ("perturb.cu", "(end < size ? end : size)", "end", "heap-buffer-overflow"),
    ("perturb.cu", "kSliceHeader + static_cast", "static_cast", "heap-buffer-overflow"),
    ("scalar.cuh", "% bytes == 0", "% bytes < 999", "misaligned address"),
    ("concept_cross_entropy.cu", "valid ? to_acc", "true ? to_acc", "AddressSanitizer"),
    ("chi_square_response.cu", "? 2 * sizeof(double)", "? sizeof(double)", "heap-buffer-overflow"),
    ("score_tile.cuh", "n < rows_ && left_", "left_", "heap-buffer-overflow"),
    ("pair_gradients.cu", "other < others ? other_rows", "true ? other_rows", "AddressSanitizer"),
    ("mix_chains.cu", "(x[place(e, c)])", "(x[place(e, c) + 9])", "heap-buffer-overflow"),
    ("rank1.cu", "(i >= a.batch", "(i > a.batch", "heap-buffer-overflow"),
]
# A process per mutant, for it ends there; they share what torch takes to be imported.
SCRIPT = """
import os, sys
from pathlib import Path
import torch
from cases import ConceptCase
from emulated import Emulation
for folder, file in zip(sys.argv[1::2], sys.argv[2::2]):
    kernels = Emulation(Path(folder), Path(folder) / "csrc", "-O0")
    if child := os.fork():
        print("ended by", os.waitpid(child, 0)[1], file=sys.stderr)
        print("--- next mutant", file=sys.stderr, flush=True)
        continue
    if file == "rank1.cu":
        one = torch.ones(1, 1, 5, 1)
        kernels.rank1_dot(torch.zeros(1, 5, dtype=torch.float64), one, one)
    elif file == "pair_gradients.cu":
        one, id = torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)
        kernels.pair_gradients(one, one, id, id + 2**40, torch.ones(1), False)
    elif file == "score_tile.cuh":
        one, id = torch.ones(5, 3), torch.arange(5)
        kernels.hardest_negatives(one, one, id, id, False)
    elif file == "mix_chains.cu":
        nothing = torch.full((1, 1, 1), -1), torch.zeros(1, 1, 1, 6).double()
        kernels.mix_chains(torch.ones(1, 1, 3, 3), *nothing, torch.ones(1, 1), torch.ones(1))
    elif file == "chi_square_response.cu":
        kernels.chi_square_response(torch.ones(700), torch.ones(700), 1.0)
    elif file != "concept_cross_entropy.cu":
        kernels.perturb(torch.ones(1, 40008), torch.ones(1, 40008), 1.0, offset=1)
    else:
        arguments = ConceptCase(5, 10, 3).arguments()
        arguments["target"][3] = 2**40
        kernels.concept_cross_entropy(**arguments)
    os._exit(0)
"""


def test_sanitizers_notice(changed: Callable[..., Emulation]) -> None:
    arguments: list[str] = []
    for file, text, replacement, _ in MUTANTS:
        arguments += [str(changed(FLOAT_ALONE, (file, text, replacement)).folder), file]
    reports = run(["-c", SCRIPT, *arguments]).stderr.split("--- next mutant\n")[:-1]
    assert len(reports) == len(MUTANTS)
    for report, (*_, message) in zip(reports, MUTANTS, strict=True):
        assert "ended by 0" not in report
        assert message in report
