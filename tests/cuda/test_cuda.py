"""The CUDA operators on a GPU: the cases of the emulated kernels, and what only a GPU can show,
namely streams, graphs, synchronisation and scheduling that differs from run to run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import kernel_cases as kc
import mix_cases
import pytest
import torch
from cases import (
    EPS,
    FLOATS,
    RESPONSE_CASES,
    ConceptCase,
    PointCase,
    ProductCase,
    ResponseCase,
    gradients,
    images,
)
from hardest_cases import SIMILARITIES, HardestCase
from hinge_cases import HingeCase, PairCase
from info_nce_cases import check, problem
from kernel_cases import NAN, ConceptResult
from stored_cases import CODES, PADDED, SIDES, check_moved, check_stored, kept
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext._streams import Draws
from hrrl_ext.contrastive import info_nce
from hrrl_ext.data import RandomResizedCrop
from hrrl_ext.ops import Similarity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
kernels = torch.ops.hrrl_ext


def on_device(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(DEVICE) for name, t in arguments.items()}


def concepts_on_device(
    arguments: dict[str, Tensor], label_smoothing: float = 0.0, with_grad: bool = True
) -> ConceptResult:
    results = kernels.concept_cross_entropy(
        *on_device(arguments).values(), label_smoothing, with_grad
    )
    return ConceptResult(*(t.cpu() for t in results))


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [*kc.PERTURB_SIZES, 150_528, 1_000_001])
def test_perturb(size: int, dtype: torch.dtype) -> None:
    for batch in (1, 3, 70):
        if batch * size > 5_000_000:
            continue
        x, grad = kc.perturb_input(batch, size, dtype)
        if batch > 2:
            grad[1], grad[2, -1], x[1, 0] = 0, NAN, -0.0
        scale = torch.linspace(-1, 2, batch, dtype=torch.float64)
        out, norm = ops.perturb(x.to(DEVICE), grad.to(DEVICE), 0.37)
        kc.check_perturb(x, grad, 0.37, None, out.cpu(), norm.cpu())
        out, norm = ops.perturb(x.to(DEVICE), grad.to(DEVICE), scale.to(DEVICE))
        kc.check_perturb(x, grad, 1.0, scale, out.cpu(), norm.cpu())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("side", [3, 16, 40, 80])
def test_channels_last_is_not_copied(side: int, dtype: torch.dtype) -> None:
    last = torch.channels_last
    x = torch.rand(3, 3, side, side, dtype=torch.float32).to(dtype).to(memory_format=last)
    grad = torch.randn(3, 3, side, side).to(dtype).to(memory_format=last)
    out, norm = ops.perturb(x.to(DEVICE), grad.to(DEVICE), 0.37)
    assert out.is_contiguous(memory_format=last)
    rows = [t.cpu().permute(0, 2, 3, 1).reshape(3, -1) for t in (x, grad, out)]
    kc.check_perturb(rows[0], rows[1], 0.37, None, rows[2], norm.cpu())


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("size", [64, 2048, 32768])
def test_perturb_at_any_alignment(size: int, offset: int) -> None:
    for dtype in FLOATS:
        x, grad = kc.perturb_input(2, size, dtype)
        shifted = []
        for t in (x, grad):
            whole = torch.empty(offset + t.numel(), dtype=dtype, device=DEVICE)
            shifted.append(whole[offset:].view(t.shape).copy_(t))
        out, norm = ops.perturb(shifted[0], shifted[1], 0.5)
        kc.check_perturb(x, grad, 0.5, None, out.cpu(), norm.cpu())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("sides", [*SIDES, (32, 32), (224, 224)], ids=str)
@pytest.mark.parametrize(("padding", "resolution"), PADDED)
def test_stored_directions(
    sides: tuple[int, int], code: torch.dtype, padding: int, resolution: int, dtype: torch.dtype
) -> None:
    z = kept(sides, code, padding, resolution)
    values, scale, row, view = (t.to(DEVICE) for t in z.arguments)
    x, grad = images(4, 3, *sides, dtype=dtype), gradients(4, 3, *sides, dtype=dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        there = x.to(DEVICE, memory_format=layout)
        moved = ops.perturb_stored(there, values, scale, row, view, 0.7, **z.settings)
        check_moved(x, z.exact(x, 0.7), moved.cpu())
    ops.store_directions(values, scale, grad.to(DEVICE), row, view, **z.settings)
    check_stored(z.expected(grad), (values.cpu(), scale.cpu()), z.row)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", mix_cases.DTYPES, ids=str)
@pytest.mark.parametrize("sides", [*mix_cases.SIDES, (224, 224)], ids=str)
def test_mix_chains(sides: tuple[int, int], dtype: torch.dtype, channels_last: bool) -> None:
    """The bits of the CPU."""
    for channels in (1, 3):
        x = mix_cases.as_kind(mix_cases.images(*sides, channels), dtype)
        x = mix_cases.laid_out(x, channels_last)
        each = (mix_cases.alone(name, *sides) for name in ops.IMAGE_OPERATIONS)
        for program in (*each, *mix_cases.chains(*sides)):
            got = ops.mix_chains(x.to(DEVICE), *(t.to(DEVICE) for t in program))
            assert torch.equal(got.cpu(), ops.mix_chains(x, *program))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_resized_crops(dtype: torch.dtype) -> None:
    """Of other sides by products, of their own by the operator: sums of pixels may round to the level
    beside."""
    images = torch.randint(0, 256, (9, 3, 40, 31), dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images / 255
    for size in (16, (64, 50), None):
        crop = RandomResizedCrop(size=size)
        draws = [Draws.of_images(torch.arange(9), 0) for _ in range(2)]
        found, want = crop(images.to(DEVICE), draws[0]).cpu(), crop(images, draws[1])
        apart = (found.double() - want.double()).abs()
        assert apart.max() <= (1 if dtype == torch.uint8 else 1e-5)
        assert (apart > 1e-5).double().mean() <= 0.01


@pytest.mark.parametrize("case", kc.CONCEPT_CASES, ids=str)
def test_concept_cross_entropy(case: ConceptCase) -> None:
    arguments = case.arguments()
    result = concepts_on_device(arguments, case.label_smoothing)
    kc.check_concept_cross_entropy(case, arguments, result)


@pytest.mark.parametrize(
    "case",
    [
        *(ConceptCase(8192, 1000, 11, dtype) for dtype in FLOATS),
        ConceptCase(65536, 10, 11),
        ConceptCase(64, 32768, 5, torch.bfloat16, label_smoothing=0.1),
        ConceptCase(64, 32769, 5),
        ConceptCase(5000, 100, 10_000),
    ],
    ids=str,
)
def test_large_concept_cross_entropy(case: ConceptCase) -> None:
    arguments = case.arguments()
    result = concepts_on_device(arguments, case.label_smoothing)
    kc.check_concept_cross_entropy(case, arguments, result)


def test_gradient_reaches_the_logits() -> None:
    arguments = on_device(ConceptCase(33, 37, 7).arguments())
    grads = []
    for device in (DEVICE, "cpu"):
        moved = {name: t.to(device) for name, t in arguments.items()}
        moved["logits"].requires_grad_()
        ops.concept_cross_entropy(**moved).loss.mul(3.0).backward()
        assert moved["logits"].grad is not None
        grads.append(moved["logits"].grad.cpu())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_is_scaled_in_place_unless_it_is_kept(dtype: torch.dtype) -> None:
    arguments = on_device(ConceptCase(33, 37, 7, dtype).arguments())
    logits = arguments.pop("logits").requires_grad_()
    loss = ops.concept_cross_entropy(logits, **arguments).loss
    by = [loss.new_full((), factor) for factor in (1.0, 4.0, 1.0, 2.0)]
    with no_synchronisation():
        kept = [torch.autograd.grad(loss, logits, f, retain_graph=True)[0] for f in by]
        memory = torch.cuda.memory_allocated()
        (last,) = torch.autograd.grad(loss, logits, by[1])
        grown = torch.cuda.memory_allocated() - memory
    assert torch.equal(kept[0], kept[2]) and torch.equal(kept[3], 2 * kept[0])
    assert torch.equal(last, kept[1]) and torch.equal(last, 4 * kept[0])
    assert grown <= 0 or dtype == torch.float16  # which is rounded into new memory


@pytest.mark.parametrize("size", [0, 1, 2051, 1_000_001])
def test_scaled_gradient(size: int) -> None:
    def scale(gradient: Tensor, factor: Tensor) -> Tensor:
        moved = gradient.to(DEVICE)
        kernels._scale_gradient(moved, factor.to(DEVICE))
        return moved.cpu()

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for factor in (1.0, -3.0):
            kc.check_scaled(scale, torch.linspace(-1, 1, size, dtype=dtype), factor)


@pytest.mark.parametrize("classes", [10, 200, 1500])
@pytest.mark.parametrize("bad", [-1, 2**40, -(2**62)])
@pytest.mark.parametrize("name", ["target", "concept"])
def test_bad_labels_are_never_an_index(name: str, bad: int, classes: int) -> None:
    arguments = ConceptCase(9, classes, 4).arguments()
    arguments[name][6] = bad
    arguments = on_device(arguments)
    with no_synchronisation():
        results = kernels.concept_cross_entropy(*arguments.values(), 0.0, True)
    torch.cuda.synchronize()  # an illegal access would show here
    loss, _, example_loss, grad = results
    assert loss.isnan()
    assert example_loss.isnan().tolist() == [i == 6 for i in range(9)]
    assert grad.isnan().all(1).tolist() == [i == 6 for i in range(9)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [*kc.SIMPLEX_SIZES, 100_003])
def test_project_simplex(size: int, dtype: torch.dtype) -> None:
    for rows, radius in ((1, 1.0), (7, 2.5)):
        v = kc.simplex_input(rows, size, dtype)
        kc.check_simplex(v, radius, ops.project_simplex(v.to(DEVICE), radius=radius).cpu())


def test_many_rows() -> None:
    v = kc.simplex_input(200_003, 3, torch.float32)
    kc.check_simplex(v, 1.0, ops.project_simplex(v.to(DEVICE)).cpu())


def test_simplex_of_bad_rows() -> None:
    v = kc.simplex_input(4, 100, torch.float64)
    v[1, 3], v[2, 0] = NAN, torch.inf
    p = ops.project_simplex(v.to(DEVICE)).cpu()
    assert p.isnan().all(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("size", [1, 11, 1000, 5003, 1_000_000])
def test_update_distribution(size: int) -> None:
    q, q0, gain = (row / row.sum() for row in kc.simplex_input(3, size, torch.float64).abs())
    gain = 7 + gain
    got = ops.update_distribution(q.to(DEVICE), gain.to(DEVICE), q0.to(DEVICE), 1000.0, 1e-3)
    expected = ops.update_distribution(q, gain, q0, 1000.0, 1e-3)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=2e4 * EPS[torch.float64])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "shape", [(1000, 100), (70, 1024), (40, 40_001), (3, 131_072), (1, 1_000_000)]
)
def test_project_simplex_backward(shape: tuple[int, int], dtype: torch.dtype) -> None:
    p, grad = kc.simplex_input(2 * shape[0], shape[1], torch.float64).to(dtype).chunk(2)
    want = ops.project_simplex_backward(p, grad)
    got = ops.project_simplex_backward(p.to(DEVICE), grad.to(DEVICE)).cpu()
    # Sums in float64, each in an order of its own, and one rounding
    least = torch.finfo(dtype).tiny * EPS[dtype]
    torch.testing.assert_close(got, want, rtol=EPS[dtype], atol=1e-12 + least)


@pytest.mark.parametrize("size", [1, 11, 1000, 5003, 1_000_000])
def test_step_distribution(size: int) -> None:
    """As update_distribution does, to the bit, in one launch; q stays where a loss is not finite."""
    q, q0, gain = kc.simplex_input(3, size, torch.float64).abs().softmax(1).to(DEVICE)
    t, c, got = torch.tensor(0, device=DEVICE), torch.tensor(4.0, device=DEVICE), q.clone()
    with no_synchronisation():
        ops.step_distribution(got, t, gain, q0, c, lam=0.5, s=1)
        ops.step_distribution(got, t, gain, q0, c, lam=0.5, s=1)
        ops.step_distribution(got, t, gain / gain.new_zeros(()), q0, c, lam=0.5, s=1)
    for eta in (0.5, 1.0):
        q = ops.update_distribution(q, gain, q0, eta, 0.5)
    assert torch.equal(got, q) and t.item() == 3


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_hardest_negatives(dtype: torch.dtype, similarity: Similarity) -> None:
    """Around a tile, and more tiles on a side than ranges."""
    for shape in ((1, 1, 1), (63, 65, 17), (130, 64, 33), (2113, 3, 2), (3, 2080, 5)):
        case = HardestCase(*shape, similarity, dtype)
        moved = [t.to(DEVICE) for t in case.arguments()]
        with no_synchronisation():
            got = ops.hardest_negatives(*moved, similarity=similarity)  # type: ignore[misc]
        case.check([t.cpu() for t in got])


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_info_nce(dtype: torch.dtype) -> None:
    """Around a tile, more tiles of the queue than ranges, and more columns than a block has."""
    for shape in ((0, 3, 2), (1, 0, 1), (3, 70, 0), (65, 130, 17), (5, 8257, 3), (2, 200, 260)):
        arguments = problem(*shape, dtype)
        query, key, queue = (t.detach().to(DEVICE) for t in arguments)
        query.requires_grad_()
        with no_synchronisation():
            loss = info_nce(query, key, queue, temperature=0.1)
            (grad,) = torch.autograd.grad(loss.sum(), query)
            alone = info_nce(query.detach()[-1:], key[-1:], queue, temperature=0.1)
        check(arguments, 0.1, loss.cpu(), grad.cpu())
        assert torch.equal(alone, loss.detach()[-1:])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_hardest_hinges(dtype: torch.dtype) -> None:
    """Their coefficients around a tile, and what pairs add around a block."""
    for hinges in (HingeCase(63, 65, 17, dtype), HingeCase(130, 1, 3, dtype)):
        given = [t.to(DEVICE) for t in hinges.arguments()]
        with no_synchronisation():
            found = ops.hinge_coefficients(*given)
        hinges.check([t.cpu() for t in found])
    for similarity in SIMILARITIES:
        for pairs in (
            PairCase(7, 5, 129, 127, similarity, dtype),
            PairCase(3, 2, 5, 300, similarity, dtype),
        ):
            given = [t.to(DEVICE) for t in pairs.arguments()]
            with no_synchronisation():
                grads = ops.pair_gradients(*given, similarity=similarity)  # type: ignore[misc]
            pairs.check([t.cpu() for t in grads])


@pytest.mark.parametrize("size", [1, 11, 1000, 6144, 6145, 100_003])
def test_chi_square_response(size: int) -> None:
    """On both sides of what shared memory holds. Sums of K terms in another order than the CPU's."""
    loss, q0 = ResponseCase.draw(size)
    moved = loss.to(DEVICE), q0.to(DEVICE)
    for case in RESPONSE_CASES:
        with no_synchronisation():
            got = ops.chi_square_response(*moved, **case.settings)
        case.check(loss, q0, got.cpu())
        expected = ops.chi_square_response(loss, q0, **case.settings)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        *kc.PRODUCT_CASES,
        ProductCase(512, 1, 1000, 1),
        ProductCase(64, 4, 10, 1024),
        ProductCase(64, 1, 10, 3000, whole=False),
        ProductCase(0, 1, 3, 4),
        ProductCase(2, 2, 3, 0),
    ],
    ids=str,
)
def test_rank1_dot(case: ProductCase) -> None:
    arguments = case.arguments()
    moved = on_device(arguments)
    with no_synchronisation():
        ops.rank1_dot(**moved)
    case.check(arguments, moved["cross"].cpu())
    for offset in (1, 2):  # another alignment
        moved = on_device(arguments)
        for name in "pq":
            whole = moved[name].new_empty(offset + moved[name].numel())
            moved[name] = whole[offset:].view(moved[name].shape).copy_(moved[name])
        ops.rank1_dot(**moved)
        case.check(arguments, moved["cross"].cpu())


