"""The queue against a deque, for batches of any size, and what a new one begins with."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from hrrl_ext.contrastive import KeyQueue


@pytest.mark.parametrize("size", [1, 2, 8, 13])
@pytest.mark.parametrize("batches", [[1] * 30, [3] * 9, [8] * 4, [5, 1, 7, 2, 40, 3, 13, 26]])
def test_every_key_is_kept_until_it_is_the_oldest(size: int, batches: list[int]) -> None:
    queue = KeyQueue(size, 2, seed=0)
    expected = deque(queue.keys.tolist(), maxlen=size)
    count = 0
    for batch in batches:
        keys = torch.arange(count, count + batch).float()[:, None].expand(batch, 2)
        count += batch
        queue.put(keys)
        expected.extend(keys.tolist())
        oldest_first = queue.keys.roll(-int(queue.next), 0).tolist()
        assert oldest_first == list(expected)
    assert queue.next == count % size


def test_another_object_goes_on_from_its_state() -> None:
    first, second = KeyQueue(5, 3, seed=0), KeyQueue(5, 3, seed=1)
    first.put(torch.rand(7, 3))
    assert not torch.equal(first.keys, second.keys)
    second.load_state_dict(first.state_dict())
    keys = torch.rand(4, 3)
    for queue in (first, second):
        queue.put(keys)
    assert torch.equal(first.keys, second.keys) and first.next == second.next == 1


def test_it_begins_with_directions_by_its_seed_alone() -> None:
    before = torch.get_rng_state()
    queue, same, other = (
        KeyQueue(200, 5, seed=3),
        KeyQueue(200, 5, seed=3),
        KeyQueue(200, 5, seed=4),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(queue.keys, same.keys) and not torch.equal(queue.keys, other.keys)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(200))
    # The mean of 200 directions: 1/sqrt(200) in root mean square.
    assert queue.keys.mean(0).norm() < 4 / 200**0.5
