"""The CUDA kernels of project_simplex, update_distribution and step_distribution, emulated on the host."""

from __future__ import annotations

from collections.abc import Callable

import kernel_cases as kc
import pytest
import torch
from cases import EPS, FLOATS
from emulated import Device, Emulation, EmulationError, same_bits
from kernel_cases import INF, NAN
from torch import Tensor


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", kc.SIMPLEX_SIZES)
def test_project_simplex(emulation: Emulation, size: int, dtype: torch.dtype) -> None:
    for scale, radius in ((1.0, 1.0), (0.01, 1.0), (30.0, 2.5)):
        v = kc.simplex_input(3 if size < 1000 else 1, size, dtype, scale)
        kc.check_simplex(v, radius, emulation.project_simplex(v, radius))


LARGE = Device(128)  # has room for 96 blocks
DEVICES = [
    LARGE,
    Device(128, clusters=False),
    Device(),
    Device(cooperative=False, clusters=False),
    Device(128, architecture=80),  # clusters that the kernels were not compiled for
    Device(128, blocks_at_once=0),  # kernels that need more registers than there are
]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("size", kc.WIDE_SIMPLEX_SIZES)
def test_wide_rows(emulation: Emulation, size: int, device: Device) -> None:
    """Of many blocks, where the device has room for them: dense and sparse results, and two rows one
    after the other."""
    with emulation.on(device):
        for dtype, scale, rows in ((torch.float64, 1.0, 2), (torch.float32, 1e-5, 1)):
            v = kc.simplex_input(rows, size, dtype, scale)
            p = emulation.project_simplex(v)
            assert emulation.launches == 1
            kc.check_simplex(v, 1.0, p)


@pytest.mark.parametrize("size", [12537, 100_288])
def test_clusters_and_grids_agree_to_the_bit(emulation: Emulation, size: int) -> None:
    v = kc.simplex_input(2, size, torch.float64)
    results = []
    for device in (LARGE, Device(128, clusters=False), Device(128, architecture=80)):
        with emulation.on(device):
            results.append(emulation.project_simplex(v))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_more_than_a_grid_holds(mutant: Callable[[str, str, str], Emulation]) -> None:
    few_blocks = mutant("project_simplex.cu", "kGridBlocks = 96", "kGridBlocks = 9")
    with few_blocks.on(LARGE):
        for size in (112_824, 112_825, 120_011):
            for dtype in (torch.float64, torch.bfloat16):
                v = kc.simplex_input(2, size, dtype)
                kc.check_simplex(v, 1.0, few_blocks.project_simplex(v))


@pytest.mark.parametrize("rows", [31, 32])
def test_many_wide_rows(emulation: Emulation, rows: int) -> None:
    v = kc.simplex_input(rows, 12_600, torch.float32)
    kc.check_simplex(v, 1.0, emulation.project_simplex(v))


@pytest.mark.parametrize("size", [2, 300, 5003])
def test_more_rows_than_blocks(mutant: Callable[[str, str, str], Emulation], size: int) -> None:
    few_blocks = mutant("project_simplex.cu", "kMaxGrid = 65536", "kMaxGrid = 3")
    v = kc.simplex_input(8, size, torch.float32)
    kc.check_simplex(v, 1.0, few_blocks.project_simplex(v))


@pytest.mark.parametrize("size", [2, 7, 40, 5003, 13001])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ties(emulation: Emulation, size: int, dtype: torch.dtype) -> None:
    p = emulation.project_simplex(torch.full((2, size), -3.0, dtype=dtype))
    # The threshold is 1/K - 1 before rounding: in float64 an error of eps, whatever K.
    torch.testing.assert_close(
        p, torch.full_like(p, 1 / size), rtol=EPS[dtype], atol=EPS[torch.float64]
    )


def test_vertices_and_inner_points(emulation: Emulation) -> None:
    v = torch.tensor([[2.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1.5, 1.5, -9.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]], dtype=v.dtype)
    torch.testing.assert_close(emulation.project_simplex(v), expected, rtol=0, atol=1e-15)


