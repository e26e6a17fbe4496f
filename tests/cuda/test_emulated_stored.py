"""The CUDA kernels of perturb_stored and store_directions, emulated on the host."""

from __future__ import annotations

import cases
import pytest
import torch
from emulated import Emulation, same_bits
from kernel_cases import INF, NAN
from stored_cases import CODES, PADDED, SIDES, check_moved, check_stored, kept
from torch import Tensor

LAST = torch.channels_last


def laid_out(t: Tensor, channels_last: bool) -> Tensor:
    return t.contiguous(memory_format=LAST if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize(("padding", "resolution"), PADDED)
def test_values(
    emulation: Emulation, sides: tuple[int, int], code: torch.dtype, padding: int, resolution: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    z = kept(sides, code, padding, resolution)
    for channels_last in (False, True):
        x = laid_out(cases.images(4, 3, *sides, dtype=dtype), channels_last)
        grad = laid_out(cases.gradients(4, 3, *sides, dtype=dtype), channels_last)
        got = emulation.perturb_stored(x, z, 0.7)
        check_moved(x, z.exact(x, 0.7), got)
        assert torch.equal(got[1], x[1])  # not known
        check_stored(z.expected(grad), emulation.store_directions(z, grad), z.row)
        assert emulation.launches == 1


@pytest.mark.parametrize("code", CODES, ids=str)
def test_rows_longer_than_a_block(emulation: Emulation, code: torch.dtype) -> None:
    z = kept((40, 53), code, padding=4)
    x, grad = cases.images(4, 3, 40, 53), cases.gradients(4, 3, 40, 53)
    check_moved(x, z.exact(x, 0.7), emulation.perturb_stored(x, z, 0.7))
    check_stored(z.expected(grad), emulation.store_directions(z, grad), z.row)


@pytest.mark.parametrize("offset", [-(2**62), -50, 50, 2**62])
@pytest.mark.parametrize("code", CODES, ids=str)
def test_views_that_miss_the_image(emulation: Emulation, code: torch.dtype, offset: int) -> None:
    z, x = kept((5, 7), code), cases.images(4, 3, 5, 7)
    z.view[:, 1] = offset
    assert same_bits(emulation.perturb_stored(x, z, 0.5), x)
    values, scale = emulation.store_directions(z, cases.gradients(4, 3, 5, 7))
    assert same_bits(values, z.values) and same_bits(scale, z.scale)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("bad", [-1, 6, 2**40, -(2**62)])
def test_a_row_out_of_range_is_never_an_index(
    emulation: Emulation, code: torch.dtype, bad: int
) -> None:
    z, x = kept(code=code), cases.images(4, 3, 5, 7)
    clean, stored = emulation.perturb_stored(x, z, 0.5), emulation.store_directions(z, x)
    last = int(z.row[3])
    z.row[3] = bad
    got = emulation.perturb_stored(x, z, 0.5)
    assert got[3].isnan().all() and same_bits(got[:3], clean[:3])
    values, scale = emulation.store_directions(z, x)
    assert same_bits(values[last], z.values[last]) and scale[last] == z.scale[last]
    others = [row for row in range(6) if row != last]
    assert same_bits(values[others], stored[0][others])


def test_nothing_to_move_along_leaves_x_to_the_bit(emulation: Emulation) -> None:
    z, x = kept(), cases.images(4, 3, 5, 7) - 0.5
    x[:, 0, 0, 0], x[:, 1, 2, 3] = -0.0, NAN
    assert same_bits(emulation.perturb_stored(x, z, 0.0), x)
    z.row = torch.tensor([1, 2, 4, 2])
    assert same_bits(emulation.perturb_stored(x, z, 0.5), x)


@pytest.mark.parametrize("tau", [1e-40, 1e35, -2.0])
def test_any_tau(emulation: Emulation, tau: float) -> None:
    z, x = kept(), torch.zeros(4, 3, 5, 7)
    exact = z.exact(x, tau).float()
    torch.testing.assert_close(emulation.perturb_stored(x, z, tau), exact, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("bad", [0.0, NAN, INF, -INF])
def test_a_row_without_a_direction_keeps_its_bits(
    emulation: Emulation, code: torch.dtype, bad: float
) -> None:
    z, grad = kept(code=code, padding=0), cases.gradients(4, 3, 5, 7)
    clean = emulation.store_directions(z, grad)
    grad[2] = 0
    grad[2, 1, 3, 4] = bad
    values, scale = emulation.store_directions(z, grad)
    row = int(z.row[2])
    assert same_bits(values[row], z.values[row]) and scale[row] == z.scale[row]
    others = [r for r in range(6) if r != row]
    assert same_bits(values[others], clean[0][others])


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_the_smallest_and_the_largest_gradients(emulation: Emulation, dtype: torch.dtype) -> None:
    z, info = kept(padding=0), torch.finfo(dtype)
    signs = cases.gradients(4, 3, 5, 7).sign()
    plain = emulation.store_directions(z, signs)
    for size in (info.smallest_normal, info.smallest_normal * info.eps, info.max):
        values, scale = emulation.store_directions(z, signs.to(dtype) * size)
        assert same_bits(values, plain[0]) and same_bits(scale, plain[1])