@pytest.mark.parametrize("rtol", kc.RTOLS)
@pytest.mark.parametrize(
    "case", [*kc.POINT_CASES, PointCase(5000, 100), PointCase(40, 10_007), PointCase(0, 3)], ids=str
)
def test_rank1_argmin(case: PointCase, rtol: float) -> None:
    moved = on_device(case.arguments())
    with no_synchronisation():
        got = ops.rank1_argmin(**moved, rtol=rtol)
    for result, expected in zip(got, case.nearest(rtol), strict=True):
        assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("clusters", [5, 100, 1100])
def test_bad_numbers_cost_their_own_example(clusters: int) -> None:
    a = PointCase(9, clusters).arguments()
    a["cross"][1, 0], a["square"][6] = NAN, torch.inf
    got = ops.rank1_argmin(**on_device(a))
    for result, expected in zip(got, ops.rank1_argmin(**a), strict=True):
        assert torch.equal(result.cpu().nan_to_num(-7.0), expected.nan_to_num(-7.0))
    assert (got.assignment < 0).nonzero().flatten().tolist() == [1, 6]


def test_empty() -> None:
    x = torch.zeros(0, 3, 4, 4, device=DEVICE)
    out, norm = ops.perturb(x, x, 1.0)
    assert out.shape == x.shape
    assert norm.shape == (0,)
    assert ops.project_simplex(torch.zeros(0, 3, device=DEVICE)).shape == (0, 3)
    result = concepts_on_device(ConceptCase(0, 5, 3).arguments())
    assert result.loss == 0
    assert result.concept_loss.tolist() == [0.0] * 3


