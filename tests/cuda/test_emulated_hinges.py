"""The CUDA kernels of hinge_coefficients and pair_gradients, emulated on the host."""

from __future__ import annotations

import pytest
import torch
from cases import FLOATS
from emulated import Emulation
from hardest_cases import SIMILARITIES
from hinge_cases import HingeCase, PairCase
from kernel_cases import NAN

from hrrl_ext.ops import Similarity

# A tile is 64 by 64, 16 deep.
HINGES = [(0, 0, 3), (1, 1, 1), (3, 5, 0), (0, 4, 2), (63, 64, 16), (65, 130, 17), (129, 1, 15)]
# A block is 128 pairs, or entries, and a warp 32.
PAIRS = [
    *((1, 1, 1, 1), (3, 2, 0, 5), (2, 3, 5, 0), (0, 4, 3, 3), (7, 5, 129, 127), (3, 2, 33, 600)),
    (2100, 40, 3, 700),  # several rows to a block
]


@pytest.mark.parametrize("shape", HINGES, ids=str)
def test_hinge_coefficients(emulation: Emulation, shape: tuple[int, int, int]) -> None:
    case = HingeCase(*shape)
    case.check(emulation.hinge_coefficients(*case.arguments()))
    assert emulation.launches == (1 if 0 in shape[:2] else 2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_type(emulation: Emulation, dtype: torch.dtype) -> None:
    for offset in (0, 1, 3):
        hinges = HingeCase(66, 70, 9, dtype)
        hinges.check(emulation.hinge_coefficients(*hinges.arguments(), offset=offset))
        for similarity in SIMILARITIES:
            case = PairCase(5, 6, 35, 70, similarity, dtype)
            order = similarity == "order"
            case.check(emulation.pair_gradients(*case.arguments(), order, offset=offset))  # type: ignore[misc]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("shape", PAIRS, ids=str)
def test_pair_gradients(
    emulation: Emulation, shape: tuple[int, int, int, int], similarity: Similarity
) -> None:
    case, order = PairCase(*shape, similarity), similarity == "order"
    case.check(emulation.pair_gradients(*case.arguments(), order))  # type: ignore[call-arg]
    assert emulation.launches == (2 if order and shape[3] else 1)


def test_bad_numbers_are_told(emulation: Emulation) -> None:
    image, *others = HingeCase(65, 3, 4).arguments()
    image[64, 0] = NAN
    assert emulation.hinge_coefficients(image, *others)[0].isnan()
    for order in (False, True):
        image, caption, row, column, weight = PairCase(4, 3, 5, 6).arguments()
        row[:], column[:], weight[:] = 0, 1, 1.0
        row[3] = 4  # beyond the images: the caption that it would have met is lost
        to_image, to_caption = emulation.pair_gradients(image, caption, row, column, weight, order)
        assert to_caption[1].isnan().all() and not to_caption[[0, 2]].any()
        assert to_image.isfinite().all() and not to_image[1:].any()
