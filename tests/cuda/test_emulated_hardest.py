"""The CUDA kernels of hardest_negatives, emulated on the host."""

from __future__ import annotations

import pytest
import torch
from cases import FLOATS
from emulated import Emulation
from hardest_cases import SIMILARITIES, HardestCase
from kernel_cases import NAN

from hrrl_ext.ops import Similarity

both = pytest.mark.parametrize("similarity", SIMILARITIES)

# A tile is 64 by 64, 16 deep, and up to 32 tiles on a side are ranges of their own: 2080 is 33 of them.
SHAPES = [
    *((1, 1, 1), (3, 5, 0), (0, 4, 2), (63, 64, 16), (65, 130, 17), (64, 63, 33), (129, 1, 15)),
    *((2080, 2, 1), (3, 2113, 2)),
]


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hardest_negatives(
    emulation: Emulation, shape: tuple[int, int, int], similarity: Similarity
) -> None:
    case = HardestCase(*shape, similarity)
    case.check(emulation.hardest_negatives(*case.arguments(), similarity == "order"))
    assert emulation.launches == (1 if 0 in shape[:2] else 2)


@both
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_type(emulation: Emulation, dtype: torch.dtype, similarity: Similarity) -> None:
    for offset in (0, 1, 3):
        case = HardestCase(70, 66, 19, similarity, dtype)
        case.check(
            emulation.hardest_negatives(*case.arguments(), similarity == "order", offset=offset)
        )


@both
def test_a_nan_is_told(emulation: Emulation, similarity: Similarity) -> None:
    image, caption, image_group, caption_group = HardestCase(70, 131, 9, similarity).arguments()
    arguments = (image, caption, image_group, caption_group, similarity == "order")
    clean = emulation.hardest_negatives(*arguments)
    caption[65, 0] = NAN
    got = emulation.hardest_negatives(*arguments)
    met = image_group != caption_group[65]
    assert got[2][65] == -1 and got[3][65].isnan()
    assert (got[0][met] == -1).all() and got[1][met].isnan().all()
    for t, before, hit in zip(got, clean, [met] * 2 + [torch.arange(131) == 65] * 2, strict=True):
        assert torch.equal(t[~hit], before[~hit])
