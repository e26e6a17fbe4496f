"""The emulated CUDA kernels against themselves and the CPU: races, determinism, agreement; and
whether the tests of the emulated kernels would notice a mistake.

No GPU is needed. What only a GPU can show is in test_cuda.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import kernel_cases as kc
import pytest
import torch
from cases import EPS, FLOATS, ConceptCase
from emulated import Emulation, EmulationError, build, same_bits
from kernel_cases import NAN, ConceptResult
from torch import Tensor

ORDERS = [1, 2]  # backwards, shuffled; 0 is as numbered

pytestmark = pytest.mark.usefixtures("_numbered_order")


@pytest.fixture
def _numbered_order(emulation: Emulation) -> Iterator[None]:
    yield
    emulation.seed = 0


def all_results(emulation: Emulation) -> list[Tensor]:
    """Every kernel, with several warps per block and several blocks."""
    results: list[Tensor] = []
    for size in (100, 3001, 40000):
        results += emulation.perturb(*kc.perturb_input(9, size, torch.float32), 0.3)
        results += emulation.perturb(*kc.perturb_input(3, size, torch.float64), 0.3)
    for classes, concepts in ((10, 5), (200, 1100), (2000, 9)):
        case = ConceptCase(40, classes, concepts, label_smoothing=0.1)
        results += emulation.concept_cross_entropy(**case.arguments(), label_smoothing=0.1)
    for size in (100, 4000, 9000):
        v = kc.simplex_input(3, size, torch.float64)
        results += [emulation.project_simplex(v), emulation.project_simplex(v.bfloat16())]
        q, gain, q0 = v.softmax(1)
        results += [emulation.update_distribution(q, gain, q0, 3.0, 0.1)]
    return results


def test_bits_do_not_depend_on_the_order_of_threads(emulation: Emulation) -> None:
    expected = all_results(emulation)
    for emulation.seed in ORDERS:
        for got, want in zip(all_results(emulation), expected, strict=True):
            assert same_bits(got, want)


def test_agreement_with_the_cpu(emulation: Emulation) -> None:
    """Both stay within a bound of the exact result, so within twice the bound of each other."""
    pytest.importorskip("hrrl_ext", exc_type=ImportError)
    cpu = torch.ops.hrrl_ext
    for dtype in FLOATS:
        rtol = 2 * EPS[dtype]
        x, grad = kc.perturb_input(6, 777, dtype)
        grad[1], grad[2, 3], grad[3] = 0, NAN, grad[3] * 1e-6
        pairs = zip(emulation.perturb(x, grad, 0.2), cpu.perturb(x, grad, 0.2), strict=True)
        for got, want in pairs:
            kc.close(got, want, rtol, atol=EPS[dtype] / 4)
        arguments = ConceptCase(33, 37, 7, dtype).arguments()
        got_all = emulation.concept_cross_entropy(**arguments, label_smoothing=0.1)
        want_all = cpu.concept_cross_entropy(*arguments.values(), 0.1, True)
        for got, want in zip(got_all, want_all, strict=True):
            rounding = EPS[got.dtype] if got is got_all[3] else 0
            error = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
            kc.close(got, want, rounding + 40 * error, atol=40 * error)
        v = kc.simplex_input(4, 50, dtype)
        kc.close(emulation.project_simplex(v, 2.0), cpu.project_simplex(v, 2.0), rtol, atol=1e-14)
    q, gain, q0 = kc.simplex_input(3, 50, torch.float64).softmax(1)
    want = cpu.update_distribution(q, gain, q0, 5.0, 0.1)
    kc.close(emulation.update_distribution(q, gain, q0, 5.0, 0.1), want, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------
# Would these tests notice?


def check_everything(emulation: Emulation, operator: str) -> None:
    """A short round of the tests above."""
    for emulation.seed in (0, 1):
        if operator == "perturb":
            for size in (33, 2008, 40009):
                x, grad = kc.perturb_input(3, size, torch.float32)
                kc.check_perturb(x, grad, 0.37, None, *emulation.perturb(x, grad, 0.37))
        elif operator == "concept_cross_entropy":
            for case in (ConceptCase(37, 10, 5), ConceptCase(37, 1500, 1100, label_smoothing=0.1)):
                arguments = case.arguments()
                result = emulation.concept_cross_entropy(
                    **arguments, label_smoothing=case.label_smoothing
                )
                kc.check_concept_cross_entropy(case, arguments, ConceptResult(*result))
        else:
            for size in (11, 1000, 5003):
                v = kc.simplex_input(3, size, torch.float32)
                kc.check_simplex(v, 1.0, emulation.project_simplex(v))


REDUCE, PERTURB, CONCEPTS = "reduce.cuh", "perturb.cu", "concept_cross_entropy.cu"
SIMPLEX, BARRIER = "project_simplex.cu", "__syncthreads();\n"
MUTANTS = {  # name: (file, text, its replacement)
    "first barrier of a reduction": (
        *(REDUCE, BARRIER + "    if (lane == 0) partial", "if (lane == 0) partial"),
    ),
    "second barrier of a reduction": (REDUCE, BARRIER + "    // Every warp", "\n    // Every warp"),
    "half of a butterfly": (REDUCE, "offset = warps / 2", "offset = warps / 4"),
    "mask of the first team for all": (REDUCE, " % kWarpSize / kLanes * kLanes", " * 0"),
    "tail of a loop": (
        *(
            PERTURB,
            "        out_packs[i + u",
            "        if (i + u * size + 1 < end) out_packs[i + u",
        ),
    ),
    "length of the last chunk": (PERTURB, ": size - chunk * kChunk;", ": kChunk / 4;"),
    "row of a chunk": (PERTURB, "+ c.row * c.chunks", "+ c.row"),
    "barrier before the columns": (
        *(CONCEPTS, "bad_concept = __syncthreads_or(bad_concept);", ""),
    ),
    "barrier after the last block is known": (
        *(CONCEPTS, BARRIER + "  if (!last)", "\n  if (!last)"),
    ),
    "counter that starts anywhere": (CONCEPTS, "workspace_of(p)->finished = 0;", ""),
    "smoothed mean of one thread": (
        *(CONCEPTS, "shifted_sum = Team::reduce(shifted_sum, Sum{});", "{}"),
    ),
    "rounds of Newton": (SIMPLEX, "support.count >= last_count", "true"),
    "own entries only": (SIMPLEX, "cache[j] : source(j)", "cache[size - 1 - j] : source(j)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(mutant: Callable[[str, str, str], Emulation], name: str) -> None:
    file, text, replacement = MUTANTS[name]
    operator = "concept_cross_entropy" if file == REDUCE else file.removesuffix(".cu")
    with pytest.raises((AssertionError, EmulationError)):
        check_everything(mutant(file, text, replacement), operator)


def test_what_mutants_fail_the_kernels_pass(emulation: Emulation) -> None:
    for operator in ("perturb", "concept_cross_entropy", "project_simplex"):
        check_everything(emulation, operator)


@pytest.mark.usefixtures("emulation")  # skips where there is no g++
def test_emulation_reports_broken_rules(tmp_path: Path) -> None:
    library = build("faulty_kernels", tmp_path)
    library.run_fault.restype = library.sum_with_race.restype = ctypes.c_char_p
    waits = "not reached"
    expected = [waits, waits, waits, "leaves it out", "outside the mask", waits]
    assert library.number_of_faults() == len(expected)
    for fault, message in enumerate(expected):
        library.reset(0)
        assert message in library.run_fault(fault).decode()
    sums = []
    for seed in (0, 1, 5):
        library.reset(seed)
        pair = (ctypes.c_int * 2)()
        assert library.sum_with_race(pair) is None
        sums.append(tuple(pair))
    assert sums[0] == (1, 64)
    assert sums[1] == (64, 64)
    assert sums[2] not in sums[:2]
