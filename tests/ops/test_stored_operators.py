"""perturb_stored and store_directions against their plain-PyTorch twins, augmentation, and identities."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from stored_cases import CODES, PADDED, SIDES, Kept, check_moved, check_stored, kept
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.data import Augmentation
from hrrl_ext.ops import reference

INF, NAN = math.inf, math.nan


def perturb(z: Kept, x: Tensor, tau: float) -> Tensor:
    return ops.perturb_stored(x, *z.arguments, tau, **z.settings)


def store(z: Kept, grad: Tensor) -> tuple[Tensor, Tensor]:
    """New values and scale; those of z stay."""
    values, scale = z.values.clone(), z.scale.clone()
    ops.store_directions(values, scale, grad, z.row, z.view, **z.settings)
    return values, scale


# --- perturb_stored


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize(("padding", "resolution"), PADDED)
def test_moves_as_its_twin(
    sides: tuple[int, int], code: torch.dtype, padding: int, resolution: int, dtype: torch.dtype
) -> None:
    z = kept(sides, code, padding, resolution)
    x = cases.images(4, 3, *sides, dtype=dtype)
    got = perturb(z, x, 0.7)
    check_moved(x, z.exact(x, 0.7), got)
    assert torch.equal(got[1], x[1])  # not known


@pytest.mark.parametrize("code", CODES, ids=str)
def test_is_augmentation_and_perturb(code: torch.dtype) -> None:
    """By the augmentation that the images have gone through, whose code is another."""
    z, x = kept((9, 12), code), cases.images(4, 3, 9, 12)
    stored = z.values.float()
    if code == torch.uint8:
        stored = ((z.values[:, :, None] >> torch.arange(8)) & 1).flatten(1)[
            :, : 3 * 9 * 12
        ] * 2.0 - 1
    direction = (stored * z.scale[:, None])[z.row].view_as(x)
    seen = Augmentation(z.padding).apply(direction, z.view)
    check_moved(x, ops.perturb(x.double(), seen.double(), 0.5)[0], perturb(z, x, 0.5))


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded", "sliced"])
def test_any_layout(layout: str, code: torch.dtype) -> None:
    z, x = kept((8, 6), code), cases.images(4, 3, 8, 6)
    want, grad = perturb(z, x, 0.5), cases.gradients(4, 3, 8, 6)
    stored = store(z, grad)
    laid = {
        "contiguous": lambda t: t,
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "expanded": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": lambda t: torch.cat([t, t], 3)[..., : t.shape[3]],
    }[layout]
    assert torch.equal(perturb(z, laid(x), 0.5), want)
    assert all(torch.equal(a, b) for a, b in zip(store(z, laid(grad)), stored, strict=True))
    if layout == "channels_last":
        assert perturb(z, laid(x), 0.5).stride() == laid(x).stride()


def test_nothing_to_move_along_leaves_x_to_the_bit() -> None:
    z = kept((5, 7))
    x = cases.images(4, 3, 5, 7) - 0.5
    x[:, 0, 0, 0], x[:, 1, 2, 3] = -0.0, NAN
    z.row = torch.tensor([1, 2, 4, 2])
    for got in (perturb(z, x, 0.5), perturb(kept((5, 7)), x, 0.0)):
        assert torch.equal(cases.raw(got), cases.raw(x))


@pytest.mark.parametrize("offset", [-(2**62), -50, 50, 2**62])
@pytest.mark.parametrize("code", CODES, ids=str)
def test_views_that_miss_the_image(code: torch.dtype, offset: int) -> None:
    z, x = kept((5, 7), code), cases.images(4, 3, 5, 7)
    z.view[:, 0] = offset
    assert torch.equal(perturb(z, x, 0.5), x)
    before = z.values.clone(), z.scale.clone()
    assert all(
        torch.equal(a, b)
        for a, b in zip(store(z, cases.gradients(4, 3, 5, 7)), before, strict=True)
    )


@pytest.mark.parametrize("tau", [1e-40, 1e35, -2.0])
def test_any_tau(tau: float) -> None:
    """τ/‖z‖ leaves the range of float32 here."""
    z, x = kept(), torch.zeros(4, 3, 5, 7, dtype=torch.float64)
    exact = z.exact(x, tau)
    rounded = exact.float()
    torch.testing.assert_close(perturb(z, x.float(), tau), rounded, rtol=1e-6, atol=1e-44)


def test_gradient_is_that_of_x() -> None:
    z, x = kept(), cases.images(4, 3, 5, 7).requires_grad_()
    check_moved(x.detach(), z.exact(x, 0.5).detach(), perturb(z, x.detach(), 0.5))
    perturb(z, x, 0.5).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


# --- store_directions


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize(("padding", "resolution"), PADDED)
def test_stores_as_its_twin(
    sides: tuple[int, int], code: torch.dtype, padding: int, resolution: int, dtype: torch.dtype
) -> None:
    z = kept(sides, code, padding, resolution)
    grad = cases.gradients(4, 3, *sides, dtype=dtype)
    check_stored(z.expected(grad), store(z, grad), z.row)


def test_what_is_kept_may_be_the_largest() -> None:
    """A row whose hidden values are far larger than norm 1 keeps its unit: they stay, what is new is 0."""
    z = kept(padding=1)
    z.view[:] = torch.tensor([0, 1, 0])  # the first line of the image is shown as the second
    z.scale[5] = 1e6
    values, scale = store(z, cases.gradients(4, 3, 5, 7))
    hidden = z.values[5].view(3, 5, 7)[:, -1]
    largest = hidden.abs().max().item()
    assert scale[5].item() == pytest.approx(1e6 * largest / 127)
    stored = values[5].view(3, 5, 7)
    assert torch.equal(stored[:, -1], (hidden.float() * 127 / largest).round().to(torch.int8))
    assert not stored[:, :-1].any()


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("code", CODES, ids=str)
def test_the_smallest_and_the_largest_gradients(code: torch.dtype, dtype: torch.dtype) -> None:
    """Signs of a power of two: their squares leave the range of the dtype, and their sums that of float."""
    z, info = kept(code=code, padding=0), torch.finfo(dtype)
    z.view[:] = 0
    signs = cases.gradients(4, 3, 5, 7).sign()
    for size in (
        info.smallest_normal,
        info.smallest_normal * info.eps,
        2.0 ** (math.frexp(info.max)[1] - 1),
    ):
        values, scale = store(z, signs.to(dtype) * size)
        plain = store(z, signs)
        assert torch.equal(values, plain[0]) and torch.equal(scale, plain[1])


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("bad", [0.0, NAN, INF, -INF])
def test_a_row_without_a_direction_keeps_its_bits(code: torch.dtype, bad: float) -> None:
    z, grad = kept(code=code, padding=0), cases.gradients(4, 3, 5, 7)
    clean = store(z, grad)
    grad[2] = 0
    grad[2, 1, 3, 4] = bad
    values, scale = store(z, grad)
    row = int(z.row[2])
    assert torch.equal(values[row], z.values[row]) and scale[row] == z.scale[row]
    others = [r for r in range(6) if r != row]
    assert torch.equal(values[others], clean[0][others])


def test_what_is_not_shown_may_be_anything() -> None:
    z, grad = kept(padding=2), cases.gradients(4, 3, 5, 7)
    z.view[:] = torch.tensor([0, 2, 0])  # two lines above the image
    clean = store(z, grad)
    grad[:, :, :2] = NAN
    assert all(torch.equal(a, b) for a, b in zip(store(z, grad), clean, strict=True))


def test_what_is_stored_is_moved_along() -> None:
    """In the view that it was found in, by τ along the gradient, to half a unit of 1/127."""
    z, grad = kept((8, 6)), cases.gradients(4, 3, 8, 6)
    z.values, z.scale = torch.zeros_like(z.values), torch.zeros_like(z.scale)
    z.values, z.scale = store(z, grad)
    moved = perturb(z, torch.zeros_like(grad), 1.0).double()
    shown = reference.perturb_stored(
        torch.zeros_like(grad),
        torch.ones_like(z.values),
        z.scale,
        z.row,
        z.view,
        1.0,
        **z.settings,
    )
    want = ops.perturb(torch.zeros_like(grad), grad * (shown > 0), 1.0)[0].double()
    bound = 2 * want.abs().amax((1, 2, 3), keepdim=True) / 254
    assert ((moved - want).abs() <= bound).all()


@pytest.mark.parametrize("code", CODES, ids=str)
def test_nothing(code: torch.dtype) -> None:
    z = kept(code=code)
    z.row, z.view = z.row[:0], z.view[:0]
    assert perturb(z, torch.zeros(0, 3, 5, 7), 1.0).shape == (0, 3, 5, 7)
    assert torch.equal(store(z, torch.zeros(0, 3, 5, 7))[0], z.values)


# --- what is refused

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "images": ({"x": torch.rand(4, 3, 35)}, r"images must have shape \[B, C, H, W\], got \[4, 3, 35\]"),
    "dtype": ({"x": torch.zeros(4, 3, 5, 7, dtype=torch.uint8)}, "images must be float16"),
    "values": ({"values": torch.zeros(6, 104, dtype=torch.int8)}, r"values must have shape \[N, 105\]"),
    "code": ({"values": torch.zeros(6, 105)}, "values must be int8, or uint8 for packed signs"),
    "stride": ({"values": torch.zeros(105, 6, dtype=torch.int8).T}, "values must be contiguous"),
    "scale": ({"scale": torch.zeros(5)}, r"scale must be float32 \[6\]"),
    "scale's dtype": ({"scale": torch.zeros(6).double()}, r"scale must be float32 \[6\]"),
    "row": ({"row": torch.zeros(3, dtype=torch.int64)}, r"row must be int64 \[4\]"),
    "view": ({"view": torch.zeros(4, 2, dtype=torch.int64)}, r"view must be int64 \[4, 3\]"),
    "padding": ({"padding": -1}, "padding must be a number of pixels, got -1"),
    "resolution": ({"resolution": 0}, "resolution must be at least 1 pixel, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    change, message = BAD[name]
    z = kept()
    given: dict[str, Any] = {
        "x": cases.images(4, 3, 5, 7), "values": z.values, "scale": z.scale, "row": z.row,
        "view": z.view, "padding": 0, "resolution": 1,
    } | change  # fmt: skip
    x = given.pop("x")
    with pytest.raises(ValueError, match=f"^perturb_stored: {message}"):
        ops.perturb_stored(x, **given, tau=0.5)
    with pytest.raises(ValueError, match=f"^store_directions: {message}"):
        ops.store_directions(grad=x, **given)


@pytest.mark.parametrize("wrong", [-1, 6, 2**40])
def test_a_row_out_of_range(wrong: int) -> None:
    z, x = kept(), cases.images(4, 3, 5, 7)
    before, z.row = z.values.clone(), torch.tensor([0, 3, wrong, 5])
    with pytest.raises(
        IndexError, match=rf"^perturb_stored: row must lie in 0 .. 5, got {wrong} at 2"
    ):
        perturb(z, x, 0.5)
    with pytest.raises(IndexError, match=r"^store_directions: row must lie in 0 .. 5"):
        ops.store_directions(z.values, z.scale, x, z.row, z.view)
    assert torch.equal(z.values, before)  # nothing is written


def test_tau_is_finite() -> None:
    with pytest.raises(ValueError, match=r"^perturb_stored: tau must be finite, got nan"):
        perturb(kept(), torch.rand(4, 3, 5, 7), NAN)
