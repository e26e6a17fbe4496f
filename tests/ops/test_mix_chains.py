"""mix_chains on the CPU: bits of the specification, and what the specification itself must hold to.

That its operations are Pillow's is in test_image_operations.py.
"""

from __future__ import annotations

import pytest
import torch
from mix_cases import COUNT, DTYPES, SIDES, alone, as_kind, chains, images, laid_out

from hrrl_ext import ops
from hrrl_ext.ops import IMAGE_OPERATIONS, reference
from hrrl_ext.ops.image_operations import OPERATIONS, as_levels


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("name", IMAGE_OPERATIONS)
def test_every_operation_to_the_bit(name: str, height: int, width: int, channels: int) -> None:
    x, program = images(height, width, channels), alone(name, height, width)
    before = x.clone()
    assert same(ops.mix_chains(x, *program), reference.mix_chains(x, *program))
    assert same(x, before)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 10), (32, 32)])
def test_chains_to_the_bit(
    height: int, width: int, dtype: torch.dtype, channels: int, channels_last: bool
) -> None:
    x = laid_out(as_kind(images(height, width, channels), dtype), channels_last)
    for program in chains(height, width):
        out = ops.mix_chains(x, *program)
        assert same(out, reference.mix_chains(x, *program))
        assert out.shape == x.shape and (
            out.stride() == x.stride() or out.numel() == channels * COUNT
        )


def test_any_strides() -> None:
    whole = images(9, 26)
    for x in (whole[..., ::2], whole.transpose(2, 3), whole[:, :, 1:], whole.flip(3)):
        for program in chains(*x.shape[2:]):
            assert same(ops.mix_chains(x, *program), ops.mix_chains(x.contiguous(), *program))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_share_of_nothing_is_the_identity(dtype: torch.dtype) -> None:
    x = as_kind(images(9, 13), dtype).clamp(0, None if dtype == torch.uint8 else 1)
    ((operation, parameter, weight, _), *_) = chains(9, 13)
    assert same(ops.mix_chains(x, operation, parameter, weight, torch.zeros(COUNT)), x)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_floats_out_of_range(dtype: torch.dtype) -> None:
    """A NaN stays in its pixel: an operation takes it for black. What is beyond the range comes to its end."""
    x = torch.tensor([torch.nan, -3.0, 3.0, torch.inf, -torch.inf, 0.4]).to(dtype).view(1, 1, 1, 6)
    assert as_levels(x).flatten().tolist() == [0, 0, 255, 255, 0, 102]
    operation, parameter = torch.full((1, 1, 1), -1), torch.zeros(1, 1, 1, 6).double()
    one = torch.ones(1, 1)
    half = ops.mix_chains(x, operation, parameter, one, one[0] / 2)
    want = reference.mix_chains(x, operation, parameter, one, one[0] / 2)
    torch.testing.assert_close(half, want, rtol=0, atol=0, equal_nan=True)
    assert (
        half[0, 0, 0, 0].isnan() and (half[0, 0, 0, 1:] >= 0).all() and (half[..., 1:] <= 1).all()
    )
    whole = ops.mix_chains(x[..., 5:], operation, parameter, one, one[0])
    torch.testing.assert_close(whole, torch.full_like(whole, 0.4), rtol=0, atol=3e-3)


def test_what_weighs_nothing_is_not_seen() -> None:
    """Chains beside one that weighs 1, and steps that do nothing."""
    x = images(9, 13)
    for name in IMAGE_OPERATIONS:
        operation, parameter, one, mix = alone(name, 9, 13)
        want = ops.mix_chains(x, operation, parameter, one, mix)
        other = torch.arange(COUNT)[:, None, None] % len(IMAGE_OPERATIONS)
        steps = torch.full_like(operation, -1)
        program = torch.cat([torch.cat([steps, operation], 2), torch.cat([other, steps], 2)], 1)
        both = parameter.expand(-1, 2, 2, -1)
        weight = torch.cat([one, 0 * one], 1)
        assert same(ops.mix_chains(x, program, both, weight, mix), want), name


