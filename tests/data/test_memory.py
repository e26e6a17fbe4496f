"""Images kept in memory: fetched once, and the bits of every other way."""

from __future__ import annotations

import pytest
import torch

from hrrl_ext.data import ArrayImages, Augmentation, Batches
from hrrl_ext.data.image_sets import ImageSet
from hrrl_ext.data.memory import keep
from hrrl_ext.processes import Processes

N, SIZE = 11, 3 * 6 * 8
CPU = torch.device("cpu")


class Fetched(ImageSet):
    """Images made when they are fetched, which is counted."""

    def __init__(self, n: int = N, dtype: torch.dtype = torch.uint8) -> None:
        super().__init__(
            torch.arange(n) % 5, (3, 6, 8), classes=list("abcde"), concept_map=None, name="made"
        )
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (n, 3, 6, 8), generator=generator, dtype=torch.uint8)
        self.pixels = pixels if dtype == torch.uint8 else pixels / 255
        self.fetches: list[int] = []

    def __getitems__(self, indices):
        rows = self._rows(indices)
        self.fetches += rows.tolist()
        return self.pixels[rows], self.target[rows]


def batches(images: ImageSet, **changes) -> Batches:
    settings = {"shuffle": True, "seed": 5, "augment": Augmentation(2)} | changes
    return Batches(images, torch.arange(len(images)) % 3, 4, **settings)


def bits(made: Batches, epochs=(0, 1, 2)) -> list[torch.Tensor]:
    return [part.cpu() for epoch in epochs for batch in made.epoch(epoch) for part in batch]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_bits_kept_fetched_or_in_memory(dtype, workers):
    made = Fetched(dtype=dtype)
    expected = bits(batches(ArrayImages(made.pixels, made.target, classes=made.classes)))
    assert same(bits(batches(made, num_workers=workers)), expected)
    assert same(bits(batches(made, num_workers=workers, keep_gib=1.0)), expected)


def test_every_image_is_fetched_once():
    made = Fetched()
    kept = batches(made, keep_gib=1.0)
    bits(kept, epochs=[0])
    assert sorted(made.fetches) == [0, *range(N)]  # the first one tells the size
    bits(kept, epochs=[1, 2])
    assert len(made.fetches) == N + 1


def test_an_epoch_begun_in_the_middle_fetches_the_rest_later():
    made = Fetched()
    kept = batches(made, keep_gib=1.0)
    list(kept.epoch(0, start=2))
    expected = bits(batches(Fetched()), epochs=[1, 2])
    assert same(bits(kept, epochs=[1, 2]), expected)
    assert sorted(made.fetches) == [0, *range(N)]


def test_an_epoch_left_half_way():
    made = Fetched()
    kept = batches(made, keep_gib=1.0)
    next(kept.epoch(0))
    assert same(bits(kept), bits(batches(Fetched())))


def test_each_process_keeps_its_own():
    made = [Fetched(), Fetched()]
    parts = [
        bits(batches(images, keep_gib=1.0, processes=Processes(rank, 2)))
        for rank, images in enumerate(made)
    ]
    plain = [bits(batches(Fetched(), processes=Processes(rank, 2))) for rank in (0, 1)]
    assert all(same(left, right) for left, right in zip(parts, plain, strict=True))


def test_the_bound():
    made = Fetched()
    assert keep(made, CPU, N * SIZE) is not None
    assert keep(made, CPU, N * SIZE - 1) is None
    assert keep(Fetched(dtype=torch.float32), CPU, N * SIZE) is None  # four bytes a value
    assert keep(Fetched(0), CPU, 1e9) is None
    with pytest.raises(ValueError, match="keep_gib must be at least 0, got -1"):
        batches(made, keep_gib=-1)
    with pytest.raises(ValueError, match="keep_gib must be at least 0, got nan"):
        batches(made, keep_gib=float("nan"))


def test_images_in_memory_are_not_copied_on_the_cpu():
    made = Fetched()
    assert keep(ArrayImages(made.pixels, made.target), CPU, 1e9) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["array", "fetched"])
@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_the_same_bits_on_a_gpu(kind, gib):
    made = Fetched()
    images = (
        ArrayImages(made.pixels, made.target, classes=made.classes) if kind == "array" else made
    )
    on_gpu = batches(images, device="cuda", keep_gib=gib)
    assert same(bits(on_gpu), bits(batches(Fetched())))
    kept = on_gpu._fetcher._kept
    assert (kept is not None) == (gib > 0)
    if kept is not None:
        assert kept.device.type == "cuda"
