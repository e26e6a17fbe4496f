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
from emulated import Device, Emulation, EmulationError, build, same_bits
from kernel_cases import NAN, ConceptResult
from torch import Tensor

ORDERS = [1, 2]  # backwards, shuffled; 0 is as numbered
WIDE = Device(16)
APART = Device(16, clusters=False)

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
    for size in (100, 4000, 13000, 101_000):
        v = kc.simplex_input(3 if size < 10000 else 1, size, torch.float64)
        results += [emulation.project_simplex(v), emulation.project_simplex(v.bfloat16())]
        q, gain, q0 = kc.simplex_input(3, size, torch.float64).softmax(1)
        results += [emulation.update_distribution(q, gain, q0, 3.0, 0.1)]
    return results


@pytest.mark.parametrize("device", [WIDE, APART], ids=["clusters", "grids"])
def test_bits_do_not_depend_on_the_order_of_threads(emulation: Emulation, device: Device) -> None:
    with emulation.on(device):
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
        for emulation.device in (WIDE, APART):
            CHECKS[operator](emulation)


def check_perturb(emulation: Emulation) -> None:
    for size in (33, 2008, 18828, 40009):
        x, grad = kc.perturb_input(3, size, torch.float32)
        kc.check_perturb(x, grad, 0.37, None, *emulation.perturb(x, grad, 0.37))


def check_concept_cross_entropy(emulation: Emulation) -> None:
    for case in (ConceptCase(37, 10, 5), ConceptCase(37, 1500, 1100, label_smoothing=0.1)):
        arguments = case.arguments()
        result = emulation.concept_cross_entropy(**arguments, label_smoothing=case.label_smoothing)
        kc.check_concept_cross_entropy(case, arguments, ConceptResult(*result))
    arguments["concept"][3] = -1
    assert emulation.concept_cross_entropy(**arguments)[0].isnan()


