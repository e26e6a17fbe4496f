"""Images per second of one core, from JPEG files of ImageNet's size to batches of 224 pixels.

    pytest bench/test_input_pipeline.py -s

Ours is `Batches` on `FolderImages`; the peer is the usual data set of one image at a time, written by
hand on Pillow and `DataLoader` as torchvision's reference script is: decode, resize, crop, ToTensor,
collate. Both make the same bits, float32 in [0, 1]. Counted is the processor time of all processes
together, so that other work on the machine and the number of cores hardly matter. What the augmentation
costs is not in it: ours runs on the device.

Providers are not called "ours" here: table.py tells about operators.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrrl_ext.data import Batches, FolderImages
from hrrl_ext.data.folders import ImageFiles

Image = pytest.importorskip("PIL.Image")

IMAGES, FILES, BATCH, SIDE, WIDTH, HEIGHT = 512, 64, 64, 224, 500, 375
QUALITY = 96  # some 100 KB a file, the mean of ImageNet's
ROUNDS = 3


def photograph(random: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Noise of all scales, which JPEG compresses about as it does photographs."""
    pixels = np.zeros((height, width, 3))
    for scale, weight in ((64, 0.5), (16, 0.3), (4, 0.15), (1, 0.05)):
        small = (height // scale + 2, width // scale + 2, 3)
        noise = Image.fromarray(random.integers(0, 256, small, dtype=np.uint8))
        pixels += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FILES pictures in two classes; an epoch sees each several times, from the system's cache."""
    root, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for number in range(FILES):
        folder = root / f"n{number % 2:08}"
        folder.mkdir(exist_ok=True)
        photograph(random).save(folder / f"{number:04}.JPEG", quality=QUALITY)
    return root


class OneByOne(Dataset[tuple[Tensor, int]]):
    """What ImageFolder with Resize, CenterCrop and ToTensor does, without torchvision."""

    def __init__(self, files: Sequence[str], target: list[int]) -> None:
        self.files, self.target = files, target

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with open(self.files[index], "rb") as file:
            picture = Image.open(file).convert("RGB")
        width, height = picture.size
        size = (SIDE * width // height, SIDE) if width > height else (SIDE, SIDE * height // width)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
        picture = picture.crop((left, top, left + SIDE, top + SIDE))
        tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return tensor.to(torch.float32).div(255), self.target[index]


def epoch_of_ours(images: ImageFiles, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    concept = torch.zeros(len(images), dtype=torch.int64)
    made = Batches(images, concept, BATCH, shuffle=False, num_workers=workers)
    return ((x, target) for x, target, _ in made.epoch(0))


def epoch_of_peer(images: ImageFiles, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = OneByOne(images.sources, images.target.tolist())
    return iter(DataLoader(rows, batch_size=BATCH, num_workers=workers))


EPOCHS = {"batches": epoch_of_ours, "one by one": epoch_of_peer}


def check(images: ImageFiles, epoch: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Every batch against the direct path: decoded in this process, one image after the other."""
    direct = OneByOne(images.sources, images.target.tolist())
    seen = 0
    for x, target in epoch:
        assert x.shape == (BATCH, 3, SIDE, SIDE)
        assert x.dtype == torch.float32
        assert torch.equal(target, images.target[seen : seen + BATCH])
        assert torch.equal(x, torch.stack([direct[seen + i][0] for i in range(BATCH)]))
        seen += BATCH
    assert seen == len(images)


def processor_seconds() -> float:
    """Of this process and those it has waited for."""
    gc.collect()  # ends the workers of a loader that is done
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("provider", EPOCHS)
def test_input_pipeline(
    provider: str, workers: int, tree: Path, benchmark: BenchmarkFixture
) -> None:
    torch.set_num_threads(1)
    files = FolderImages(tree, image_size=SIDE)
    make: Callable[[ImageFiles, int], Iterator[tuple[Tensor, Tensor]]] = EPOCHS[provider]
    check(files, make(files, workers))
    images = files.subset(torch.arange(IMAGES) % FILES)
    spent: list[float] = []

    def epoch() -> None:
        before, seen = processor_seconds(), 0
        for x, _ in make(images, workers):
            seen += len(x)
        spent.append(processor_seconds() - before)
        assert seen == IMAGES

    benchmark.group = f"input_pipeline {workers} workers"
    benchmark.pedantic(epoch, rounds=ROUNDS, iterations=1)
    rates = sorted(IMAGES / seconds for seconds in spent)
    benchmark.extra_info.update(
        op="input_pipeline", provider=provider, workers=workers, images_per_core_second=rates
    )
    print(
        f"\n{provider}, {workers} workers: {rates[0]:.0f} to {rates[-1]:.0f} images per core second"
    )
