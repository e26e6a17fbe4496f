"""What is in one image of a set, looked at as training will read it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .._regular import regular
from .decoding import FORMATS, NotTaken, orientation
from .folders import DecodedImages, ImageFiles
from .image_sets import ImageSet

if TYPE_CHECKING:
    from PIL import Image

STOPS = {
    "empty": "files without a byte",
    "damaged": "cut off or damaged",
    "no image": f"of none of {', '.join(FORMATS)}",
    "deep": "more than 8 bits a channel",
    "channels": "colours or channels that are not read",
    "refused": "cannot be opened, or larger than is decoded",
}
"""Kinds of images that stop a training that meets one, and what they are."""
WARNS = {
    "contradicting": "the same pixels in another class",
    "leaked": "the same pixels in another part",
    "repeated": "the same pixels again, in the same class",
    "constant": "of a single colour",
    "small": "a side below min_size",
    "long": "one side more than max_aspect times the other",
    "animated": "several pictures, of which the first is taken",
    "turned": "turned by EXIF, and taken upright",
    "converted": "CMYK or another mode that a formula makes RGB",
    "case": "names that differ by case alone",
}
"""Of images that are read, and may not be what was meant."""
BIT = {kind: 1 << place for place, kind in enumerate((*STOPS, *WARNS))}

LOOKED = np.dtype(
    [
        ("found", "u4"),  # bits of `BIT`
        ("width", "u4"),  # as it lies in the file
        ("height", "u4"),
        ("format", "S4"),
        ("mode", "S5"),
        ("pixels", "u8", (2,)),  # a digest of what is seen: RGB, upright
        ("name", "u8"),  # a digest of the name in one case
    ]
)
"""What is kept of an image: some 45 bytes."""

_USUAL = {"RGB", "L", "1", "P", "RGBA", "LA"}
_LONGEST = 200  # letters of a reason


@dataclass(frozen=True)
class Limits:
    """From where on an image is remarkable."""

    min_size: int
    """pixels of the shorter side"""
    max_aspect: float
    """of the longer side over the shorter"""
    min_images: int
    """of a class"""

    def __post_init__(self) -> None:
        if self.min_size < 0 or self.min_images < 0 or not self.max_aspect >= 1:
            raise ValueError(
                "check: min_size and min_images must be at least 0 and max_aspect at least 1, got "
                f"{self.min_size}, {self.min_images} and {self.max_aspect}"
            )


def look_at(images: ImageSet, row: int, limits: Limits) -> tuple[np.ndarray, str]:
    """A row of `LOOKED`, and what is wrong with an image that cannot be read."""
    looked, why = np.zeros((), LOOKED), ""
    try:
        if isinstance(images, DecodedImages):
            _look_at_picture(images, row, limits, looked)
        else:
            _look_at_tensor(images.__getitems__([row])[0][0], looked)
    except Exception as error:  # decoders raise many types
        kind, why = _kind_of(images, row, error)
        looked["found"] = BIT[kind]
    if isinstance(images, ImageFiles):
        looked["name"] = _digest(os.fsencode(images.sources[row].casefold()), 8)[0]
    return looked, why[:_LONGEST]


def _look_at_picture(images: DecodedImages, row: int, limits: Limits, looked: np.ndarray) -> None:
    if isinstance(images, ImageFiles) and not _regular(images.sources[row]).stat().st_size:
        raise NotTaken("empty", "0 bytes")
    seen: list[Image.Image] = []

    def look(opened: Image.Image) -> None:
        looked["width"], looked["height"] = opened.size
        looked["format"] = (opened.format or "").encode()
        looked["mode"] = opened.mode.encode()
        seen.append(opened)

    picture = images.picture(row, look)
    shorter, longer = sorted(map(int, (looked["width"], looked["height"])))
    low, high = np.asarray(picture.getextrema()).T
    there = {
        "animated": _is_animated(images, row, seen[0]),
        "turned": orientation(seen[0]) != 1,  # which decoding has read
        "converted": looked["mode"].item().decode() not in _USUAL,
        "small": shorter < limits.min_size,
        "long": longer > limits.max_aspect * shorter,
        "constant": bool((low == high).all()),
    }
    looked["found"] = sum(BIT[kind] for kind, is_there in there.items() if is_there)
    looked["pixels"] = _of_pixels(picture.height, picture.width, 3, picture.tobytes())


def _is_animated(images: DecodedImages, row: int, opened: Image.Image) -> bool:
    """A GIF has to be read on for that, and is not the same afterwards where its next picture is damaged;
    so another look is taken at its file."""
    if opened.format != "GIF":
        return bool(getattr(opened, "is_animated", False))
    if not isinstance(images, ImageFiles):
        return False
    from PIL import Image

    with suppress(Exception), Image.open(regular(images.sources[row]), formats=("GIF",)) as again:
        return bool(getattr(again, "is_animated", False))
    return False


def _look_at_tensor(image: Tensor, looked: np.ndarray) -> None:
    """Of a set that has its images in one size of its own."""
    channels, height, width = image.shape
    looked["width"], looked["height"] = width, height
    values = image.flatten(1)
    if bool((values.amin(1) == values.amax(1)).all()):
        looked["found"] = BIT["constant"]
    in_order = image.permute(1, 2, 0).contiguous().numpy()  # as a picture has its pixels
    looked["pixels"] = _of_pixels(height, width, channels, in_order.tobytes())


def _of_pixels(height: int, width: int, channels: int, content: bytes) -> np.ndarray:
    shape = np.array([height, width, channels], np.int64).tobytes()
    return _digest(content, 16, key=shape)


def _digest(content: bytes, size: int, key: bytes = b"") -> np.ndarray:
    return np.frombuffer(blake2b(content, digest_size=size, key=key).digest(), np.uint64)


def _regular(path: str) -> Path:
    try:
        return regular(path)
    except ValueError as error:
        raise NotTaken("refused", str(error)) from None


def _kind_of(images: ImageSet, row: int, error: Exception) -> tuple[str, str]:
    if isinstance(error, NotTaken):
        if error.kind == "no image" and _begins_as_one(images, row):
            return "damaged", "its header is cut off or damaged"
        return ("refused" if error.kind == "large" else error.kind), str(error)
    why = str(error.__cause__ or error) or type(error).__name__
    of_system = isinstance(error, OSError) and error.errno is not None
    return ("refused" if of_system else "damaged"), why


def _begins_as_one(images: ImageSet, row: int) -> bool:
    """Whether a file that is not known for an image has the first bytes of one."""
    from PIL import Image

    if not isinstance(images, ImageFiles):
        return False
    with regular(images.sources[row]).open("rb") as file:
        first = file.read(16)
    accepts = [Image.OPEN[name][1] for name in FORMATS]
    with suppress(Exception):
        return any(accept is not None and accept(first) is True for accept in accepts)
    return False
