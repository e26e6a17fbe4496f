"""Paths in two arrays: the same texts, and pages that forked workers leave alone."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from hrrl_ext.data.folders import ImageFiles
from hrrl_ext.data.packed import PackedTexts, packed

TEXTS = [
    "a/b.png",
    "",
    "ü/日本.jpg",
    "",
    "\udcff.png",
    "c" * 300,
]  # \udcff: a byte that is no UTF-8
MAPS = Path("/proc/self/smaps_rollup")


@pytest.mark.parametrize("texts", [TEXTS, [], [""], TEXTS[:1]])
def test_as_a_list(texts: list[str]) -> None:
    sequence = PackedTexts(texts)
    assert len(sequence) == len(texts)
    assert list(sequence) == texts
    assert list(reversed(sequence)) == texts[::-1]
    assert sequence[1:-1] == texts[1:-1]
    assert [sequence[-1 - i] for i in range(len(texts))] == texts[::-1]
    assert list(pickle.loads(pickle.dumps(sequence))) == texts
    with pytest.raises(IndexError):
        sequence[len(texts)]
    with pytest.raises(IndexError):
        sequence[-len(texts) - 1]


def test_only_texts_are_packed() -> None:
    assert isinstance(packed(["a"]), PackedTexts)
    other = [Path("a"), 3]
    assert packed(other) is other
    assert packed(packed(TEXTS)) is not None


def test_a_subset() -> None:
    pytest.importorskip("PIL")
    files = ImageFiles(TEXTS, [0] * 6, image_size=2, classes=["a"], name="files")
    assert list(files.subset([2, -1, 2]).sources) == [TEXTS[2], TEXTS[5], TEXTS[2]]


class Unread(ImageFiles):
    def _decode(self, source: str, make: object) -> torch.Tensor:
        return torch.full((3, 1, 1), len(source) % 256, dtype=torch.uint8)


def private_kib() -> int:
    """What of this process's memory is no other's."""
    lines = MAPS.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


@pytest.mark.skipif(not MAPS.exists(), reason="reads what Linux says of a process's memory")
def test_a_forked_worker_copies_nothing() -> None:
    """60 000 paths: of a list it would copy 7 MiB; 1.3 million, 150 MiB in every worker."""
    pytest.importorskip("PIL")
    count = 60_000
    paths = [f"/data/train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(count)]
    images = Unread(paths, [0] * count, image_size=1, classes=["a"], name="many")
    del paths
    read, write = os.pipe()
    if (child := os.fork()) == 0:  # as DataLoader's workers are made
        try:
            before = private_kib()
            for start in range(0, count, 16):  # each path in passing, a few as images
                images.sources[start]
            images.__getitems__(range(0, count, count // 64))
            os.write(write, str(private_kib() - before).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert int(answer.read()) < 3000
