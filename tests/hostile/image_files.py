"""Image files of every kind that is read, damaged; what Pillow itself makes of them is the other route."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from damage import BYTES, Files
from PIL import Image, ImageOps
from trial import Attempt, Family

from hrrl_ext.data.folders import ImageFiles

_SIDE = 12
_PIXELS = np.random.default_rng(1).integers(0, 256, (_SIDE, _SIDE, 4), dtype=np.uint8)


def _picture(mode: str) -> Image.Image:
    picture = Image.fromarray(_PIXELS, "RGBA")
    if mode == "P":
        return picture.convert("RGB").quantize(16)
    return picture.convert(mode)


# Suffix, mode, what Pillow is told: every kind in docs/data.md.
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((".png", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    (".png", "P", {"transparency": 3}), (".png", "I;16", {}),
    *((".jpg", mode, {"quality": 90}) for mode in ("L", "RGB", "CMYK")),
    (".jpg", "RGB", {"progressive": True}), (".jpg", "RGB", {"exif": 6}),
    *((".bmp", mode, {}) for mode in ("1", "L", "P", "RGB")), (".dib", "RGB", {}),
    (".gif", "P", {}), (".gif", "P", {"transparency": 3}),
    (".pbm", "1", {}), (".pgm", "L", {}), (".ppm", "RGB", {}),
    *((".tif", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")),
    *((".tif", "RGB", {"compression": how}) for how in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
    (".webp", "RGB", {"lossless": True}), (".webp", "RGBA", {"lossless": True}), (".webp", "RGB", {}),
)  # fmt: skip


def _written(path: Path, mode: str, options: dict[str, Any]) -> None:
    if mode == "I;16":
        Image.fromarray(_PIXELS[..., 0].astype(np.uint16) * 257).save(path)
        return
    if turn := options.get("exif"):
        exif = Image.Exif()
        exif[0x0112] = turn
        options = {"exif": exif}
    _picture(mode).save(path, **options)


def by_pillow(content: bytes) -> np.ndarray:
    """Of its own size, on white; an error for what docs/data.md says is not read."""
    with Image.open(io.BytesIO(content)) as picture:
        if picture.format == "PNG":
            require_checksums(content)
        if picture.mode.startswith(("I", "F")) or _bits(picture) > 8:
            raise ValueError("deep")
        picture.load()
        try:
            upright = ImageOps.exif_transpose(picture)
        except Exception:  # a broken header turns nothing
            upright = picture
        clear = upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
        if not clear:
            return np.asarray(upright.convert("RGB"))
        if upright.mode == "La":
            upright = upright.convert("LA")
        if "transparency" in picture.info:  # which turning leaves behind
            upright.info["transparency"] = picture.info["transparency"]
        page = Image.new("RGBA", upright.size, "white")
        return np.asarray(Image.alpha_composite(page, upright.convert("RGBA")).convert("RGB"))


def require_checksums(content: bytes) -> None:
    """Of every chunk of a PNG up to its end."""
    at = 8
    while at < len(content):
        size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        body, told = content[at + 4 : at + 8 + size], content[at + 8 + size : at + 12 + size]
        if zlib.crc32(body) != int.from_bytes(told) or len(told) < 4:
            raise ValueError("checksum")
        if kind == b"IEND":
            return
        at += 12 + size


def _bits(picture: Image.Image) -> int:
    """A channel, as the header says."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    if picture.format == "PNG":
        return 16 if ";16" in str(picture.tile[0][3]) else 8  # type: ignore[attr-defined]
    if picture.format == "PPM":
        found = picture.tile[0][3]  # type: ignore[attr-defined]
        return 16 if isinstance(found, tuple) and found[-1] > 255 else 8
    return 8


def images(folder: Path) -> Callable[[Random], Attempt]:
    files = []
    for number, (suffix, mode, options) in enumerate(KINDS):
        path = folder / f"{number}{suffix}"
        _written(path, mode, dict(options))
        if mode == "I;16":
            continue
        files.append(Files({path: BYTES}, partial(_read, path), said=partial(_fit, path)))
    return lambda chance: chance.choice(files)(chance)


def _read(path: Path) -> np.ndarray:
    images = ImageFiles([str(path)], [0], image_size=_SIDE, classes=["a"], name="images")
    return images[0][0].numpy()


def _fit(path: Path) -> np.ndarray:
    """At the size that it has, which is the one asked for; others are resized by the library alone."""
    pixels = by_pillow(path.read_bytes())
    if pixels.shape[:2] != (_SIDE, _SIDE):
        from hrrl_ext.data.resize import fit_picture

        return fit_picture(Image.fromarray(pixels), (_SIDE, _SIDE)).numpy()
    return pixels.transpose(2, 0, 1)


FAMILIES: dict[str, Family] = {"images": images}
