"""Rows of several tensors side by side; in one queue a row is the same row of each."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from hrrl_ext.row_queue import RowQueue


@pytest.mark.parametrize("size", [1, 2, 8, 13])
@pytest.mark.parametrize("batches", [[1] * 30, [3] * 9, [8] * 4, [5, 1, 7, 2, 40, 3, 13, 26]])
def test_rows_stay_side_by_side(size: int, batches: list[int]) -> None:
    begun = torch.arange(-size, 0)
    queue = RowQueue(wide=begun.double()[:, None].repeat(1, 2), number=begun.clone())
    expected = deque(begun.tolist(), maxlen=size)
    count = 0
    for batch in batches:
        rows = torch.arange(count, count + batch)
        count += batch
        queue.put(rows.float()[:, None].expand(batch, 2), rows)
        expected.extend(rows.tolist())
        first = int(queue.next)
        assert queue.number.roll(-first, 0).tolist() == list(expected)
        assert queue.wide.roll(-first, 0).tolist() == [[n, n] for n in expected]
    assert queue.wide.dtype == torch.float64 and queue.number.dtype == torch.int64


def test_what_is_put_in_has_no_gradient_and_is_a_copy() -> None:
    queue = RowQueue(rows=torch.zeros(4, 2))
    rows = torch.ones(2, 2, requires_grad=True)
    queue.put(rows * 1)
    queue.put(rows)
    with torch.no_grad():
        rows.fill_(7)
    assert queue.rows.tolist() == [[1, 1]] * 4 and not queue.rows.requires_grad