# ------------------------------------------------------------------------------------------
# One iteration of Algorithm 1, as a training loop runs it


def iteration(
    dtype: torch.dtype = torch.float32,
) -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    """perturb, concept_cross_entropy and both steps of q on fixed inputs, and the operators of gradient
    clustering; and those inputs."""
    g = torch.Generator().manual_seed(5)
    x = torch.rand(40, 3, 80, 80, generator=g).to(dtype).to(DEVICE)
    grad = torch.randn(40, 3, 80, 80, generator=g).to(dtype).to(DEVICE)
    arguments = on_device(ConceptCase(600, 100, 11, dtype).arguments())
    q0 = arguments["concept_count"] / arguments["concept_count"].sum()
    products = on_device(ProductCase(40, 2, 30, 700, whole=False).arguments())
    p, q = products["p"], products["q"]
    points = on_device(PointCase(600, 1100, spread=300).arguments())
    z = kept((80, 80), padding=4)
    stored = [t.to(DEVICE) for t in z.arguments]
    ids = torch.arange(40, device=DEVICE)

    mixing = [
        t.repeat(2, *[1] * (t.ndim - 1))[:40].to(DEVICE) for t in next(mix_cases.chains(80, 80))
    ]

    def run() -> list[Tensor]:
        moved = kernels.perturb(x, grad, 0.3)
        losses = kernels.concept_cross_entropy(*arguments.values(), 0.1, True)
        new_q = kernels.update_distribution(arguments["q"], losses[1], q0, 2.0, 0.1)
        stepped, t = new_q.clone(), ids[0].clone()
        kernels.step_distribution(stepped, t, losses[1], q0, new_q.sum(), 0.1, 4)
        response = kernels.chi_square_response(losses[1], q0, 0.1, 0.5, 3.0)
        projected = kernels.project_simplex(arguments["logits"], 1.0)
        slope = kernels.project_simplex_backward(projected, arguments["logits"])
        cross = products["cross"].clone()
        kernels.rank1_dot(cross, p, q)
        nearest = kernels.rank1_argmin(*points.values(), 1e-6)
        along = kernels.perturb_stored(x[:4], *stored, 0.3, 4, 1)
        values, scale = stored[0].clone(), stored[1].clone()
        kernels.store_directions(values, scale, grad[:4], *stored[2:], 4, 1)
        flat = x.flatten(1)[:, :3001]
        hardest = kernels.hardest_negatives(flat, flat[:33], ids, ids[:33], True)
        mixed = kernels.mix_chains(x, *mixing)
        some = flat.float()[:, 0]
        hinges = kernels.hinge_coefficients(
            flat, flat[:33], some, some[:33], some, some[:33], ids, ids[:33]
        )
        pairs = kernels.pair_gradients(flat, flat[:33], ids, ids % 33, some, True)
        wide = flat.float()
        negatives = kernels._info_nce(wide, wide.roll(1, 0), wide[:33], 0.1, True)
        known = [
            *negatives,
            mixed,
            *hardest,
            *hinges,
            *pairs,
            *moved,
            *losses,
            new_q,
            stepped,
            t,
            response,
            projected,
            slope,
            cross,
            *nearest,
        ]
        return [*known, along, values, scale]

    return run, [x, grad, *arguments.values()]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_in_a_hundred_runs(dtype: torch.dtype) -> None:
    run, inputs = iteration(dtype)
    before = [t.clone() for t in inputs]
    expected = run()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_nothing_waits_for_the_device() -> None:
    run, _ = iteration()
    with no_synchronisation():
        run()