def test_entries_at_the_threshold(emulation: Emulation) -> None:
    """Some units in the last place around it, where rounding could move an entry in and out of the
    support for ever."""
    ulps = torch.arange(-4, 5, dtype=torch.float64) * EPS[torch.float64]
    rows = torch.cartesian_prod(ulps, ulps, ulps)
    tops = torch.tensor([[0.0, ulps[3].item() / 4]], dtype=torch.float64).expand(len(rows), 2)
    v = torch.cat([tops, rows / 2 - 0.5], 1)
    kc.check_simplex(v, 1.0, emulation.project_simplex(v))
    v = torch.cat([tops[:, :1], rows - 1], 1)
    kc.check_simplex(v, 1.0, emulation.project_simplex(v))


@pytest.mark.parametrize("size", [5, 200, 5003, 13001])
def test_simplex_of_extreme_values(emulation: Emulation, size: int) -> None:
    v = kc.simplex_input(8, size, torch.float64)
    v[0] += 1e30  # all entries round to 1e30
    v[1] -= 1e30
    v[2, 1], v[2, 0] = 1e30, -1e30
    v[3, 1:] = -INF
    v[4, 2] = NAN
    v[5, 0] = INF
    v[6] = -INF
    p = emulation.project_simplex(v)
    one_hot = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(p[:2], torch.full_like(p[:2], 1 / size), rtol=0, atol=EPS[v.dtype])
    assert torch.equal(p[2], one_hot[1])
    assert torch.equal(p[3], one_hot[0])
    assert p[4:7].isnan().all()
    kc.check_simplex(v[7:], 1.0, p[7:])


@pytest.mark.parametrize("size", [1, 11, 1000, 5003, 13001, 100_400])
@pytest.mark.parametrize("eta_scale", [None, 0.25])
def test_update_distribution(emulation: Emulation, size: int, eta_scale: float | None) -> None:
    rows = kc.simplex_input(3, size, torch.float64).abs()
    q, q0 = (row / row.sum() for row in rows[:2])
    gain, eta, lam = 7 + rows[2], 1000.0, 1e-3  # the first step of Algorithm 1
    scale = None if eta_scale is None else torch.tensor(eta_scale, dtype=torch.float64)
    with emulation.on(LARGE):
        got = emulation.update_distribution(q, gain, q0, eta, lam, scale)
    assert emulation.launches == 1
    step = eta * (1 if eta_scale is None else eta_scale)
    expected = kc.simplex_oracle(q + step * (gain - lam * (q - q0)))
    # q + step * gain is about 1e4: it carries an error of 1e4 eps before it is projected.
    torch.testing.assert_close(got, expected, rtol=0, atol=2e4 * EPS[torch.float64])


