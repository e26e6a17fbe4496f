"""The CUDA kernels of perturb, emulated on the host: values and edges."""

from __future__ import annotations

import kernel_cases as kc
import pytest
import torch
from cases import FLOATS
from emulated import Device, Emulation, same_bits
from kernel_cases import INF, NAN


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", kc.PERTURB_SIZES)
def test_perturb(emulation: Emulation, size: int, dtype: torch.dtype) -> None:
    x, grad = kc.perturb_input(3, size, dtype)
    kc.check_perturb(x, grad, 0.37, None, *emulation.perturb(x, grad, 0.37))


@pytest.mark.parametrize(("size", "dtype"), kc.LONG_ROWS, ids=str)
def test_long_rows(emulation: Emulation, size: int, dtype: torch.dtype) -> None:
    x, grad = kc.perturb_input(1, size, dtype)
    kc.check_perturb(x, grad, 0.37, None, *emulation.perturb(x, grad, 0.37))


@pytest.mark.parametrize(
    ("size", "slices"), [(18816, 1), (18820, 2), (37636, 4), (40009, 4), (75268, 8), (458_752, 8)]
)
def test_clusters_and_launches_agree_to_the_bit(
    emulation: Emulation, size: int, slices: int
) -> None:
    """A row is cut alike whether a cluster of ``slices`` blocks takes it or two launches do."""
    assert emulation.device.clusters
    x, grad = kc.perturb_input(2, size, torch.float32)
    in_cluster = emulation.perturb(x, grad, 0.37)
    assert emulation.launches == 1
    with emulation.on(Device(clusters=False)):
        apart = emulation.perturb(x, grad, 0.37)
        assert emulation.launches == (1 if slices == 1 else 2)
    assert all(same_bits(a, b) for a, b in zip(in_cluster, apart, strict=True))
    kc.check_perturb(x, grad, 0.37, None, *apart)


@pytest.mark.parametrize("size", [18820, 37636, 75268])
def test_kernels_for_an_older_architecture_form_no_clusters(
    emulation: Emulation, size: int
) -> None:
    """Kernels for compute_80 alone run on a device with clusters, but without its instructions: a
    block of a cluster would take its own sum for each of the others'."""
    x, grad = kc.perturb_input(2, size, torch.float32)
    in_cluster = emulation.perturb(x, grad, 0.37)
    assert emulation.launches == 1
    with emulation.on(Device(architecture=80)):
        apart = emulation.perturb(x, grad, 0.37)
        assert emulation.launches == 2
    assert all(same_bits(a, b) for a, b in zip(in_cluster, apart, strict=True))


@pytest.mark.parametrize("batch", kc.PERTURB_BATCHES)
def test_perturb_batches(emulation: Emulation, batch: int) -> None:
    x, grad = kc.perturb_input(batch, 37, torch.float32)
    kc.check_perturb(x, grad, -2.0, None, *emulation.perturb(x, grad, -2.0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_perturb_empty(emulation: Emulation, dtype: torch.dtype) -> None:
    out, norm = emulation.perturb(torch.zeros(0, 5, dtype=dtype), torch.zeros(0, 5, dtype=dtype), 1)
    assert out.shape == (0, 5)
    assert norm.shape == (0,)
    _, norm = emulation.perturb(torch.zeros(9, 0, dtype=dtype), torch.zeros(9, 0, dtype=dtype), 1)
    assert norm.tolist() == [0.0] * 9


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [64, 2048, 4096, 32768])
def test_perturb_at_any_alignment(emulation: Emulation, size: int, dtype: torch.dtype) -> None:
    x, grad = kc.perturb_input(2, size, dtype)
    for offset in (1, 3):
        kc.check_perturb(x, grad, 0.5, None, *emulation.perturb(x, grad, 0.5, offset=offset))


@pytest.mark.parametrize("size", [40, 3000, 17000, 80008])
def test_perturb_by_tau_per_example(emulation: Emulation, size: int) -> None:
    x, grad = kc.perturb_input(5, size, torch.float32)
    x[3, 0] = -0.0
    scale = torch.tensor([1.0, -0.5, 2.0, 0.0, 1e-3], dtype=torch.float64)
    kc.check_perturb(x, grad, 0.5, scale, *emulation.perturb(x, grad, 0.5, scale))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [24, 2001, 33000, 80008])