def test_allowed_under_deterministic_algorithms() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        iteration()[0]()
    finally:
        torch.use_deterministic_algorithms(False)


def test_side_stream() -> None:
    """Kernels on any other stream would not wait for the inputs to change, and see the old ones."""
    run, inputs = iteration()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # some 0.1 s
        for t in inputs[:3]:
            t.mul_(2)
        got = run()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, run(), strict=True))


def test_graph_capture_and_replay() -> None:
    run, inputs = iteration()
    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for factor in (1.0, -2.0):
        inputs[1].mul_(factor)  # grad
        inputs[2].mul_(factor)  # logits
        graph.replay()
        expected = run()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one() -> None:
    x, grad = kc.perturb_input(3, 5003, torch.float32)
    out, norm = ops.perturb(x.to("cuda:1"), grad.to("cuda:1"), 0.37)
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    kc.check_perturb(x, grad, 0.37, None, out.cpu(), norm.cpu())


# ------------------------------------------------------------------------------------------
# The border


def test_opcheck() -> None:
    x, grad = (t.to(DEVICE) for t in kc.perturb_input(4, 60, torch.float32))
    tau = torch.rand(4, dtype=torch.float64, device=DEVICE)
    q, gain, q0 = kc.simplex_input(3, 11, torch.float64).softmax(1).to(DEVICE)
    arguments = on_device(ConceptCase(9, 10, 4).arguments())
    arguments["logits"].requires_grad_()
    torch.library.opcheck(kernels.perturb.default, (x, grad, 0.5, tau))
    torch.library.opcheck(kernels.concept_cross_entropy.default, (*arguments.values(), 0.1, True))
    torch.library.opcheck(kernels.project_simplex.default, (x.clone().requires_grad_(), 1.0))
    torch.library.opcheck(kernels.update_distribution.default, (q, gain, q0, 1.0, 0.1, tau[:1]))
    step = (q, torch.tensor(3, device=DEVICE), gain, q0, tau[0], 0.1, 4)
    torch.library.opcheck(kernels.step_distribution.default, step)
    torch.library.opcheck(kernels.chi_square_response.default, (gain, q0, 1.0, 0.5, 4.0))
    for order in (False, True):
        ids = torch.arange(4, device=DEVICE)
        torch.library.opcheck(kernels.hardest_negatives.default, (x, grad, ids, ids, order))
        torch.library.opcheck(kernels.pair_gradients.default, (x, grad, ids, ids, x[:, 0], order))
    torch.library.opcheck(
        kernels._info_nce.default, (x.float(), grad.float(), x.float(), 0.1, True)
    )
    hinges = (x, grad, *(x[:, 0],) * 4, ids, ids)
    torch.library.opcheck(kernels.hinge_coefficients.default, hinges)
    products = on_device(ProductCase(3, 2, 5, 7).arguments())
    torch.library.opcheck(kernels.rank1_dot.default, tuple(products.values()))
    points = on_device(PointCase(3, 5).arguments())
    torch.library.opcheck(kernels.rank1_argmin.default, (*points.values(), 1e-6))


