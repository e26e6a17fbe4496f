"""Decoders of JPEG on one thread: Pillow, at full and at reduced scale, simplejpeg and torchvision.io.

    pip install simplejpeg torchvision      # either may be missing
    python bench/decoders.py

Milliseconds of the processor an image, least and median of rounds in which all take turns: decoded to a
picture of Pillow's, and decoded, resized and cropped as `DecodedImages` does. Whether pixels are Pillow's
to the bit is looked at first; at reduced scale, by how many of 255 levels those of the result differ.
"""

from __future__ import annotations

import importlib
import io
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, features
from test_input_pipeline import photograph

from hrrl_ext.data.decoding import read_picture
from hrrl_ext.data.resize import fit_picture

SIDE, ROUNDS = 224, 7
SIZES = {(500, 375): (24, 96), (1600, 1200): (8, 92), (4000, 3000): (3, 90)}
"""width and height: how many, of which quality"""
Decode = Callable[[bytes], Image.Image]


def decoders() -> dict[str, Decode]:
    found: dict[str, Decode] = {"Pillow": lambda data: read_picture(io.BytesIO(data))}
    try:
        simple = importlib.import_module("simplejpeg")
        found["simplejpeg"] = lambda data: Image.fromarray(simple.decode_jpeg(data, "RGB"))
    except ImportError as error:
        print(f"without simplejpeg: {error}")
    try:
        of_torch = importlib.import_module("torchvision.io")
        found["torchvision.io"] = partial(_by_torchvision, of_torch)
    except (ImportError, RuntimeError) as error:
        print(f"without torchvision.io: {error}")
    return found


def _by_torchvision(of_torch: Any, data: bytes) -> Image.Image:
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = of_torch.decode_jpeg(content, mode=of_torch.ImageReadMode.RGB)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def reduced(times: int, data: bytes) -> Image.Image:
    """At the least scale of JPEG's that leaves so many times the wanted sides."""
    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", (times * SIDE, times * SIDE))
    picture.load()
    return picture


def race(ways: Mapping[str, Callable[[bytes], object]], files: Sequence[bytes]) -> None:
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            for data in files:
                way(data)
            spent[name].append(1e3 * (time.process_time() - begun) / len(files))
    least = min(spent["Pillow"])
    for name, times in spent.items():
        median = statistics.median(times)
        print(f"  {name:22} {min(times):7.2f} {median:7.2f} ms  {least / min(times):.2f} x")


def main() -> None:
    torch.set_num_threads(1)
    known = decoders()
    turbo = features.version("libjpeg_turbo")
    print(f"Pillow {PIL.__version__} with libjpeg-turbo {turbo}; load {os.getloadavg()[0]:.1f}")
    for (width, height), (count, quality) in SIZES.items():
        random, files = np.random.default_rng(0), []
        for _ in range(count):
            stream = io.BytesIO()
            photograph(random, width, height).save(stream, "JPEG", quality=quality)
            files.append(stream.getvalue())
        kilobytes = sum(map(len, files)) / count / 1e3
        print(f"{width} x {height}, {kilobytes:.0f} KB, decoded")
        for name in [*known][1:]:
            same = all(
                known[name](data).tobytes() == known["Pillow"](data).tobytes() for data in files
            )
            print(f"  {name} has {'the same bits as' if same else 'other pixels than'} Pillow")
        race(known, files)
        print(f"{width} x {height} to {SIDE}")
        scaled = {f"Pillow, {n} x the sides": partial(reduced, n) for n in (1, 2, 4)}
        fitted = {
            name: lambda data, decode=decode: fit_picture(decode(data), SIDE)
            for name, decode in (known | scaled).items()
        }
        race(fitted, files)
        for name in scaled:
            pairs = [(fitted[name](data), fitted["Pillow"](data)) for data in files]
            apart = torch.stack([(a.int() - b.int()).abs() for a, b in pairs]).float()
            print(f"  {name}: {apart.mean():.2f} levels in the mean, {apart.max():.0f} at most")


if __name__ == "__main__":
    main()