def test_tables_in_a_row() -> None:
    """They are composed: as if each had passed over the image."""
    x = images(9, 13)
    tables = ["autocontrast", "equalize", "posterize", "solarize", "brightness", "contrast"]
    for first in tables:
        for second in tables:
            (a, p, one, mix), (b, q, *_) = (alone(n, 9, 13) for n in (first, second))
            at_once = ops.mix_chains(x, torch.cat([a, b], 2), torch.cat([p, q], 2), one, mix)
            step = ops.mix_chains(ops.mix_chains(x, a, p, one, mix), b, q, one, mix)
            assert same(at_once, step), (first, second)


def test_an_image_looks_the_same_in_any_batch() -> None:
    x = as_kind(images(32, 32), torch.float32)
    for program in chains(32, 32):
        whole = ops.mix_chains(x, *program)
        for rows in ([5], [23, 0, 12]):
            assert same(ops.mix_chains(x[rows], *(t[rows] for t in program)), whole[rows])


def test_threads_change_nothing() -> None:
    x, (_, program, _) = images(32, 32), chains(32, 32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.mix_chains(x, *program)
        torch.set_num_threads(3)
        assert same(ops.mix_chains(x, *program), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 1, 4, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    x, b = torch.zeros(shape, dtype=torch.uint8), shape[0]
    program = (torch.full((b, 2, 1), 3), torch.zeros(b, 2, 1, 6).double(), torch.ones(b, 2) / 2)
    assert ops.mix_chains(x, *program, torch.ones(b)).shape == x.shape


def test_no_chains_leave_what_is_left_of_the_image() -> None:
    x = images(3, 3)
    none = (
        torch.zeros(COUNT, 0, 4).long(),
        torch.zeros(COUNT, 0, 4, 6).double(),
        torch.zeros(COUNT, 0),
    )
    half = ops.mix_chains(x, *none, torch.full((COUNT,), 0.5))
    assert torch.equal(half, (x.double() / 2).round().to(torch.uint8))  # ties to even, both


def test_it_carries_no_gradient() -> None:
    x = (images(4, 4) / 255).requires_grad_()
    assert not ops.mix_chains(x, *next(chains(4, 4))).requires_grad


def test_numbers_are_those_of_the_header() -> None:
    assert tuple(OPERATIONS) == IMAGE_OPERATIONS
    assert IMAGE_OPERATIONS == (
        "autocontrast", "equalize", "posterize", "solarize", "affine", "brightness", "contrast",
        "color", "sharpness", "crop", "hue", "blur",
    )  # fmt: skip


@pytest.mark.parametrize("number", [-2, len(IMAGE_OPERATIONS), 2**40])
def test_a_number_that_is_no_operation(number: int) -> None:
    operation, *rest = alone("solarize", 4, 4)
    operation[7] = number
    with pytest.raises(IndexError, match=rf"must lie in -1 .. 11, got {number} for image 7"):
        ops.mix_chains(images(4, 4), operation, *rest)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda t: t[0], r"images must be \[B, C, H, W\] of one channel or three, got \[3, 4, 4\]"),
        (0, lambda t: t[:, :2], r"one channel or three, got \[24, 2, 4, 4\]"),
        (0, lambda t: t.int(), "images must be uint8, or float"),
        (1, lambda t: t[:5], r"operation must be int64 \[24, W, D\]"),
        (1, lambda t: t.int(), "operation must be int64"),
        (2, lambda t: t.float(), "parameter must be float64"),
        (2, lambda t: t[..., :5], r"parameter must be float64 \[24, 1, 1, 6\], .* got \[24, 1, 1, 5\]"),
        (3, lambda t: t.double(), "weight must be float32"),
        (3, lambda t: t.expand(-1, 2), r"weight must be float32 \[24, 1\], .* got \[24, 2\]"),
        (4, lambda t: t[:, None], r"mix must be float32 \[24\], one for each image, got \[24, 1\]"),
        (4, lambda t: t.double(), "mix must be float32"),
    ],
)  # fmt: skip
def test_bad_input(place: int, change: object, message: str) -> None:
    arguments = [images(4, 4), *alone("hue", 4, 4)]
    arguments[place] = change(arguments[place])
    with pytest.raises(ValueError, match=f"mix_chains: .*{message}"):
        ops.mix_chains(*arguments)