def test_rank1_assign_is_not_rounded_to_tf32() -> None:
    """cuDNN rounds to it by default, and products do where they are allowed to: 1e-3, not 1e-6."""
    g = torch.Generator().manual_seed(5)
    act, dout = (torch.randn(16, c, 14, 14, generator=g) for c in (32, 64))
    layer = ops.LayerGradient(act, dout, ops.Convolution((3, 3), padding=(1, 1)))
    groups, outputs, inputs = layer.shape
    factors = (torch.randn(groups, 8, 1, n, generator=g) for n in (inputs, outputs))
    centre = ops.Rank1Centre(*factors)
    exact = ops.rank1_products(
        [layer._replace(act=act.double(), dout=dout.double())],
        [ops.Rank1Centre(*(factor.double() for factor in centre))],
    )
    moved = layer._replace(act=act.to(DEVICE), dout=dout.to(DEVICE))
    there = ops.Rank1Centre(*(factor.to(DEVICE) for factor in centre))
    torch.set_float32_matmul_precision("high")
    try:
        got = ops.rank1_products([moved], [there])
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    for here, want in zip(got, exact, strict=True):
        # An inner product of terms of both signs: relative to the product of norms.
        scale = (exact.square[:, None] * exact.centre_square).sqrt().amax().item()
        scale = scale if want is exact.cross else want.amax().item()
        kc.close(here.cpu(), want, rtol=0, atol=2e-6 * scale)


