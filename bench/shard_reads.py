"""Reading pictures of shards that no cache holds: in any order, through a buffer, and as they stand.

    python bench/shard_reads.py --folder /mnt/disk      # where 2 GB may lie meanwhile

Files of 1280 times 100 KB stand for shards: each picture is one read at one place, as `ShardImages` has
it, without decoding. Before each round the system is told to forget the files (posix_fadvise). And, of
ImageNet's images in 1000 shards, how long an order takes and from how many shards a batch of 256 comes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from hrrl_ext.data.sampling import through_buffer

SHARDS, EACH, SIZE, READS, ROUNDS = 16, 1280, 100_000, 4000, 3
BUFFERS = (500, 2000)
IMAGENET, BATCH = 1_281_167, 256


def forget(shards: Sequence[Path]) -> None:
    for shard in shards:
        with shard.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def speed(shards: Sequence[Path], rows: Sequence[int]) -> float:
    forget(shards)
    begun, size = time.perf_counter(), 0
    for row in rows:
        with shards[row // EACH].open("rb") as file:
            file.seek(row % EACH * SIZE)
            size += len(file.read(SIZE))
    return size / 1e6 / (time.perf_counter() - begun)


def of_imagenet(buffer: int) -> str:
    shards = torch.arange(IMAGENET).tensor_split(1000)
    begun = time.process_time()
    order = through_buffer(shards, buffer, torch.Generator().manual_seed(0))
    seconds = time.process_time() - begun
    shard = order * 1000 // IMAGENET
    batches = shard[: len(shard) // BATCH * BATCH].view(-1, BATCH)[::50]
    met = sum(len(batch.unique()) for batch in batches) / len(batches)
    return f"buffer of {buffer}: {seconds:.2f} s, {met:.0f} shards a batch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a temporary one, if not given")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    for buffer in (1000, 10_000, IMAGENET):
        print(of_imagenet(buffer))
    count = SHARDS * EACH
    with tempfile.TemporaryDirectory(dir=folder) as place:
        shards = [Path(place) / f"{number}.tar" for number in range(SHARDS)]
        for shard in shards:
            with shard.open("wb") as file:
                file.write(os.urandom(EACH * SIZE))
                os.fsync(file.fileno())  # what is not on the disk is not forgotten
        found: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            draws = torch.Generator().manual_seed(number)
            orders = {"any order": torch.randperm(count, generator=draws)}
            of_shards = torch.arange(count).split(EACH)
            for buffer in BUFFERS:
                orders[f"buffer of {buffer}"] = through_buffer(of_shards, buffer, draws)
            orders["as they stand"] = torch.arange(count)
            for name, order in orders.items():
                found.setdefault(name, []).append(speed(shards, order[:READS].tolist()))
    for name, speeds in found.items():
        print(f"{name:16} {min(speeds):5.0f} to {max(speeds):5.0f} MB/s")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
