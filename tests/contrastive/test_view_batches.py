"""Batches of views depend on seed and epoch alone, whoever makes them; and which views a name stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pictures import noisy_pictures
from torch import Tensor

from hrrl_ext._streams import Draws
from hrrl_ext.contrastive import ContrastiveConfig, ViewBatches
from hrrl_ext.contrastive.jigsaw import Jigsaw
from hrrl_ext.data import FolderImages, RandomResizedCrop, Views, load_images, view_family
from hrrl_ext.data.image_sets import as_float
from hrrl_ext.processes import Processes

DIGITS = load_images("digits", split="train").subset(range(53))


def batches(**settings: Any) -> ViewBatches:
    options = {"seed": 0, "device": torch.device("cpu"), "processes": Processes()} | settings
    return ViewBatches(DIGITS, Views(), 16, **options)


def whole(made: ViewBatches, epoch: int, start: int = 0) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*made.epoch(epoch, start), strict=True)]


def test_an_epoch_is_every_image_once_and_begins_anywhere() -> None:
    made = batches()
    assert made.sizes == [16, 16, 16, 5] and len(made) == 4
    first, second, target, index = whole(made, 3)
    assert first.shape == second.shape == (53, 3, 8, 8) and first.dtype == torch.float32
    assert torch.equal(index.sort().values, torch.arange(53))
    assert torch.equal(target, DIGITS.target[index])
    assert not torch.equal(first, second) and not torch.equal(first, whole(made, 4)[0])
    for got, expected in zip(whole(made, 3, start=2), (first, second, target, index), strict=True):
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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    return noisy_pictures(tmp_path_factory.mktemp("pictures"), 14, image_size=8)


def test_views_of_parts_of_pictures(pictures: FolderImages) -> None:
    """Each by the draws of its crop; a jigsaw is of the second, and workers, processes and starts do not
    count."""
    crop, options = RandomResizedCrop((0.2, 1)), {"seed": 3, "device": torch.device("cpu")}
    views = Views(view_family("moco"), None, seed=3)

    def made(size: int = 6, of: Any = views, **settings: Any) -> ViewBatches:
        given = options | {"processes": Processes()} | settings
        return ViewBatches(pictures, of, size, crop=crop, keep_gib=1.0, **given)

    first, second, _, index = want = whole(made(), 2)
    shared = Draws.of_images(index, 3, "views", 2)
    draws = [shared.named(f"view {view}").named("crop") for view in (0, 1)]
    parts = pictures.parts(index, draws, crop)
    assert torch.equal(first, as_float(views(parts[0], index, 2, 0)))
    assert torch.equal(second, as_float(views(parts[1], index, 2, 1)))
    cut = whole(made(of=Jigsaw(views, 2, 3)), 2)
    jigsaw = Jigsaw(views, 2, 3).cut(second, Draws.of_images(index, 3, "jigsaw", 2))
    assert torch.equal(cut[0], first) and torch.equal(cut[1], jigsaw)
    for got in (whole(made(num_workers=2), 2), whole(made(4), 2)):
        assert all(map(torch.equal, got, want))
    assert all(torch.equal(got, of[6:]) for got, of in zip(whole(made(), 2, 1), want, strict=True))
    ranks = [whole(made(14, processes=Processes(rank, 2)), 2) for rank in (0, 1)]
    for halves, of in zip(zip(*ranks, strict=True), want, strict=True):
        assert torch.equal(torch.cat(halves), of)

    class OfImages(Views):
        def two(self, images: Tensor, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
            return self(images, index, epoch, 0), self(images, index, epoch, 1)

    with pytest.raises(ValueError, match=r"OfImages.* fails on images"):
        made(of=OfImages(view_family("moco"), None, seed=3))


def test_names_of_views_and_an_object() -> None:
    """Each name is a family with these settings; T_rob and T_rep are those of their own names."""
    x, index = DIGITS.images, torch.arange(53)

    def first(**settings: Any) -> Tensor:
        return ContrastiveConfig(**settings).make_views(5).two(x, index, 2)[0]

    rep, rob, mixed = first(views="moco", blur=0.0), first(views="augmix:all"), first(blur=0.0)
    is_rep, is_rob = ((mixed == other).flatten(1).all(1) for other in (rep, rob))
    assert (is_rep | is_rob).all() and 10 < is_rep.sum() < 43  # of 53: 26.5, standard deviation 3.6
    assert torch.equal(first(p=1.0), rob) and torch.equal(first(p=0.0, blur=0.0), rep)
    names = ("moco", "augmix", "augmix:all", "augmix:moco")
    assert len({first(views=name).sum().item() for name in names}) == 4
    assert not torch.equal(first(views="augmix", augmix=0.1), first(views="augmix", augmix=9.0))
    plain = {"views": "augmix", "augmix": 0.1, "crop_scale": 1.0, "flip": False}
    assert (first(**plain).float() - x.float()).abs().mean() < 40  # all but a crop to 3/4 or 4/3
    of_parts = ContrastiveConfig(crop_of="picture", crop_scale=0.3, flip=False)
    assert of_parts.make_views(5).crop is None
    assert of_parts.picture_crop == RandomResizedCrop((0.3, 1.0), flip=0.0)
    assert ContrastiveConfig().picture_crop is None


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="16 of 53 images for 9 of them"):
        batches(processes=Processes(0, 9))