@pytest.mark.parametrize("size", [1, 11, 1000, 5003, 13001, 100_400])
def test_step_distribution(emulation: Emulation, size: int) -> None:
    """The update with the schedule's step, in place and in one launch; what is not finite leaves q alone."""
    rows = kc.simplex_input(3, size, torch.float64).abs()
    q, q0 = (row / row.sum() for row in rows[:2])
    gain, lam, c = 7 + rows[2], 1e-3, torch.tensor(4.0)
    for before, s, seed in ((0, 1, 1), (1, 1, 0), (998, 999, 2)):
        t, emulation.seed = torch.tensor(before), seed
        eta = 1 / (lam * (before + 1)) / (4 if before < s else 1)
        with emulation.on(LARGE):
            got, step = emulation.step_distribution(q, t, gain, q0, c, lam, s)
            assert emulation.launches == 1
            want = emulation.update_distribution(q, gain, q0, eta, lam)
        assert step == before + 1 and same_bits(got, want)
    emulation.seed = 0
    for bad in (NAN, INF):
        spoiled = gain.clone()
        spoiled[size // 2] = bad
        with emulation.on(LARGE):
            got, step = emulation.step_distribution(q, torch.tensor(3), spoiled, q0, c, lam, 9)
        assert step == 4 and same_bits(got, q)


@pytest.mark.parametrize(
    ("text", "replacement"),
    [
        ("if (target.t) break;", ""),  # q is lost with one loss
        # Counted before the others have read it
        ("    Entries entries(row,", "    if (target.t && threadIdx.x == 0) *target.t += 1;\n    Entries entries(row,"),
    ],
)  # fmt: skip
def test_wrong_steps_are_noticed(
    mutant: Callable[[str, str, str], Emulation], text: str, replacement: str
) -> None:
    with pytest.raises(AssertionError):
        test_step_distribution(mutant("project_simplex.cu", text, replacement), 1000)


@pytest.mark.parametrize("size", [11, 13001])
def test_update_of_any_types(emulation: Emulation, size: int) -> None:
    rows = kc.simplex_input(3, size, torch.float64).abs()
    q, gain, q0 = (row / row.sum() for row in rows)
    for dtypes in ((0, 0, 0), (1, 2, 3), (0, 3, 1), (1, 0, 2)):
        a, b, c = (t.to(FLOATS[d]) for t, d in zip((q, gain, q0), dtypes, strict=True))
        got = emulation.update_distribution(a, b, c, 20.0, 0.5)
        assert got.dtype == a.dtype
        wide = emulation.update_distribution(a.double(), b.double(), c.double(), 20.0, 0.5)
        assert same_bits(got, wide.to(got.dtype))


# --- The gradient


def check_gradient(emulation: Emulation, p: Tensor, grad: Tensor, offset: int = 0) -> Tensor:
    """Sums in float64 of up to K terms, and one rounding: relative, but for the least numbers."""
    got = emulation.project_simplex_backward(p, grad, offset=offset)
    support = p > 0
    wide = torch.where(support, grad.double(), 0.0)
    exact = torch.where(support, wide - wide.sum(1, True) / support.sum(1, True), 0.0)
    least = torch.finfo(p.dtype).tiny * EPS[p.dtype]
    torch.testing.assert_close(got.double(), exact, rtol=EPS[p.dtype], atol=1e-12 + least)
    return got


def slopes(rows: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    p, grad = kc.simplex_input(2 * rows, size, torch.float64).to(dtype).chunk(2)
    p = p.clamp(min=0)
    p[0] = 0  # no support
    return p, grad


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("offset", [0, 1], ids="offset={}".format)
def test_backward_of_any_length(emulation: Emulation, dtype: torch.dtype, offset: int) -> None:
    """Around a warp, its packs, and blocks of each size; in packs and, off by one, entry by entry."""
    for size in (1, 3, 4, 128, 129, 511, 512, 513, 1024, 2048, 4092):
        check_gradient(emulation, *slopes(9 if size < 600 else 3, size, dtype), offset)
        assert emulation.launches == 1


@pytest.mark.parametrize("size", [2049, 4097, 16_381])
def test_backward_of_long_rows(emulation: Emulation, size: int) -> None:
    """Clusters and two launches give the same bits; beyond a cluster there are two."""
    p, grad = slopes(2, size, torch.float64)
    results = []
    for device in (LARGE, Device(clusters=False), Device(architecture=80)):
        with emulation.on(device):
            results.append(check_gradient(emulation, p, grad, offset=1))
            assert emulation.launches == (1 if device is LARGE else 2)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_backward_beyond_a_cluster(mutant: Callable[[str, str, str], Emulation]) -> None:
    short = mutant("project_simplex_backward.cu", "kHeldPacks * kThreads;", "64;")
    for size, launches in ((64 * 8, 1), (64 * 8 + 1, 2), (64 * 21, 2)):
        check_gradient(short, *slopes(40, size, torch.float32), offset=1)
        assert short.launches == (1 if size <= 128 * 8 and launches == 1 else launches)


@pytest.mark.parametrize(
    ("text", "replacement"),
    [
        ("    wait_for_cluster();", "    (void)0;"),
        ("      sync_cluster();  // the sums of all blocks are there\n", ""),
    ],
)
def test_backward_that_leaves_a_barrier_out(
    mutant: Callable[[str, str, str], Emulation], text: str, replacement: str
) -> None:
    broken = mutant("project_simplex_backward.cu", text, replacement)
    with pytest.raises((AssertionError, EmulationError)):
        check_gradient(broken, *slopes(2, 2049, torch.float64), offset=1)
