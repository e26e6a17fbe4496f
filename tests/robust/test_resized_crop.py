"""Random resized crops as a choice of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import noisy_pictures
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext._streams import Draws, random_stream
from hrrl_ext.data import (
    ArrayImages,
    Augmentation,
    AugMix,
    Batches,
    FolderImages,
    ImageSet,
    Mixup,
    RandomResizedCrop,
)
from hrrl_ext.processes import Processes
from hrrl_ext.robust.config import HRRLConfig

CROP = RandomResizedCrop((0.2, 1.0))


def batches(dtype: torch.dtype = torch.uint8, **changes: object) -> Batches:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20, 3, 12, 12), generator=g, dtype=torch.uint8)
    x = x if dtype == torch.uint8 else x.to(dtype) / 255
    target = torch.arange(20) % 3
    images: ImageSet = ArrayImages(x, target)
    settings = {"images": images, "batch_size": 10, "shuffle": True, "seed": 3, "augment": CROP}
    return Batches(**({"concept": target} | settings | changes))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    return noisy_pictures(tmp_path_factory.mktemp("pictures"), 20, image_size=12)


def equal(left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> bool:
    return all(all(map(torch.equal, a, b)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_images_are_cropped_by_their_own_draws(dtype: torch.dtype) -> None:
    here = batches(dtype)
    plain = list(batches(dtype, augment=None).epoch(2))
    order = torch.randperm(20, generator=random_stream(3, 2, "order")).split(here.sizes)
    for rows, (x, *labels), (whole, *same) in zip(order, here.epoch(2), plain, strict=True):
        draws = Draws.of_images(rows, 3, "crop", 2)
        stored = (whole * 255).round().to(torch.uint8) if dtype == torch.uint8 else whole
        cropped = CROP(stored, draws)
        assert torch.equal(x, cropped / 255 if dtype == torch.uint8 else cropped)
        assert equal([tuple(labels)], [tuple(same)]) and not torch.equal(x, whole)


@pytest.mark.parametrize(("mixtures", "crop_of"), [(0, "image"), (2, "image"), (0, "picture")])
def test_batch_size_workers_processes_and_starts_do_not_count(
    mixtures: int, crop_of: str, pictures: FolderImages
) -> None:
    settings = {"augmix": AugMix(), "mixtures": mixtures}
    if crop_of == "picture":  # mixed by pairs, of which one lies in the parts of both processes
        settings = {"images": pictures, "crop_of": "picture", "mixup": Mixup(), "keep_gib": 1.0}
    whole = list(batches(**settings).epoch(2))
    at_once = list(batches(batch_size=20, **settings).epoch(2))
    assert equal([tuple(map(torch.cat, zip(*whole, strict=True)))], at_once)
    assert not mixtures or not torch.equal(*at_once[0][-2:])
    assert equal(list(batches(num_workers=2, **settings).epoch(2)), whole)
    assert equal(list(batches(**settings).epoch(2, start=1)), whole[1:])
    parts = [list(batches(processes=Processes(rank, 2), **settings).epoch(2)) for rank in (0, 1)]
    for of_all, first, second in zip(whole, *parts, strict=True):
        together = tuple(torch.cat(both) for both in zip(first, second, strict=True))
        assert equal([together], [of_all])
    assert not equal(list(batches(**settings).epoch(1)), whole)


def test_pictures_are_cropped_by_the_draws_of_images(pictures: FolderImages) -> None:
    here = batches(images=pictures, crop_of="picture", keep_gib=1.0)
    order = torch.randperm(20, generator=random_stream(3, 2, "order")).split(here.sizes)
    for rows, (x, target, _) in zip(order, here.epoch(2), strict=True):
        parts = pictures.parts(rows, [Draws.of_images(rows, 3, "crop", 2)], CROP)
        assert torch.equal(x, parts[0] / 255) and torch.equal(target, pictures.target[rows])
    twice = batches(images=pictures, crop_of="picture", batch_size=20, sampling="class").epoch(0)
    assert len(next(twice)[0].unique(dim=0)) == 20  # though some images come more than once


def test_a_worker_names_a_picture_that_cannot_be_decoded(
    pictures: FolderImages, tmp_path: Path
) -> None:
    damaged = pictures.subset(range(20))
    damaged.sources = [*pictures.sources[:19], str(tmp_path / "none.png")]
    for workers in (0, 1):
        made = batches(images=damaged, crop_of="picture", num_workers=workers)
        with pytest.raises(OSError, match=r"cannot decode image .*none\.png: .*; hrrl data check"):
            list(made.epoch(0))


def test_an_image_that_comes_twice_is_drawn_twice() -> None:
    drawn = batches(batch_size=20, sampling="class").epoch(0)
    plain = batches(batch_size=20, sampling="class", augment=None).epoch(0)
    (x, *_), (whole, *_) = next(drawn), next(plain)
    assert len(whole.unique(dim=0)) < len(x.unique(dim=0)) == 20


def test_the_trainer_hands_it_on() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    trainer = HRRLTrainer(
        net, data="digits", validation="digits", concepts="classes", epochs=1, batch_size=64,
        tau=0.0, lam=None, resized_crop=0.3, device="cpu", progress="off",
    )  # fmt: skip
    assert trainer.batches.augment == RandomResizedCrop((0.3, 1.0), flip=0.5)
    assert trainer.validation.augment is None
    assert HRRLConfig().augmentation == Augmentation(4, True)
    assert HRRLConfig(resized_crop=0.08, flip=False).augmentation == RandomResizedCrop(
        (0.08, 1), flip=0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resized_crop": -0.1}, "resized_crop must be the least share .* got -0.1"),
        ({"resized_crop": 1.5}, "resized_crop must be the least share .* got 1.5"),
        ({"resized_crop": 0.1, "tau": 0.1, "example_level": "stored"}, "leave resized_crop out"),
        (
            {"crop_of": "picture"},
            "what resized_crop crops, and that is 0, without; give .* or leave",
        ),
        (
            {"resized_crop": 0.1, "crop_of": "whole"},
            "crop_of must be one of image, picture, got 'wh",
        ),
    ],
)
def test_what_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HRRLConfig(**settings)


def test_views_of_batches_are_those_that_can_be_undone() -> None:
    with pytest.raises(ValueError, match="RandomResizedCrop cannot; leave one of the two out"):
        batches(views=True)


def test_pictures_are_those_of_files(pictures: FolderImages) -> None:
    with pytest.raises(ValueError, match="'picture' is of RandomResizedCrop, and augment is None"):
        batches(images=pictures, augment=None, crop_of="picture")
    with pytest.raises(ValueError, match="crop_of 'pictures' is not known; did you mean 'picture'"):
        batches(images=pictures, crop_of="pictures")
    with pytest.raises(
        ValueError,
        match=r"digits-train has images of 8 x 8 pixels and no others; leave crop_of out, or give im",
    ):
        HRRLTrainer(data="digits", concepts="classes", resized_crop=0.1, crop_of="picture")
