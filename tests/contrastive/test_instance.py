"""InstDis and PIRL: an epoch against the same lines written out in float64, their memory, and the jigsaw."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_moco import DIGITS, SETTINGS, trainer
from torch import Tensor, nn

from hrrl_ext._streams import Draws, random_stream
from hrrl_ext.contrastive import InstDis, Jigsaw, MemoryBank, URRLTrainer

METHODS = ("instdis", "pirl")


def made(method: str, **settings: Any) -> tuple[URRLTrainer, InstDis]:
    """In float64."""
    one = trainer(method=method, jigsaw_side=2, schedule="constant", **settings)
    assert isinstance(one.recipe, InstDis)
    one.recipe.memory.double()
    one.encoder.double()
    return one, one.recipe


def steps(one: URRLTrainer, count: int) -> None:
    one.encoder.train()
    batches = one.recipe.batches
    for size, (x, y, *rest) in list(zip(batches.sizes, batches.epoch(0), strict=True))[:count]:
        one.recipe.step((x.double(), y.double(), *rest), one.loop.move.of(size))


def drawn(entries: Tensor, rows: Tensor, count: int, step: int) -> Tensor:
    others = torch.tensor([i for i in range(len(entries)) if i not in rows.tolist()])
    stream = random_stream(0, "negatives", step)
    return entries[others[torch.randint(len(others), (count,), generator=stream)]]


def cross_entropy(z: Tensor, entry: Tensor, negatives: Tensor) -> Tensor:
    logits = torch.cat([(z * entry).sum(1, keepdim=True), z @ negatives.T], 1) / 0.2
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.int64))


def features(net: Any, x: Tensor, statistics: bool) -> Tensor:
    """By another route than a hook: the network without its last layer. Running statistics move or not."""
    classifier, net.fc = net.fc, nn.Identity()
    buffers = {} if statistics else {name: b.clone() for name, b in net.named_buffers()}
    f: Tensor = torch.func.functional_call(net, buffers, (x,))
    net.fc = classifier
    return f


def by_hand(one: URRLTrainer, method: str, of_last: int) -> tuple[nn.Module, Tensor]:
    """An epoch of Wu et al. or Misra and van der Maaten: encoder and memory. Batch norm is in four groups,
    and of the last batch in so many."""
    assert isinstance(one.recipe, InstDis)
    net: Any = copy.deepcopy(one.encoder).train()
    memory = one.recipe.memory.entries.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for step, (x, parts, target, rows) in enumerate(one.recipe.batches.epoch(0)):
        groups = torch.arange(len(x)).tensor_split(4 if len(x) == 16 else of_last)
        f = torch.cat([features(net.backbone, x[group].double(), True) for group in groups])
        z, negatives = F.normalize(net.head(f)), drawn(memory, rows, 24, step)
        loss = cross_entropy(z, memory[rows], negatives)
        if method == "pirl":
            those = [parts[group].double().flatten(0, 1) for group in groups]
            each = torch.cat([features(net.backbone, some, False) for some in those]).view(
                len(x), 4, -1
            )
            of_parts = torch.cat([net.part_head(each[:, place]) for place in range(4)], 1)
            of_parts = F.normalize(net.jigsaw_head(of_parts))
            loss = 0.3 * cross_entropy(of_parts, memory[rows], negatives) + 0.7 * loss
        loss = loss + F.cross_entropy(net.backbone.fc(f.detach()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory[rows] = F.normalize(0.75 * memory[rows] + 0.25 * z.detach())
    return net, memory


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_is_its_lines(method: str, accumulate: int) -> None:
    """Seven steps, the last of four images; in parts too, each of which has a group at least."""
    one, recipe = made(method, memory_momentum=0.75, jigsaw=0.3, accumulate=accumulate)
    net, memory = by_hand(one, method, of_last=accumulate)
    steps(one, 7)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(one.encoder.state_dict()[name], value, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(recipe.memory.entries, memory, rtol=1e-9, atol=1e-11)


def test_without_its_share_a_jigsaw_changes_no_feature() -> None:
    plain, jigsaw = (made(method, jigsaw=0.0)[0] for method in METHODS)
    for one in (plain, jigsaw):
        steps(one, 3)
    for name, value in plain.encoder.state_dict().items():
        assert torch.equal(jigsaw.encoder.state_dict()[name], value), name


# --- the memory


@pytest.mark.parametrize("method", METHODS)
def test_a_memory_is_not_full_before_each_image_was_seen(method: str) -> None:
    _, recipe = made(method)
    for done, filled in ((0, False), (6, False), (7, True)):
        recipe.done = done
        assert recipe.filled == filled


def test_entries_are_directions_of_their_images_alone() -> None:
    memory, same, other = (MemoryBank(200, 5, 0.75, seed) for seed in (3, 3, 4))
    assert torch.equal(memory.entries, same.entries) and not torch.equal(
        memory.entries, other.entries
    )
    rows = torch.tensor([7, 199, 0])
    z = F.normalize(torch.randn(3, 5))
    memory.put(rows, z)
    torch.testing.assert_close(memory.entries.norm(dim=1), torch.ones(200))
    torch.testing.assert_close(memory.entries[rows], F.normalize(3 * same.entries[rows] + z))
    rest = torch.ones(200).bool()
    rest[rows] = False
    assert torch.equal(memory.entries[rest], same.entries[rest])


@pytest.mark.parametrize("without", [[], [0], [9], [0, 1, 2], [9, 3, 8, 4], [*range(8), 9]])
def test_negatives_are_of_all_other_images_equally_often(without: list[int]) -> None:
    """An image among its own negatives would have a loss of log 2 at least."""
    memory = MemoryBank(10, 3, 0.5, seed=0)
    rows, others = (
        torch.tensor(without, dtype=torch.int64),
        [i for i in range(10) if i not in without],
    )
    memory.entries.copy_(torch.arange(10.0)[:, None].expand(10, 3))
    found = memory.drawn(5000, rows, 0, 7)
    counts = found[:, 0].long().bincount(minlength=10)
    assert counts[rows].sum() == 0
    expected, spread = 5000 / len(others), (5000 / len(others)) ** 0.5
    assert (counts[others] - expected).abs().max() <= 4 * spread
    assert torch.equal(found, memory.drawn(5000, rows.flip(0), 0, 7))  # by the set alone
    assert len(others) == 1 or not torch.equal(found, memory.drawn(5000, rows, 0, 8))


# --- the jigsaw


class _Twice:
    def two(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return images, images + 1


@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 3), (8, 8, 2), (11, 7, 3), (5, 5, 1)]
)
def test_parts_are_each_within_a_cell_of_its_own(height: int, width: int, side: int) -> None:
    """Pixels say where they come from."""
    place = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    images = place + 1000 * torch.arange(12.0).view(12, 1, 1, 1)
    images = torch.cat([images, -images, images], 1)
    jigsaw, index = Jigsaw(_Twice(), side, seed=0), torch.arange(12)
    first, parts = jigsaw.two(images, index, 4)
    assert first is images
    h, w = jigsaw.part(height), jigsaw.part(width)
    assert parts.shape == (12, side**2, 3, h, w) and parts.dtype == images.dtype
    assert torch.equal(parts[:, :, 1], 2 - parts[:, :, 0])
    where = parts[:, :, 0] - 1 - 1000 * index.view(12, 1, 1, 1)
    row, column = where.long() // width, where.long() % width
    assert torch.equal(row - row[:, :, :1], torch.arange(h)[:, None].expand_as(row))
    assert torch.equal(column - column[:, :, :, :1], torch.arange(w).expand_as(column))
    starts = (
        torch.tensor([height * i // side for i in range(side)]),
        torch.tensor([width * i // side for i in range(side)]),
    )
    cell = []
    for at, start, length, part in zip((row, column), starts, (height, width), (h, w), strict=True):
        number = torch.searchsorted(start, at.flatten(2)[:, :, 0].contiguous(), right=True) - 1
        assert (at.flatten(2)[:, :, -1] < start[number] + length // side).all()
        assert part == round(length // side * 64 / 85)
        cell.append(number)
    cells = cell[0] * side + cell[1]
    assert torch.equal(cells.sort(1).values, torch.arange(side**2).expand(12, -1))  # each once
    if side > 1:
        assert len({tuple(order) for order in cells.tolist()}) > 8
        assert not torch.equal(jigsaw.two(images, index, 5)[1], parts)
    some = torch.tensor([9, 2])
    assert torch.equal(jigsaw.two(images[some], some, 4)[1], parts[some])  # of each image alone


def test_where_a_part_is_within_its_cell_is_even() -> None:
    jigsaw = Jigsaw(_Twice(), 3, seed=0)
    image = torch.arange(30.0).view(1, 1, 1, 30).expand(400, 1, 30, 30)
    parts = jigsaw.cut(image, Draws.of_images(torch.arange(400), 0))
    counts = (parts[:, :, 0, 0, 0].long() % 10).flatten().bincount(minlength=3)
    assert len(counts) == 3 and (counts - 1200).abs().max() < 4 * 30  # standard deviation 28


# --- arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "simclr"}, "method must be one of moco, instdis, pirl, got 'simclr'"),
        ({"memory_momentum": 1.5}, r"memory_momentum must lie in \[0, 1\], got 1.5"),
        ({"jigsaw": -0.5}, r"jigsaw must lie in \[0, 1\], got -0.5"),
        ({"jigsaw_side": 0}, "jigsaw_side must be positive"),
        (
            {"method": "pirl", "jigsaw_side": 9},
            r"jigsaw_side=9 cuts images \[3, 8, 8\] into parts of \[0, 0\] pixels; lower jigsaw_side",
        ),
        (
            {"method": "pirl", "jigsaw_side": 5},
            r"into parts of \[1, 1\] pixels, and ConvNet fails on these",
        ),
        (
            {"method": "instdis", "data": DIGITS.subset(range(16))},
            "one batch has all 16; lower batch_size",
        ),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**settings)


def test_a_network_for_images_of_one_size() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(
        ValueError, match=r"parts of \[3, 3\] pixels, and Sequential fails on these"
    ):
        URRLTrainer(net, **SETTINGS, method="pirl", jigsaw_side=2)