def check_project_simplex(emulation: Emulation) -> None:
    for size in (11, 1000, 12539, 100_289):
        v = kc.simplex_input(3 if size < 2000 else 2, size, torch.float32)
        v[0, : size // 2] -= 0.9  # what holds for one part of a row does not for the others
        kc.check_simplex(v, 1.0, emulation.project_simplex(v))


CHECKS = {
    "perturb": check_perturb,
    "concept_cross_entropy": check_concept_cross_entropy,
    "project_simplex": check_project_simplex,
}
REDUCE, BLOCKS = ("reduce.cuh", "concept_cross_entropy"), ("blocks.cuh", "project_simplex")
PERTURB = ("perturb.cu", "perturb")
CONCEPTS = ("concept_cross_entropy.cu", "concept_cross_entropy")
SIMPLEX = ("project_simplex.cu", "project_simplex")
BARRIER = "__syncthreads();\n"
MUTANTS = {  # name: ((file, the operator that shows it), text, its replacement)
    "first barrier of a reduction": (
        *(REDUCE, BARRIER + "    if (lane == 0) partial", "if (lane == 0) partial"),
    ),
    "second barrier of a reduction": (REDUCE, BARRIER + "    // Every warp", "\n    // Every warp"),
    "half of a butterfly": (REDUCE, "offset = warps / 2", "offset = warps / 4"),
    "mask of the first team for all": (REDUCE, " % kWarpSize / kLanes * kLanes", " * 0"),
    "tail of a loop": (
        *(PERTURB, "if (i + u * stride < end) use(", "if (i + u * stride + 1 < end) use("),
    ),
    "read beyond a loop": (
        *(PERTURB, "if (i + u * stride < end) use(", "if (i + u * stride <= end) use("),
    ),
    "read beyond a row": (
        *(PERTURB, "if (rank + u * size < end) add_", "if (rank + u * size <= end) add_"),
    ),
    "tail of a row": (
        *(PERTURB, "if (rank + u * size < end) out", "if (rank + u * size + 1 < end) out"),
    ),
    "length of the last slice": (PERTURB, "(end < size ? end : size)", "end"),
    "row of a slice": (PERTURB, "+ s.row * split.slices", "+ s.row"),
    "barrier before a cluster adds up": (PERTURB, "sync_cluster();  // the sums", "// the sums"),
    "barrier before a block leaves": (PERTURB, "sync_cluster();  // nobody", "{}  // nobody"),
    "barrier after the losses": (CONCEPTS, "sync_grid();  // all losses", "// all losses"),
    "barrier after slices of N": (
        *(CONCEPTS, "sync_grid();\n  return combine(slices", "return combine(slices"),
    ),
    "barrier of the block that sums": (CONCEPTS, "    " + BARRIER + "  else", "{}\n  else"),
    "barrier of the grid that sums": (CONCEPTS, "  else\n    sync_grid();", "  else {}"),
    "tail of a segment": (CONCEPTS, "left < kSegment ? left :", "left < kSegment ? left - 1 :"),
    "concepts that do not exist": (CONCEPTS, "loss += sum;", "{}"),
    "smoothed mean of one thread": (
        *(CONCEPTS, "shifted_sum = Team::reduce(shifted_sum, Sum{});", "{}"),
    ),
    "rounds of Newton": (SIMPLEX, "!(support.count < last_count)", "true"),
    "entries that stay": (SIMPLEX, "own[above++ * blockDim.x] = v;", "++above;"),
    "entries that others visit": (SIMPLEX, "own(shared + threadIdx.x)", "own(shared)"),
    "tail of a part": (SIMPLEX, "if (j + u * size < end) f(", "if (j + u * size + 1 < end) f("),
    "shift of a part": (SIMPLEX, "(low.max - high.max) + low.nu", "low.nu"),
    "slots that take turns, cluster": (
        BLOCKS,
        "dynamic_shared<T>() + turn;",
        "dynamic_shared<T>();",
    ),
    "slots that take turns, grid": (BLOCKS, "(workspace) + turn * size();", "(workspace);"),
    "barrier of an exchange, cluster": (BLOCKS, "sync_cluster();\n    return", "return"),
    "barrier of an exchange, grid": (BLOCKS, "sync_grid();\n    return", "return"),
    "barrier at the end of a cluster": (BLOCKS, "{ sync_cluster(); }", "{}"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(mutant: Callable[[str, str, str], Emulation], name: str) -> None:
    (file, operator), text, replacement = MUTANTS[name]
    with pytest.raises((AssertionError, EmulationError)) as caught:
        check_everything(mutant(file, text, replacement), operator)
    assert "has not exactly one" not in str(caught.value)


@pytest.mark.parametrize("operator", CHECKS)
def test_what_mutants_fail_the_kernels_pass(emulation: Emulation, operator: str) -> None:
    with emulation.on(WIDE):
        check_everything(emulation, operator)


@pytest.mark.usefixtures("emulation")  # skips where there is no g++
def test_emulation_reports_broken_rules(tmp_path: Path) -> None:
    library = build("faulty_kernels", tmp_path)
    calls = ("run_fault", "run_cluster_fault", "run_shape", "sum_with_race", "pass_on")
    for name in calls:
        getattr(library, name).restype = ctypes.c_char_p
    waits = "not reached"
    expected = [waits, waits, waits, "leaves it out", "outside the mask", waits]
    for fault, message in enumerate(expected):
        library.reset(0, 4, 1, 1)
        assert message in library.run_fault(fault).decode()
    expected = [waits, "has not begun", "has left", "no such block", "not cooperative"]
    for fault, message in enumerate(expected):
        library.reset(0, 4, 1, 1)
        assert message in library.run_cluster_fault(fault).decode()
    for shape, device, message in (
        ((0, 32, 1, 0), (4, 1, 1), "needs blocks"),
        ((1, 48, 1, 0), (4, 1, 1), "whole warps"),
        ((3, 32, 2, 0), (4, 1, 1), "whole clusters"),
        ((2, 32, 2, 0), (4, 0, 1), "whole clusters"),
        ((5, 1024, 1, 1), (4, 1, 1), "room"),
        ((2, 32, 1, 1), (4, 1, 0), "room"),
        ((4, 1024, 1, 1), (4, 1, 1), None),
    ):
        library.reset(0, *device)
        failure = library.run_shape(*shape)
        assert failure is None if message is None else message in failure.decode()
    sums = []
    for seed in (0, 1, 5):
        library.reset(seed, 4, 1, 1)
        pair = (ctypes.c_int * 2)()
        assert library.sum_with_race(pair) is None
        sums.append(tuple(pair))
        passed_on = (ctypes.c_int * 4)()
        assert library.pass_on(passed_on) is None
        assert tuple(passed_on) == (3, 10, 21, 32)
    assert sums[0] == (1, 64)
    assert sums[1] == (64, 64)
    assert sums[2] not in sums[:2]
