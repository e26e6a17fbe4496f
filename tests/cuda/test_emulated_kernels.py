"""The emulated CUDA kernels against themselves and the CPU: races, determinism, agreement; and
whether the tests of the emulated kernels would notice a mistake.

No GPU is needed. What only a GPU can show is in test_cuda.py.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import kernel_cases as kc
import mix_cases
import pytest
import torch
from cases import EPS, FLOATS, ConceptCase, PointCase, ProductCase, ResponseCase, gradients, images
from emulated import (
    FLOAT_ALONE,
    SANITIZE,
    Device,
    Emulation,
    EmulationError,
    RedZoneError,
    build,
    same_bits,
)
from hardest_cases import SIMILARITIES, HardestCase
from hinge_cases import HingeCase, PairCase
from info_nce_cases import check as check_negatives
from info_nce_cases import problem as negatives
from kernel_cases import NAN, ConceptResult
from stored_cases import CODES, check_moved, check_stored, kept
from torch import Tensor

from hrrl_ext.ops import IMAGE_OPERATIONS, reference

ORDERS = [1, 2]  # backwards, shuffled; 0 is as numbered
WIDE = Device(16)
APART = Device(16, clusters=False)
OLDER = Device(16, architecture=80)  # has clusters, but the kernels have no instructions for them
SCARCE = Device(2, clusters=False, blocks_at_once=1)  # has room for less than launchers ask for

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
        if size < 10000:
            results += [emulation.chi_square_response(gain, q0, 0.0, 0.5, 3.0)]
    for size in (1, 30, 700, 5000):
        product = ProductCase(4, 2, 30, size, whole=False)
        results += [emulation.rank1_dot(**product.arguments())]
        results += emulation.rank1_argmin(**PointCase(9, size + 1).arguments(), rtol=1e-3)
    for similarity in SIMILARITIES:
        hardest = HardestCase(70, 131, 19, similarity)
        results += emulation.hardest_negatives(*hardest.arguments(), similarity == "order")
        pairs = PairCase(5, 4, 131, 200, similarity)
        results += emulation.pair_gradients(*pairs.arguments(), similarity == "order")  # type: ignore[call-arg]
    results += emulation.hinge_coefficients(*HingeCase(70, 131, 19).arguments())
    query, key, queue = (t.detach() for t in negatives(70, 200, 130))
    results += emulation.info_nce(query, key, queue, 0.1)
    for x, program, _ in mix_problems():
        results += [emulation.mix_chains(x, *program)]
    for code in CODES:
        z = kept((30, 41), code, padding=3)
        results += [emulation.perturb_stored(images(4, 3, 30, 41), z, 0.3)]
        results += emulation.store_directions(z, gradients(4, 3, 30, 41))
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
    loss, q0 = ResponseCase.draw(77)
    want = cpu.chi_square_response(loss, q0, 0.1, 0.7, 4.0)
    kc.close(emulation.chi_square_response(loss, q0, 0.1, 0.7, 4.0), want, rtol=1e-12, atol=0)
    q, gain, q0 = kc.simplex_input(3, 50, torch.float64).softmax(1)
    for size in (1, 77, 1111):
        a = ProductCase(3, 2, 5, size, whole=False).arguments()
        got = emulation.rank1_dot(**a)
        cpu.rank1_dot(*a.values())
        kc.close(got, a["cross"], rtol=0, atol=1e-11)
        points = PointCase(9, size + 1).arguments()
        nearest = emulation.rank1_argmin(**points, rtol=2.0**-5)
        for got, want in zip(nearest, cpu.rank1_argmin(*points.values(), 2.0**-5), strict=True):
            assert torch.equal(got, want)
    for order in (False, True):
        image, caption = (
            gradients(70, 19, dtype=torch.float64),
            gradients(66, 19, dtype=torch.float64),
        )
        groups = torch.arange(70), torch.arange(66)
        found = emulation.hardest_negatives(image, caption, *groups, order)
        for got, want in zip(
            found, cpu.hardest_negatives(image, caption, *groups, order), strict=True
        ):
            kc.close(got, want, rtol=1e-13, atol=0)
        weight = image[:66, 0].contiguous()
        chosen = (image, caption, groups[0][:66], groups[1], weight, order)
        for got, want in zip(
            emulation.pair_gradients(*chosen), cpu.pair_gradients(*chosen), strict=True
        ):
            kc.close(got, want, rtol=1e-13, atol=1e-15)
    side = [image[:, 1].contiguous(), caption[:, 1].contiguous()]
    given = (image, caption, *side, *(t.abs() for t in side), *groups)
    for got, want in zip(
        emulation.hinge_coefficients(*given), cpu.hinge_coefficients(*given), strict=True
    ):
        kc.close(got, want, rtol=1e-12, atol=0)
    for code in CODES:
        z, x, grad = kept((9, 12), code), images(4, 3, 9, 12), gradients(4, 3, 9, 12)
        moved = cpu.perturb_stored(x, *z.arguments, 0.3, z.padding, 1)
        kc.close(emulation.perturb_stored(x, z, 0.3), moved, 2 * EPS[torch.float32], atol=1e-7)
        stored = emulation.store_directions(z, grad)
        cpu.store_directions(z.values, z.scale, grad, z.row, z.view, z.padding, 1)
        check_stored((z.values, z.scale), stored)
    want = cpu.update_distribution(q, gain, q0, 5.0, 0.1)
    kc.close(emulation.update_distribution(q, gain, q0, 5.0, 0.1), want, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------
# Would these tests notice?


def check_everything(emulation: Emulation, operator: str) -> None:
    """A short round of the tests above. What is read and written depends on no order."""
    for emulation.seed in (0,) if SANITIZE else (0, 1):
        for emulation.device in (WIDE, APART, OLDER, SCARCE):
            CHECKS[operator](emulation)


def check_perturb(emulation: Emulation) -> None:
    for size in (33, 2008, 18816, 18828, 40009):
        x, grad = kc.perturb_input(3, size, torch.float32)
        kc.check_perturb(x, grad, 0.37, None, *emulation.perturb(x, grad, 0.37))


def check_concept_cross_entropy(emulation: Emulation) -> None:
    for case in (
        *(ConceptCase(1030, 3, 40), ConceptCase(37, 10, 5)),
        ConceptCase(37, 1500, 1100, label_smoothing=0.1),
    ):
        arguments = case.arguments()
        result = emulation.concept_cross_entropy(**arguments, label_smoothing=case.label_smoothing)
        kc.check_concept_cross_entropy(case, arguments, ConceptResult(*result))
    arguments["concept"][3] = -1
    assert emulation.concept_cross_entropy(**arguments)[0].isnan()
    for factor in (1.0, -3.0):
        kc.check_scaled(emulation.scale_gradient, torch.linspace(-1, 1, 1003), factor)


def check_project_simplex(emulation: Emulation) -> None:
    for size in (11, 1000, 12539, 100_289):
        v = kc.simplex_input(3 if size < 2000 else 2, size, torch.float32)
        v[0, : size // 2] -= 0.9  # what holds for one part of a row does not for the others
        kc.check_simplex(v, 1.0, emulation.project_simplex(v))


def check_chi_square_response(emulation: Emulation) -> None:
    for size in (11, 300, 6200):
        loss, q0 = ResponseCase.draw(size)
        for case in (ResponseCase(0.1), ResponseCase(0.0, 0.7, 3.0), ResponseCase(0.0, None, 2.5)):
            rho, cap = (torch.inf if v is None else v for v in (case.rho, case.max_weight))
            case.check(loss, q0, emulation.chi_square_response(loss, q0, case.lam, rho, cap))
    # Differences far below the range, a ball with room for those that tie, and no share for 1.7e308
    loss, q0 = torch.tensor([0.0, 1.0, 1.0 + 1e-12, 9.0, 99.0]).double(), torch.ones(5).double() / 4
    q0[4] = 0.0
    loss[2] = 1.0 + 2.0**-40
    q = emulation.chi_square_response(loss, q0, 2.0**-41, torch.inf, 2.0)
    kc.close(q, torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0]), rtol=0, atol=1e-15)
    tied = torch.tensor([1.0, 1.5, 1.5, 1.5, 1.7e308], dtype=torch.float64)
    q = emulation.chi_square_response(tied, q0, 0.0, 5.0, torch.inf)
    kc.close(q, torch.tensor([0.0, 1, 1, 1, 0.0]).double() / 3, rtol=0, atol=1e-15)
    q0[3] = -0.25
    assert emulation.chi_square_response(tied, q0, 1.0).isnan().all()


def check_rank1(emulation: Emulation) -> None:
    for shape in ((3, 3, 100, 1), (5, 2, 7, 30), (2, 2, 5, 68), (1, 3, 2, 700)):
        product = ProductCase(*shape)
        arguments = product.arguments()
        product.check(arguments, emulation.rank1_dot(**arguments))
    for batch, clusters, spread in ((100, 16, 300), (33, 9, 2), (33, 100, 2), (33, 2000, 2)):
        points = PointCase(batch, clusters, spread=spread)
        got = emulation.rank1_argmin(**points.arguments(), rtol=2.0**-3)
        for result, expected in zip(got, points.nearest(2.0**-3), strict=True):
            assert torch.equal(result, expected)
        arguments = points.arguments()
        arguments["cross"][5, 8], arguments["cross"][7, 0] = NAN, torch.inf
        assignment = emulation.rank1_argmin(**arguments, rtol=0.0)[0]
        assert (assignment < 0).nonzero().flatten().tolist() == [5, 7]
    arguments["weight"][:] = 1.0
    arguments["square"][:] = arguments["centre_square"][:] = 1e308
    arguments["cross"][:] = 5e307  # the distance is finite, the size of its terms is not
    assert (emulation.rank1_argmin(**arguments, rtol=0.5)[0] == -1).all()
    arguments["cross"][:], arguments["square"][:], arguments["centre_square"][:] = 0.0, 1.0, 1.0
    arguments["cross"][:, 2], arguments["cross"][:, 3] = 1.25, 1.5  # rounding, exaggerated
    got = emulation.rank1_argmin(**arguments, rtol=0.0)
    assert [set(t.tolist()) for t in got] == [{2}, {0.0}, {0.0}]


def check_stored_directions(emulation: Emulation) -> None:
    for code, padding, resolution in itertools.product(CODES, (0, 3), (1, 2)):
        z = kept((19, 33), code, padding, resolution)
        x, grad = (make(4, 3, 19, 33) for make in (images, gradients))
        check_moved(x, z.exact(x, 0.7), emulation.perturb_stored(x, z, 0.7))
        x = x.contiguous(memory_format=torch.channels_last)
        check_moved(x, z.exact(x, 0.7), emulation.perturb_stored(x, z, 0.7))
        z.row[1], grad[3, 0, 9, 9] = 6, NAN
        assert emulation.perturb_stored(x, z, 0.7)[1].isnan().all()
        got, z.row, z.view = emulation.store_directions(z, grad), z.row[[0, 2]], z.view[[0, 2]]
        check_stored(z.expected(grad[[0, 2]]), got, z.row)


def check_hardest_negatives(emulation: Emulation) -> None:
    for shape in ((65, 130, 33), (2080, 2, 1), (3, 2113, 1)):
        for similarity in SIMILARITIES:
            case = HardestCase(*shape, similarity)
            case.check(emulation.hardest_negatives(*case.arguments(), similarity == "order"))
    image, caption, *groups = HardestCase(65, 70, 9).arguments()
    image[64, 0] = NAN
    for order in (False, True):
        got = emulation.hardest_negatives(image, caption, *groups, order=order)  # type: ignore[misc]
        met = groups[0][64] != groups[1]
        assert got[0][64] == -1 and got[1][64].isnan() and got[1].isnan().sum() == 1
        assert torch.equal(got[3].isnan(), met) and torch.equal(got[2] == -1, met)


def check_hinge_coefficients(emulation: Emulation) -> None:
    for shape in ((65, 130, 17), (3, 1, 2)):
        case = HingeCase(*shape)
        case.check(emulation.hinge_coefficients(*case.arguments()))
    image, *others = HingeCase(65, 3, 4).arguments()
    image[64, 0] = NAN
    assert emulation.hinge_coefficients(image, *others)[0].isnan()


def check_pair_gradients(emulation: Emulation) -> None:
    for similarity in SIMILARITIES:
        case = PairCase(3, 2, 131, 600, similarity)
        case.check(emulation.pair_gradients(*case.arguments(), similarity == "order"))  # type: ignore[call-arg]
    image, caption, row, column, weight = PairCase(3, 2, 5, 2).arguments()
    row[:], column[:], weight[:] = torch.tensor([0, 7]), 1, 1.0
    to_image, to_caption = emulation.pair_gradients(image, caption, row, column, weight, False)
    assert to_caption[1].isnan().all() and to_image.isfinite().all()


@functools.cache
def mix_problems() -> list[tuple[Tensor, mix_cases.Program, Tensor]]:
    """With what the specification makes of them, for which most of the time goes."""
    problems, some = [], [0, 7, 13, 15, 19, 21]
    for name in IMAGE_OPERATIONS:
        x, program = mix_cases.images(9, 13)[some], mix_cases.alone(name, 9, 13)
        problems.append((x, tuple(t[some] for t in program)))
    grey = mix_cases.as_kind(mix_cases.images(9, 13, 1), torch.float32)[some]
    paper, every, _ = mix_cases.chains(9, 13)
    last = mix_cases.laid_out(mix_cases.images(9, 13)[some], channels_last=True)
    for x, program in ((grey, every), (last, paper)):
        problems.append((x, tuple(t[some] for t in program)))
    many, program = mix_cases.images(39, 46)[:10], next(mix_cases.chains(39, 46))  # in a workspace
    problems.append((many, tuple(t[:10] for t in program)))
    dark = torch.tensor([NAN, -3.0, 3.0]).view(1, 1, 1, 3)
    nothing = torch.full((1, 1, 1), -1), torch.zeros(1, 1, 1, 6).double(), torch.ones(1, 1)
    problems.append((dark, (*nothing, torch.tensor([0.5]))))
    ties = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8)
    problems.append((ties, (*nothing[:2], torch.zeros(1, 1), torch.tensor([0.5]))))
    return [(x, program, reference.mix_chains(x, *program)) for x, program in problems]


def check_mix_chains(emulation: Emulation) -> None:
    for x, program, want in mix_problems():
        kc.close(emulation.mix_chains(x, *program), want, rtol=0, atol=0)


def check_info_nce(emulation: Emulation) -> None:
    for shape in ((66, 130, 20), (2, 200, 130), (2, 8257, 3)):
        query, key, queue = (t.detach() for t in negatives(*shape))
        check_negatives((query, key, queue), 0.1, *emulation.info_nce(query, key, queue, 0.1))


CHECKS = {
    "info_nce": check_info_nce,
    "mix_chains": check_mix_chains,
    "hinge_coefficients": check_hinge_coefficients,
    "pair_gradients": check_pair_gradients,
    "hardest_negatives": check_hardest_negatives,
    "perturb": check_perturb,
    "concept_cross_entropy": check_concept_cross_entropy,
    "project_simplex": check_project_simplex,
    "chi_square_response": check_chi_square_response,
    "rank1": check_rank1,
    "stored": check_stored_directions,
}
REDUCE, BLOCKS = ("reduce.cuh", "concept_cross_entropy"), ("blocks.cuh", "project_simplex")
PERTURB = ("perturb.cu", "perturb")
CONCEPTS, CLASS_ROW, SCALE = (
    (file, "concept_cross_entropy")
    for file in ("concept_cross_entropy.cu", "class_row.cuh", "scale_gradient.cu")
)
SIMPLEX = ("project_simplex.cu", "project_simplex")
CHI = ("chi_square_response.cu", "chi_square_response")
GAME = ("../common/chi_square.h", "chi_square_response")
RANK1 = ("rank1.cu", "rank1")
STORED = ("stored.cu", "stored")
HARDEST = ("hardest_negatives.cu", "hardest_negatives")
SCORES = ("score_tile.cuh", "hardest_negatives")
INFO_NCE = ("info_nce.cu", "info_nce")
HINGES = ("hinge_coefficients.cu", "hinge_coefficients")
PAIRS = ("pair_gradients.cu", "pair_gradients")
MIX, PIXELS = ("mix_chains.cu", "mix_chains"), ("../common/pixels.h", "mix_chains")
BARRIER = "__syncthreads();\n"
DEVICE_P, DEVICE_S = (("device.cuh", operator) for operator in ("perturb", "project_simplex"))
LIMIT = "room - static_cast<int>(attributes.sharedSizeBytes)"
MUTANTS = {  # name: ((file, the operator that shows it), text, its replacement)
    "barrier after an operation": (MIX, "function(e);\n  __syncthreads();", "function(e);"),
    "barrier after the zeros": (MIX, "counts[v] = 0;\n  __syncthreads();", "counts[v] = 0;"),
    "barrier after the tables": (
        *(
            MIX,
            "below += counts[v];\n    }\n  }\n  __syncthreads();",
            "below += counts[v];\n    }\n  }",
        ),
    ),
    "histogram of one channel": (
        MIX,
        "counts[c][channel(from[e], c)]",
        "counts[c][channel(from[e], 0)]",
    ),
    "scan of the bins": (MIX, "offset < kWarpSize; offset *= 2", "offset < kWarpSize; offset *= 4"),
    "the lowest level of all": (MIX, "found.low = Warp::reduce(found.low, Min{});", "{}"),
    "place in a channel": (
        MIX,
        "e / image.width * p.shape.of_row",
        "e / image.height * p.shape.of_row",
    ),
    "a flip of the first image": (MIX, "const bool flip = box[4] > 0;", "const bool flip = false;"),
    "sides of an affine": (
        *(MIX, "inside(across, width) && inside(down, height)"),
        "inside(across, height) && inside(down, width)",
    ),
    "sharpness at the edge": (MIX, "x > 0 && x < image.width - 1", "x >= 0 && x < image.width - 1"),
    "blur at the edge": (MIX, "at + k < 0 ? 0 : ", ""),
    "a picture that is read and written": (
        *(
            MIX,
            "now == pictures[0] ? pictures[1] : pictures[0];\n        word* const made",
        ),
        "pictures[0];\n        word* const made",
    ),
    "images of a block": (MIX, "i < p.batch; i += gridDim.x", "i < p.batch; i += p.batch"),
    "a grey image": (MIX, "pixel * 0x010101u", "pixel"),
    "share of a level": (MIX, "1.0f : static_cast<float>(1.0 / 255)", "1.0f : 1.0f"),
    "what passes the top": (MIX, "v > kTop ? kTop : v", "v + 0 * kTop"),
    "ties of a level": (PIXELS, "(v + 12582912.0f) - 12582912.0f", "floorf(v + 0.5f)"),
    "one level alone": (PIXELS, "if (low == high) return level;", ""),
    "the edge of a place": (PIXELS, "number > 0 ? number - 1 : 0", "number - 1 + 0 * size"),
    "half a pixel": (PIXELS, "(pixel + 0.5) * part.per - 0.5", "pixel * part.per"),
    "the turn of a circle": (PIXELS, "turn < 1.0 ? turn : turn - 1.0", "turn"),
    "the part of a pixel at the end of a box": (PIXELS, "far * box.far", "0 * far"),
    "the lowest of equal negatives": (HARDEST, "whose < index", "whose > index"),
    "a NaN that is passed over": (HARDEST, "|| value != value)", ")"),
    "negatives of the same group": (
        *(HARDEST, " || a.image_group[at_i] == a.caption_group[at_j]", ""),
    ),
    "rows that are not there": (HARDEST, "at_i >= a.images || ", ""),
    "columns that are not there": (HARDEST, "at_j >= a.captions || ", ""),
    "entries that are not there": (SCORES, " && left_ > 0 ? to", " ? to"),
    "a tile that is written too early": (
        *(SCORES, "__syncthreads();  // they are free", "// they are free"),
    ),
    "a tile that is read too early": (
        *(SCORES, "__syncthreads();  // all of them", "// all of them"),
    ),
    "candidates that are read too early": (
        HARDEST,
        "  __syncthreads();\n  const int64_t at = first",
        "  const int64_t at = first",
    ),
    "candidates that are written too early": (
        HARDEST,
        "__syncthreads();  // the cand",
        "// the cand",
    ),
    "ranges that are not cleared": (HARDEST, "clear(of_caption", "if (false) clear(of_caption"),
    "the root of the distance": (HARDEST, "a.order ? -sqrt", "false ? -sqrt"),
    "a square with a sign": (SCORES, "if (!(beyond <= 0)) ", ""),
    "logits of rows that are not there": (INFO_NCE, "= there ? logit", "= there || true ? logit"),
    "rows of the queue that are not there": (
        INFO_NCE,
        "row < rows ? *from",
        "row < rows || true ? *from",
    ),
    "a sum that does not fade": (INFO_NCE, "sum[i] *= fade;", "sum[i] *= 1 + 0 * fade;"),
    "rows that do not fade": (INFO_NCE, "entry *= fade;", "entry *= 1 + 0 * fade;"),
    "the highest logit of a thread": (INFO_NCE, "higher = Across::reduce(higher, Max{});", ""),
    "rows that are read too early": (INFO_NCE, "__syncthreads();  // they are there", ""),
    "rows that are written too early": (INFO_NCE, "__syncthreads();  // they are free", "//"),
    "weights that are read too early": (INFO_NCE, "__syncthreads();  // the weights", "//"),
    "columns that nobody has": (INFO_NCE, "if (d < a.size) parts", "parts"),
    "the columns of another block": (INFO_NCE, "if (slice + 1 < parts.slices) {", "if (false) {"),
    "ranges that are merged too early": (INFO_NCE, "  wait_for_launch_before();\n", ""),
    "hinges within a group": (*(HINGES, "if (image.group != caption.group) {", "{"),),
    "hinges that are not there": (HINGES, " || !caption.there) continue", ") continue"),
    "a hinge of exactly 0": (HINGES, "of_pair > 0 ? c", "of_pair >= 0 ? c"),
    "a NaN that has no hinge": (HINGES, "v <= 0 ? 0 : v", "v > 0 ? v : 0"),
    "a tile's last row of sums": (HINGES, "side < (of_images", "side + 1 < (of_images"),
    "pairs that are none": (PAIRS, "other < 0 || ", ""),
    "pairs that are read too early": (PAIRS, "__syncthreads();  // all of it", "// all of it"),
    "pairs that are written too early": (PAIRS, "__syncthreads();  // everybody", "// everybody"),
    "an index that is too large": (PAIRS, "other < others ? scale_of(n) : NAN", "scale_of(n)"),
    "the distance of a pair": (
        PAIRS,
        "square == 0 ? 0 : weight / sqrt",
        "false ? 0 : weight * sqrt",
    ),
    "the sign of a caption's gradient": (PAIRS, ": -beyond(", ": beyond("),
    "first barrier of a reduction": (
        *(REDUCE, BARRIER + "    if (lane == 0) partial", "if (lane == 0) partial"),
    ),
    "second barrier of a reduction": (REDUCE, BARRIER + "    // Every warp", "\n    // Every warp"),
    "half of a butterfly": (REDUCE, "offset = warps / 2", "offset = warps / 4"),
    "mask of the first team for all": (
        ("reduce.cuh", "rank1"),
        " % kWarpSize / kLanes * kLanes",
        " * 0",
    ),
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
    "barrier before a block leaves": (PERTURB, "wait_for_cluster();  // nobody", "{}  // nobody"),
    "sums read after a block may leave": (
        PERTURB,
        "    total = combine(split.slices, Total{}, Sum{}, [&](int64_t b) { return *in_block(",
        "    arrive_at_cluster();\n    total = combine(split.slices, Total{}, Sum{}, [&](int64_t b) { return *in_block(",
    ),
    "barrier after the tile": (CONCEPTS, "__syncthreads();  // the tile", "// the tile"),
    "barrier after the gradient": (
        CONCEPTS,
        "__syncthreads();  // the gradient",
        "// the gradient",
    ),
    "barrier after the segment": (CONCEPTS, "__syncthreads();  // the segment", "// the segment"),
    "barrier after the count": (CONCEPTS, "__syncthreads();  // everybody", "// everybody"),
    "blocks that counted before": (CONCEPTS, "*blocks_done(p) = 0;", "*blocks_done(p) = 1;"),
    "tail of a segment": (CONCEPTS, "left < kSegment ? left :", "left < kSegment ? left - 1 :"),
    "losses before the rows end": (
        CONCEPTS,
        "wait_for_launch_before();\n  for (int64_t i = threadIdx.x; i < examples; i += kSumBlock)\n",
        "for (int64_t i = threadIdx.x; i < examples; i += kSumBlock, wait_for_launch_before())\n",
    ),
    "sums that never wait": (CONCEPTS, "  wait_for_launch_before();\n", ""),
    "sums that cannot wait": (
        *(
            ("device.cuh", "concept_cross_entropy"),
            "compiled >= architecture",
            "compiled >= 0 * architecture",
        ),
    ),
    "concepts that do not exist": (CONCEPTS, "loss += sum;", "{}"),
    "smoothed mean of one thread": (
        *(
            CONCEPTS,
            "share * Team::reduce(row.behind(largest), Sum{})",
            "share * row.behind(largest)",
        ),
    ),
    "the target's entry by a neighbour": (
        *(CLASS_ROW, "Team::kSize == Team::rank()", "Team::kSize == (Team::rank() ^ 1)"),
    ),
    "a factor of 1": (SCALE, "if (factor == 1) return;", ""),
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
    "clusters by the device alone, perturb": (
        DEVICE_P,
        "compiled >= architecture",
        "compiled >= 0 * architecture",
    ),
    "clusters by the device alone, simplex": (
        DEVICE_S,
        "compiled >= architecture",
        "compiled >= 0 * architecture",
    ),
    "what another device answered": (
        *(DEVICE_S, "kept_[static_cast<size_t>(device)]", "kept_[0 * static_cast<size_t>(device)]"),
    ),
    "shared memory that is not asked for": (
        *(("kernel_launch.cuh", "perturb"), "allow_shared_memory<kKernel>();", "{}"),
    ),
    "room that counts without registers": (
        *(DEVICE_S, "multiprocessors()) * of_multiprocessor", "multiprocessors()) * 6"),
    ),
    "room without leave for shared memory": (
        *(DEVICE_S, "if (kSharedBytes > 0) allow_shared_memory<kKernel>();", "{}"),
    ),
    "shared memory of the device": (DEVICE_S, LIMIT, "room"),
    "shared memory of one launch": (
        ("kernel_launch.cuh", "project_simplex"),
        "if (shape.shared_bytes > 0) allow_shared_memory<kKernel>();",
        "cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),"
        " cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));",
    ),
    "sums of one thread": (
        CHI,
        "return BlockTeam::reduce(s, Sum{});\n  }\n\n  __device__ chi",
        "return s;\n  }\n\n  __device__ chi",
    ),
    "masses of one thread": (CHI, "return BlockTeam::reduce(c, Sum{});", "return c;"),
    "scatter of one thread": (
        CHI,
        "BlockTeam::reduce(s, Sum{});\n  }\n\n  __device__ static",
        "s;\n  }\n\n  __device__ static",
    ),
    "q0 over the losses": (CHI, "q0_(entries + a.size)", "q0_(entries)"),
    "entries that no thread visits": (
        CHI,
        "k < size_; k += blockDim.x) f(",
        "k + 1 < size_; k += blockDim.x) f(",
    ),
    "concepts without a share": (
        CHI,
        "q0_[k] > 0.0 ? (x_[k] - t) / length : 0.0",
        "(x_[k] - t) / length",
    ),
    "negative shares": (CHI, "&& q0 >= 0.0 ", ""),
    "the largest loss for the reference": (
        GAME,
        "low < high) {\n    double p",
        "false) {\n    double p",
    ),
    "losses that the cap leaves nothing for": (
        GAME,
        "cap * cut.mass >= range.mass",
        "cap * cut.mass >= 0.9 * range.mass",
    ),
    "a step of Newton alone": (GAME, "if (next == w.b ||", "if (true ||"),
    "a step to the ball alone": (
        GAME,
        "    sides = balance(concepts, range.mass, w);\n  }",
        "    sides = balance(concepts, range.mass, w);\n    return w;\n  }",
    ),
    "a bracket that does not shrink": (
        GAME,
        "next = low + (high - low) / 2;\n    if",
        "{}\n    if",
    ),
    "the ball without those at the edges": (
        GAME,
        "game.rho * game.rho - scatter.others",
        "game.rho * game.rho",
    ),
    "free weights about 1": (GAME, "sides.mass * (mean - 1.0)", "sides.mass * (mean - mean)"),
    "threads beyond the last sum": (RANK1, "i >= a.batch * clusters", "i > a.batch * clusters"),
    "teams beyond the last sum": (RANK1, "row >= a.batch", "row > a.batch"),
    "teams beyond the last example": (RANK1, "b >= a.batch", "b > a.batch"),
    "group of a product": (RANK1, "i + i / clusters * (a.groups - 1) * clusters", "i"),
    "group of a sum": (RANK1, "+ row / a.clusters * (a.groups - 1) * step", ""),
    "tail of the terms": (RANK1, "m < packs; m", "m + 1 < packs; m"),
    "read beyond the terms": (RANK1, "m < packs; m", "m <= packs; m"),
    "places of a pack": (
        RANK1,
        "for (int e = 1; e < kVec; ++e) total",
        "for (int e = 2; e < kVec; ++e) total",
    ),
    "sum of one thread": (RANK1, "Team::reduce(total[0], Sum{})", "total[0]"),
    "what the sums had before": (RANK1, "a.cross[row] += sum", "a.cross[row] = sum"),
    "all threads store": (RANK1, "if (Team::rank() == 0) a.cross", "a.cross"),
    "packs in rows of any length": (RANK1, "p.size % kVec == 0 && ", ""),
    "cut at zero": (RANK1, "raw > 0.0 ? raw : 0.0", "raw"),
    "second of a thread": (RANK1, "second = Min{}(second, Max{}(first, value));", "{}"),
    "second of a team": (
        *(
            RANK1,
            "Min{}(Max{}(a.first, b.first), Min{}(a.second, b.second))",
            "Min{}(a.second, b.second)",
        ),
    ),
    "defects of one thread": (RANK1, "a.defect + b.defect", "a.defect"),
    "a scale that is not finite": (RANK1, "(raw - raw) + (scale - scale)", "raw - raw"),
    "tail of the clusters": (RANK1, "k < clusters; k +=", "k + 1 < clusters; k +="),
    "place of one thread": (RANK1, "nearest = Team::reduce(nearest, Min{});", "{}"),
    "last and not first": (RANK1, "k < clusters && nearest == clusters; k", "k < clusters; k"),
    "tie margin": (RANK1, "lowest.first + a.rtol * s.scale", "lowest.first"),
    "side that a flip begins at": (
        STORED,
        "of.width - 1 - column : column",
        "of.width - column : column",
    ),
    "lines above the image": (STORED, "if (line < 0 || line", "if (line"),
    "columns beyond the image": (STORED, " || at >= of.width) return", ") return"),
    "bits of a sign": (STORED, ">> (p & 7)) & 1", ">> (p & 3)) & 1"),
    "norm of one thread": (
        STORED,
        "square = BlockTeam::reduce(square, Sum{});\n  const bool",
        "const bool",
    ),
    "a row that does not exist": (STORED, "number >= 0 && number < p.count", "number >= 0"),
    "what is not known": (STORED, "p.scale[number] > 0.0f && ", ""),
    "a row to be left out": (STORED, "if (number < 0 || number >= p.count) return;", "{}"),
    "block at the edge": (STORED, "first > shown ? first : shown", "first + 0 * shown"),
    "end of a block": (STORED, "last < limit ? last : limit", "limit + 0 * last"),
    "flip of a gradient": (STORED, "of.width - 1 - u : u", "u : u"),
    "lines of a view": (STORED, "(line - s.top)", "line"),
    "largest of one thread": (STORED, "found = BlockTeam::reduce(found, LargerOf{});", "{}"),
    "a value that is not finite": (STORED, "a.wrong + b.wrong", "a.wrong"),
    "signs that stay": (STORED, "(row[byte] & ~down) | up", "up"),
    "bits beyond the last": (STORED, "down = 0xffu << count", "down = 0"),
    "largest that stays": (STORED, "kept = BlockTeam::reduce(kept, Max{});", "kept = 0;"),
    "norm of what is stored": (
        *(STORED, "square = BlockTeam::reduce(square, Sum{});\n  kept", "kept"),
    ),
    "units of what stays": (STORED, "(bytes[v]) * of_old", "(bytes[v]) * (of_old > 0 ? 1 : 0)"),
    "scale of a row": (STORED, "p.scale[number] = static_cast<float>(unit)", "p.scale[number] = 1"),
    "barrier before the scale": (STORED, "__syncthreads();  // all have", "// all have"),
    "gap of a tie": (RANK1, "s.value() == lowest.first ? lowest.second", "true ? lowest.second"),
}


def outcome(check: Callable[[], None]) -> str:
    """What a check comes to in a process of its own: a broken kernel reads and writes where nothing is."""
    torch.testing.assert_close(0.0, 0.0)  # imports much, which every child would do again
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            return signal.Signals(os.WTERMSIG(status)).name
        return {0: "passed", 1: "failed"}.get(os.WEXITSTATUS(status), "did not run")
    status = 2
    try:
        faulthandler.disable()  # the parent tells
        signal.alarm(300)  # a kernel that never ends
        torch.set_num_threads(1)  # those of the process before stayed there
        check()
        status = 0
    except (AssertionError, EmulationError):
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(changed: Callable[..., Emulation], name: str) -> None:
    (file, operator), text, replacement = MUTANTS[name]
    mutated = changed(FLOAT_ALONE, (file, text, replacement))
    mix_problems()  # for all that come after
    found = outcome(lambda: check_everything(mutated, operator))
    assert found in ("failed", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE")


def test_an_outcome_is_told() -> None:
    def check(error: BaseException | None) -> None:
        if error is not None:
            raise error

    assert outcome(lambda: check(None)) == "passed"
    assert (
        outcome(lambda: check(RedZoneError()))
        == outcome(lambda: check(EmulationError()))
        == "failed"
    )
    assert outcome(lambda: check(RuntimeError("it does not compile"))) == "did not run"
    assert outcome(lambda: os.kill(os.getpid(), signal.SIGSEGV)) == "SIGSEGV"


@pytest.mark.parametrize("operator", CHECKS)
def test_what_mutants_fail_the_kernels_pass(
    emulation: Emulation, changed: Callable[..., Emulation], operator: str
) -> None:
    # Under the sanitizers those that have been compiled, for every type.
    kernels = emulation if SANITIZE else changed(FLOAT_ALONE, level="-O1")
    with emulation.on(WIDE):
        check_everything(kernels, operator)


@pytest.mark.usefixtures("emulation")  # skips where there is no g++
def test_emulation_reports_broken_rules(tmp_path: Path) -> None:
    library = build("faulty_kernels", tmp_path)
    calls = ("run_fault", "run_cluster_fault", "run_shape", "sum_with_race", "pass_on")
    for name in calls:
        getattr(library, name).restype = ctypes.c_char_p
    waits = "not reached"
    expected = [waits, waits, waits, "leaves it out", "outside the mask", waits]
    for fault, message in enumerate(expected):
        library.reset(0, 4, 1, 1, 90, 32)
        assert message in library.run_fault(fault).decode()
    beyond = "beyond its dynamic shared memory"
    expected = [waits, "has not begun", "has left", "no such block", beyond, "not cooperative"]
    for fault, message in enumerate(expected):
        library.reset(0, 4, 1, 1, 90, 32)
        assert message in library.run_cluster_fault(fault).decode()
    for shape, device, refusal in (
        ((0, 32, 1, 0), (4, 1, 1), "needs blocks"),
        ((1, 48, 1, 0), (4, 1, 1), "whole warps"),
        ((3, 32, 2, 0), (4, 1, 1), "whole clusters"),
        ((2, 32, 2, 0), (4, 0, 1), "whole clusters"),
        ((5, 1024, 1, 1), (4, 1, 1), "room"),
        ((2, 32, 1, 1), (4, 1, 0), "room"),
        ((4, 1024, 1, 1), (4, 1, 1), None),
        ((4, 512, 1, 1), (2, 1, 1, 90, 1), "room"),
    ):
        library.reset(0, *device, *(90, 32)[len(device) - 3 :])
        failure = library.run_shape(*shape)
        assert failure is None if refusal is None else refusal in failure.decode()
    sums = []
    for seed in (0, 1, 5):
        library.reset(seed, 4, 1, 1, 90, 32)
        pair = (ctypes.c_int * 2)()
        assert library.sum_with_race(pair) is None
        sums.append(tuple(pair))
        passed_on = (ctypes.c_int * 4)()
        assert library.pass_on(passed_on) is None
        assert tuple(passed_on) == (3, 10, 21, 32)
    assert sums[0] == (1, 64)
    assert sums[1] == (64, 64)
    assert sums[2] not in sums[:2]
