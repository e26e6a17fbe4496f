"""The CUDA kernels of InfoNCE, emulated on the host."""

from __future__ import annotations

import pytest
import torch
from emulated import Emulation
from info_nce_cases import by_cross_entropy, check, problem
from kernel_cases import NAN

# A tile is 64 queries by 64 rows of the queue; a block has 128 columns in float32, 32 in float64; up to 128 tiles of the
# queue are ranges of their own: 8257 rows are 130.
SHAPES = [
    *((1, 1, 1), (3, 0, 5), (3, 70, 0), (63, 64, 16), (65, 130, 17), (2, 200, 129)),
    *((5, 8257, 3), (1, 65, 260)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient(
    emulation: Emulation, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    query, key, queue = (t.detach() for t in problem(*shape, dtype))
    for temperature in (0.07, 1.0):
        loss, grad = emulation.info_nce(query, key, queue, temperature, offset=1)
        assert emulation.launches == (2 if shape[1] else 1)
        check((query, key, queue), temperature, loss, grad)
        alone, none = emulation.info_nce(query, key, queue, temperature, False)
        assert torch.equal(alone, loss) and none.numel() == 0


def test_a_query_depends_on_no_other(emulation: Emulation) -> None:
    query, key, queue = (t.detach() for t in problem(70, 500, 20))
    whole = emulation.info_nce(query, key, queue, 0.1)
    alone = emulation.info_nce(query[65:66], key[65:66], queue, 0.1)
    for one, all_of_them in zip(alone, whole, strict=True):
        assert torch.equal(one[0], all_of_them[65])


def test_logits_that_rise_and_fall(emulation: Emulation) -> None:
    """The highest in the first tile, in the last, and far apart: e^(difference) is 0, or not finite."""
    query, key, queue = (t.detach() for t in problem(3, 400, 8))
    for scale in (30.0, 1e4, 1e30):
        for row in (0, 399):
            high = queue.clone()
            high[row] = query[1] * scale
            loss, grad = emulation.info_nce(query, key, high, 1.0)
            expected, slope = by_cross_entropy(query, key, high, 1.0)
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-5 * scale)


def test_equal_logits_however_low(emulation: Emulation) -> None:
    """All at -100, where e^logit is 0: rows that fill a tile up are none of them."""
    query = torch.eye(1, 5).expand(3, 5).contiguous()
    loss, grad = emulation.info_nce(query, -query, -query[:1].repeat(131, 1), 0.01)
    torch.testing.assert_close(loss, torch.full((3,), 132.0).log(), rtol=0, atol=2e-5)
    assert grad.isfinite().all()


def test_bad_numbers_are_told(emulation: Emulation) -> None:
    query, key, queue = (t.detach() for t in problem(3, 130, 4))
    for bad in (NAN, torch.inf):
        spoiled = queue.clone()
        spoiled[129] = bad * query[1].sign()
        loss, grad = emulation.info_nce(query, key, spoiled, 0.1)
        assert loss[1].isnan() and grad[1].isnan().all()
    query[2, 3] = NAN
    loss, grad = emulation.info_nce(query, key, queue, 0.1)
    assert loss.isnan().tolist() == [False, False, True]
    assert grad.isnan().all(1).tolist() == [False, False, True]
    far = queue.clone()
    far[:] = -torch.inf * query[0].sign()  # logits of -inf are no negatives
    loss, grad = emulation.info_nce(query[:1], key[:1], far, 0.1)
    assert loss.tolist() == [0.0]