def test_unusable_gradients_leave_their_example_and_no_other(
    emulation: Emulation, size: int, dtype: torch.dtype
) -> None:
    x, grad = kc.perturb_input(7, size, dtype)
    clean, _ = emulation.perturb(x, grad, 0.5)
    x[1, 0], x[1, 1] = -0.0, NAN
    x.view(torch.uint8)[1, x.element_size()] ^= 1  # a NaN with another payload
    grad[1] = 0
    grad[3, -1] = NAN
    grad[4, 0] = -INF
    grad[5, 0], grad[5, size // 2] = INF, NAN
    out, norm = emulation.perturb(x, grad, 0.5)
    for i in (1, 3, 4, 5):
        assert same_bits(out[i], x[i])
    for i in (0, 2, 6):
        assert same_bits(out[i], clean[i])
    assert norm[1] == 0
    assert norm[3].isnan()
    assert norm[4] == INF
    assert norm[5].isnan()


@pytest.mark.parametrize("size", [24, 2001, 33000, 80008])
def test_tau_zero_is_the_identity(emulation: Emulation, size: int) -> None:
    x, grad = kc.perturb_input(2, size, torch.bfloat16)
    x[0, 0] = -0.0
    assert same_bits(emulation.perturb(x, grad, 0.0)[0], x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [50, 2001, 33000, 80008])
def test_smallest_and_largest_gradients(
    emulation: Emulation, size: int, dtype: torch.dtype
) -> None:
    """τ / ‖g‖ leaves the range of float32 here, and the squares that of the dtype."""
    info = torch.finfo(dtype)
    grad = torch.zeros(4, size, dtype=dtype)
    grad[0, 7] = info.smallest_normal * info.eps  # the smallest subnormal
    grad[1, :4] = info.max
    grad[2, :2] = info.smallest_normal
    grad[3, 0], grad[3, -1] = info.max, info.smallest_normal
    moved, norm = emulation.perturb(torch.zeros_like(grad), grad, 1.0)
    expected = torch.zeros_like(grad)
    expected[0, 7], expected[1, :4], expected[2, :2], expected[3, 0] = 1.0, 0.5, 0.5**0.5, 1.0
    torch.testing.assert_close(moved, expected, rtol=2 * info.eps, atol=info.smallest_normal)
    assert (norm > 0).all()


@pytest.mark.parametrize("power", [-560, -500, -400, 400, 470, 500])
def test_doubles_of_any_scale(emulation: Emulation, power: int) -> None:
    """The scale is a power of two: only the order of the scaled sums differs, by some eps."""
    x, grad = torch.zeros(2, 300, dtype=torch.float64), kc.perturb_input(2, 300, torch.float64)[1]
    plain, norm = emulation.perturb(x, grad, 1.0)
    scaled, scaled_norm = emulation.perturb(x, grad * 2.0**power, 1.0)
    torch.testing.assert_close(scaled, plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(scaled_norm / 2.0**power, norm, rtol=1e-14, atol=0)


def test_doubles_of_mixed_scale(emulation: Emulation) -> None:
    """Entries from all three ranges of the sum: the large one decides; two alike share."""
    grad = torch.tensor(
        [[2.0**500, 1.0, 2.0**-520], [2.0**-520, 2.0**-520, 0.0], [1.0, 2.0**-520, 0.0],
         [2.0**-505, 2.0**-512, 0.0], [2.0**487, 2.0**486, 0.0]],
        dtype=torch.float64,
    )  # fmt: skip
    moved, norm = emulation.perturb(torch.zeros_like(grad), grad, 1.0)
    kc.check_perturb(torch.zeros_like(grad), grad, 1.0, None, moved, norm)


@pytest.mark.parametrize("power", [-90, -30, 30, 90])
def test_floats_of_any_scale_move_alike(emulation: Emulation, power: int) -> None:
    x, grad = kc.perturb_input(3, 200, torch.float32)
    assert same_bits(
        emulation.perturb(x, grad * 2.0**power, 0.3)[0], emulation.perturb(x, grad, 0.3)[0]
    )
