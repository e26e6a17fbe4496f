"""The CUDA kernel of mix_chains, emulated on the host: the bits of the specification."""

from __future__ import annotations

import pytest
import torch
from emulated import Emulation, same_bits
from mix_cases import COUNT, DTYPES, SIDES, alone, as_kind, chains, images, laid_out

from hrrl_ext.ops import IMAGE_OPERATIONS, reference


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_every_operation(emulation: Emulation, height: int, width: int, channels: int) -> None:
    x = images(height, width, channels)
    for name in IMAGE_OPERATIONS:
        program = alone(name, height, width)
        got = emulation.mix_chains(x, *program)
        assert same_bits(got, reference.mix_chains(x, *program)), name
    assert emulation.launches == 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sides", [(1, 1), (7, 10), (27, 40)], ids=str)
def test_chains_of_any_type(
    emulation: Emulation, sides: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> None:
    for channels in (1, 3):
        x = laid_out(as_kind(images(*sides, channels), dtype), channels_last)
        for program in chains(*sides):
            assert same_bits(emulation.mix_chains(x, *program), reference.mix_chains(x, *program))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
def test_more_images_than_blocks(emulation: Emulation, dtype: torch.dtype) -> None:
    """Beyond the shared memory of a block, blocks take turns in a workspace: 16 of them on this device."""
    sides = (41, 51)
    x = as_kind(images(*sides), dtype)
    assert x[0].numel() * 7 > 40 * 1024 and 4 * emulation.device.multiprocessors < COUNT
    for program in chains(*sides):
        assert same_bits(emulation.mix_chains(x, *program), reference.mix_chains(x, *program))


def test_a_number_that_is_no_operation_does_nothing(emulation: Emulation) -> None:
    x, (operation, *rest) = images(5, 7), alone("hue", 5, 7)
    for number in (-2, len(IMAGE_OPERATIONS), 2**40):
        operation[:] = number
        assert same_bits(emulation.mix_chains(x, operation, *rest), x)


def test_nothing_to_do(emulation: Emulation) -> None:
    x, program = images(5, 7), [t[:0] for t in next(chains(5, 7))]
    assert emulation.mix_chains(x[:0], *program).shape == (0, 3, 5, 7)
    assert emulation.launches == 0
