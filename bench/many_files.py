"""Opening ImageNet's number of files without ImageNet, and what workers take of memory over some batches.

    python bench/many_files.py                      # 1.28 million entries, links to one picture a class
    python bench/many_files.py --entries 200000 --profile

Entries are hard links in root/train/class/: what is listed, sorted and packed is what it would be of that
many files, while the disk holds a thousand. Bars: 10 s to open, 1 GiB above what the process had, and no
worker whose memory grows. All is listed once before, so that nothing waits for the disk. On a machine
that does other work as well, the seconds of the processor are those to read.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import pstats
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hrrl_ext.data import Batches, ImageSet, load_images

GIB = 1 << 30
BARS = {
    "seconds to open": 10.0,
    "of the processor": 10.0,
    "GiB to open": 1.0,
    "MiB a worker grew": 16.0,
}


def make(root: Path, entries: int, classes: int) -> None:
    noise = np.random.default_rng(0)
    for c in range(classes):
        folder = root / "train" / f"n{c:08}"
        folder.mkdir(parents=True)
        first = folder / f"n{c:08}_0.JPEG"
        Image.fromarray(noise.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(first, "JPEG")
        for at in range(1, entries // classes + (c < entries % classes)):
            os.link(first, folder / f"n{c:08}_{at}.JPEG")


def opened(root: Path, profile: bool) -> tuple[ImageSet, float, float, float]:
    """The images, seconds, those of the processor, and GiB by which the process grew at most."""
    sum(1 for _ in os.walk(root))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    profiler = cProfile.Profile()
    start, used = time.perf_counter(), time.process_time()
    images = (
        profiler.runcall(load_images, root, image_size=32)
        if profile
        else load_images(root, image_size=32)
    )
    seconds, of_processor = time.perf_counter() - start, time.process_time() - used
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return images, seconds, of_processor, grown * 1024 / GIB


def own_memory(process: int) -> int:
    """Bytes that it shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def workers(images: ImageSet, number: int, count: int, batch_size: int) -> tuple[float, float]:
    """MiB of the largest worker in the end, and by which it grew most since it was warm."""
    batches = Batches(
        images, torch.zeros(len(images), dtype=torch.int64), batch_size, shuffle=True, seed=0,
        num_workers=number, keep_gib=0,
    )  # fmt: skip
    warm: dict[int, int] = {}
    last: dict[int, int] = {}
    for at, _ in enumerate(batches.epoch(0)):
        if at in (count // 2, count - 1):
            now = {
                p.pid: own_memory(p.pid)
                for p in multiprocessing.active_children()
                if p.pid is not None
            }
            warm, last = (now, last) if at == count // 2 else (warm, now)
        if at == count - 1:
            break
    mib = 1 << 20
    return max(last.values()) / mib, max(last[p] - warm[p] for p in last) / mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where to make the links; a temporary one")
    parser.add_argument("--profile", action="store_true", help="which functions opening spends in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make(Path(folder), args.entries, args.classes)
        images, *of_opening = opened(Path(folder), args.profile)
        assert len(images) == args.entries and images.num_classes == args.classes
        most, grew = workers(images, args.workers, args.batches, args.batch_size)
    measured = dict(zip(BARS, (*of_opening, grew), strict=True))
    print(
        f"{args.entries} entries of {args.classes} classes; {args.workers} workers of {most:.0f} MiB"
    )
    for name, value in measured.items():
        print(f"{name:20} {value:8.2f}  bar {BARS[name]:g}")


if __name__ == "__main__":
    main()
