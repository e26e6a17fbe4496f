"""Views depend on (seed, epoch, index, view) alone, and batches on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hrrl_ext.contrastive import CropViews, ViewBatches
from hrrl_ext.data import Augmentation, AugMix, load_images
from hrrl_ext.processes import Processes

DIGITS = load_images("digits", split="train").subset(range(53))


def batches(views: CropViews = CropViews(Augmentation(1)), **settings: Any) -> ViewBatches:  # noqa: B008
    options = {"seed": 0, "device": torch.device("cpu"), "processes": Processes()} | settings
    return ViewBatches(DIGITS, views, 16, **options)


def whole(made: ViewBatches, epoch: int, start: int = 0) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*made.epoch(epoch, start), strict=True)]


def test_an_epoch_is_every_image_once_and_begins_anywhere() -> None:
    made = batches()
    assert made.sizes == [16, 16, 16, 5] and len(made) == 4
    first, second, target = whole(made, 3)
    assert first.shape == second.shape == (53, 3, 8, 8) and first.dtype == torch.float32
    assert torch.equal(target.sort().values, DIGITS.target.sort().values)
    assert not torch.equal(first, second) and not torch.equal(first, whole(made, 4)[0])
    for got, expected in zip(whole(made, 3, start=2), (first, second, target), strict=True):
        assert torch.equal(got, expected[32:])


@pytest.mark.parametrize(
    "settings", [{"num_workers": 2}, {"keep_gib": 1.0}, {"num_workers": 1, "keep_gib": 1e-6}]
)
def test_where_images_come_from_changes_no_bit(settings: dict[str, Any]) -> None:
    for got, expected in zip(whole(batches(**settings), 1), whole(batches(), 1), strict=True):
        assert torch.equal(got, expected)


def test_processes_have_the_images_of_one() -> None:
    parts = [list(batches(processes=Processes(rank, 2)).epoch(2)) for rank in (0, 1)]
    for got, expected in zip(zip(*parts, strict=True), batches().epoch(2), strict=True):
        for halves, one in zip(zip(*got, strict=True), expected, strict=True):
            assert torch.equal(torch.cat(halves), one)


def test_an_image_looks_the_same_in_any_batch() -> None:
    views = CropViews(Augmentation(2), p=0.5, seed=7)
    index = torch.tensor([5, 31, 8, 52])
    together = views.two(DIGITS.images[index], index, epoch=1)
    for place, number in enumerate(index.tolist()):
        alone = views.two(DIGITS.images[number][None], torch.tensor([number]), epoch=1)
        for whole_batch, one in zip(together, alone, strict=True):
            assert torch.equal(whole_batch[place], one[0])


def test_the_share_of_robust_views() -> None:
    """At 0 none, at 1 all, and between by a draw for each image and view; crops stay the same."""
    images, index = DIGITS.images, torch.arange(53)
    plain, half, robust = (
        CropViews(Augmentation(1), AugMix(9.0, all_ops=True), p).two(images, index, 0)
        for p in (0.0, 0.5, 1.0)
    )
    for i in (0, 1):
        is_plain = (half[i] == plain[i]).flatten(1).all(1)
        is_robust = (half[i] == robust[i]).flatten(1).all(1)
        assert (is_plain | is_robust).all()
        assert 10 < is_plain.sum() < 43  # of 53 draws: 26.5, standard deviation 3.6
        assert (robust[i] != plain[i]).flatten(1).any(1).sum() > 45
    which = [(h == p).flatten(1).all(1) for h, p in zip(half, plain, strict=True)]
    assert (which[0] != which[1]).sum() > 10  # drawn for each view
    expected = Augmentation(1, flip=False), CropViews(Augmentation(0, flip=False), p=0.0)
    assert torch.equal(expected[1].two(images, index, 0)[0], images)


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="16 of 53 images for 9 of them"):
        batches(processes=Processes(0, 9))