def test_threads_that_need_different_shared_memory() -> None:
    """The limit belongs to the kernel: one thread's small launch must not lower it for another's."""
    cases = [kc.perturb_input(4, size, torch.float32) for size in (75_268, 150_528, 458_752)]
    expected = [kernels.perturb(x.to(DEVICE), grad.to(DEVICE), 0.2)[0].cpu() for x, grad in cases]
    inputs = [(x.to(DEVICE), grad.to(DEVICE)) for x, grad in cases]

    def many(case: int) -> bool:
        results = [kernels.perturb(*inputs[case % 3], 0.2)[0] for _ in range(200)]
        return all(torch.equal(result.cpu(), expected[case % 3]) for result in results)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, range(6)))


def test_mixed_devices_are_refused() -> None:
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="same device"):
        ops.perturb(x.to(DEVICE), x, 1.0)
    with pytest.raises(ValueError, match="same device"):
        ops.perturb(x, x.to(DEVICE), 1.0)
    arguments = ConceptCase(4, 3, 2).arguments()
    with pytest.raises(ValueError, match="on the device of logits"):
        ops.concept_cross_entropy(**(on_device(arguments) | {"q": arguments["q"]}))
    products, points = ProductCase(3, 2, 5, 7).arguments(), PointCase(3, 5).arguments()
    with pytest.raises(ValueError, match="cross must be on the device of p"):
        ops.rank1_dot(**(on_device(products) | {"cross": products["cross"]}))
    with pytest.raises(ValueError, match="weight must be on the device of cross"):
        ops.rank1_argmin(**(on_device(points) | {"weight": points["weight"]}))


def test_agreement_with_the_cpu() -> None:
    for dtype in FLOATS:
        x, grad = kc.perturb_input(6, 777, dtype)
        grad[1], grad[2, 3], grad[3] = 0, NAN, grad[3] * 1e-6
        on_gpu = kernels.perturb(x.to(DEVICE), grad.to(DEVICE), 0.2)
        for got, want in zip(on_gpu, kernels.perturb(x, grad, 0.2), strict=True):
            kc.close(got.cpu(), want, 2 * EPS[dtype], atol=EPS[dtype] / 4)
        v = kc.simplex_input(4, 50, dtype)
        p = kernels.project_simplex(v.to(DEVICE), 2.0)
        kc.close(p.cpu(), kernels.project_simplex(v, 2.0), 2 * EPS[dtype], atol=1e-14)
