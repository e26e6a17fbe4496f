"""Decoders of JPEG on one thread: Pillow, at full and at reduced scale, simplejpeg and torchvision.io.

    pip install simplejpeg torchvision      # either may be missing
    python bench/decoders.py

Milliseconds of the processor an image, least and median of rounds in which all take turns: decoded to an
array, and decoded, resized and cropped, by Pillow as `DecodedImages` does it, or by torch on bytes. First
whether decoders have Pillow's bits; then, at reduced scale or resized by torch, by how many of 255 levels
results differ, of noise that JPEG compresses as it does photographs and of coloured text.
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
import torch.nn.functional as F
from PIL import Image, ImageDraw, features
from test_input_pipeline import photograph
from torch import Tensor

from hrrl_ext.data.decoding import read_picture
from hrrl_ext.data.resize import fit_picture

SIDE, ROUNDS = 224, 7
SIZES = {(500, 375): (24, 96), (1600, 1200): (8, 92), (4000, 3000): (3, 90)}
"""width and height: how many, of which quality"""
TIMES = (1, 2, 4)
ToArray = Callable[[bytes], np.ndarray]
ToPicture = Callable[[bytes], Image.Image]


def by_pillow(data: bytes) -> Image.Image:
    return read_picture(io.BytesIO(data))


def decoders() -> dict[str, ToArray]:
    found: dict[str, ToArray] = {"Pillow": lambda data: np.array(by_pillow(data))}
    try:
        simple = importlib.import_module("simplejpeg")
        found["simplejpeg"] = lambda data: simple.decode_jpeg(data, "RGB")
    except ImportError as error:
        print(f"without simplejpeg: {error}")
    try:
        found["torchvision.io"] = partial(
            _by_torchvision, importlib.import_module("torchvision.io")
        )
    except (ImportError, RuntimeError) as error:
        print(f"without torchvision.io: {error}")
    return found


def _by_torchvision(of_torch: Any, data: bytes) -> np.ndarray:
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: Tensor = of_torch.decode_jpeg(content, mode=of_torch.ImageReadMode.RGB)
    return pixels.permute(1, 2, 0).numpy()


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


def text(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Lines of letters, each line of a colour."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for top in range(0, height, 24):
        letters = "".join(map(chr, random.integers(33, 127, width // 10)))
        colour = tuple(random.integers(0, 256, 3).tolist())
        draw.text((5, top), letters, fill=colour, font_size=22)
    return page


def jpeg(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def fit_by_torch(pixels: np.ndarray) -> Tensor:
    """[H, W, 3], wider than high, as `fit_picture` has it."""
    height, width = pixels.shape[:2]
    columns = SIDE * width // height
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    x = F.interpolate(x, (SIDE, columns), mode="bilinear", align_corners=False, antialias=True)
    left = round((columns - SIDE) / 2)
    return x[0, :, :, left : left + SIDE]


def ways_to_fit(to_array: Mapping[str, ToArray]) -> dict[str, Callable[[bytes], Tensor]]:
    def by_pillow_of(to_picture: ToPicture) -> Callable[[bytes], Tensor]:
        return lambda data: fit_picture(to_picture(data), SIDE)

    def of_array(decode: ToArray) -> ToPicture:
        return lambda data: Image.fromarray(decode(data))

    def by_torch_of(decode: ToArray) -> Callable[[bytes], Tensor]:
        return lambda data: fit_by_torch(decode(data))

    ways = {"Pillow": by_pillow_of(by_pillow)}
    for times in TIMES:
        ways[f"Pillow, {times} x the sides"] = by_pillow_of(partial(reduced, times))
    for name, decode in to_array.items():
        if name != "Pillow":
            ways[name] = by_pillow_of(of_array(decode))
        ways[f"{name}, torch"] = by_torch_of(decode)
    return ways


def apart(way: Callable[[bytes], Tensor], files: Sequence[bytes]) -> str:
    """By how much what comes out differs from what is read."""
    pairs = [(way(data), fit_picture(by_pillow(data), SIDE)) for data in files]
    levels = torch.stack([(a.int() - b.int()).abs() for a, b in pairs]).float()
    return f"{levels.mean():.3f} levels in the mean, {levels.max():.0f} at most"


def main() -> None:
    torch.set_num_threads(1)
    to_array = decoders()
    fits = ways_to_fit(to_array)
    turbo = features.version("libjpeg_turbo")
    print(f"Pillow {PIL.__version__} with libjpeg-turbo {turbo}; load {os.getloadavg()[0]:.1f}")
    for (width, height), (count, quality) in SIZES.items():
        random = np.random.default_rng(0)
        files = [jpeg(photograph(random, width, height), quality) for _ in range(count)]
        letters = [jpeg(text(random, width, height), quality)]
        print(f"{width} x {height}, {sum(map(len, files)) / count / 1e3:.0f} KB, to an array")
        for name, decode in [*to_array.items()][1:]:
            same = all(np.array_equal(decode(data), to_array["Pillow"](data)) for data in files)
            print(f"  {name} has {'the bits of' if same else 'other pixels than'} Pillow")
        race(to_array, files)
        print(f"{width} x {height} to {SIDE}")
        race(fits, files)
        for name, way in fits.items():
            print(f"  {name}: {apart(way, files)}; of text {apart(way, letters)}")


if __name__ == "__main__":
    main()
