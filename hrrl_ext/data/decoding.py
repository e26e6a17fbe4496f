"""What becomes of the pixels of an image file: one decoder for every file that is read.

The page docs/data.md#what-is-read-and-how has the same as a table. Needs Pillow, the extra `images`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from .._regular import regular

if TYPE_CHECKING:
    from PIL import Image, ImageFile

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".pgm", ".ppm", ".pbm", ".pnm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Of the files that are images, in any case of letters."""

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP")
"""What is in them, whatever the suffix says. No others: Pillow hands some to other programs."""

# Pillow's mode → what happens, where it is not transparent.
_OPAQUE = {"RGB", "L", "1", "P", "CMYK", "YCbCr"}
_ALPHA = {"RGBA", "LA", "PA", "RGBa", "La"}
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # of EXIF: 1 is upright
_BITS_PER_SAMPLE = 258  # of TIFF, as the next ones
_PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 262, 277, 338
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # channels of a photometric interpretation
_DEEP = (
    "has more than 8 bits a channel, which would be cut off; convert it to 8 bits, or give the images as "
    "arrays of floats in [0, 1] (.npz)"
)

_SMALLER = "Make the picture smaller, or raise PIL.Image.MAX_IMAGE_PIXELS where it is to be trusted"


class NotTaken(ValueError):
    """A picture that is refused, damaged or not.

    kind: "no image", "empty", "deep", "channels", "large" or "refused".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'decoding image files needs Pillow: pip install "hrrl_ext[images]"'
        ) from error


def read_picture(
    path: str | os.PathLike[str] | IO[bytes],
    look: Callable[[Image.Image], object] | None = None,
    least: int | None = None,
) -> Image.Image:
    """The first picture of a file, see `as_rgb`; ``look`` is shown it before it is decoded.

    ``least``: a JPEG is decoded at a half, a quarter or an eighth of its sides, the smallest at which
    both are of so many pixels.

    `NotTaken` for another kind of file, for more pixels than PIL.Image.MAX_IMAGE_PIXELS (of a JPEG half
    its sides are taken then), for more than 8 bits a channel, and for channels besides colour and
    transparency, which Pillow drops; of a broken file what Pillow raises.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        path = regular(path) if isinstance(path, str | os.PathLike) else path
        opened = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise NotTaken("no image", f"its first bytes are of none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise NotTaken("large", f"{error} {_SMALLER}") from None
    with opened as picture:
        if look is not None:
            look(picture)
        _require_all_is_read(picture)
        if least is not None:
            picture.draft("RGB", (least, least))  # which does nothing but to a JPEG
        _require_few_pixels(picture)
        picture.load()  # the file is closed on exit
        return as_rgb(picture)


def _require_few_pixels(picture: ImageFile.ImageFile) -> None:
    """Before they are decoded: a file of some kilobytes may hold gigabytes of one colour."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    if most is not None and picture.width * picture.height > most:
        half = (picture.width // 2, picture.height // 2)
        picture.draft("RGB", half)
        if picture.width * picture.height > most:
            raise NotTaken(
                "large",
                f"{picture.width} x {picture.height} pixels are more than {most:,}. {_SMALLER}",
            )


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB of 8 bits, upright.

    Grey and palettes become RGB, CMYK and YCbCr by Pillow's formulas. What is transparent is laid on
    white: its own colour was never to be seen. The orientation of EXIF is carried out. `NotTaken` for
    any other mode.
    """
    if picture.mode not in _OPAQUE | _ALPHA:
        deep = picture.mode.startswith(("I", "F"))
        what = _DEEP if deep else "is not read; convert it to RGB"
        raise NotTaken("deep" if deep else "channels", f"mode {picture.mode} {what}")
    turn = orientation(picture)
    if picture.mode in _ALPHA or "transparency" in picture.info:
        picture = _on_white(picture)
    elif picture.mode != "RGB":
        picture = picture.convert("RGB")
    return picture if turn == 1 else _turned(picture, turn)


def _on_white(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if picture.mode == "La":  # Pillow knows no way from it to RGBA
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    page = Image.new("RGBA", picture.size, _WHITE)
    return Image.alpha_composite(page, picture).convert("RGB")


def orientation(picture: Image.Image) -> int:
    """Of EXIF, 1 to 8; 1 is upright."""
    try:
        turn = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many types for a broken header; such a one tells nothing
        return 1
    return turn if turn in range(1, 9) else 1


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    turned = picture.transpose(turns[orientation - 2])
    turned.info = {}  # it says how to turn, and that is done
    return turned


def _require_all_is_read(picture: ImageFile.ImageFile) -> None:
    """That Pillow does not drop bits or channels: of 16 it takes 8, of RGB and infrared it takes RGB."""
    if picture.format == "PNG":
        deep = ";16" in str(picture.tile[0][3])
    elif picture.format == "PPM":
        args = picture.tile[0][3]
        deep = isinstance(args, tuple) and isinstance(args[1], int) and args[1] > 255
    elif picture.format == "TIFF":
        tags = picture.tag_v2  # type: ignore[attr-defined]
        deep = max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8
        colours = _COLOURS.get(tags.get(_PHOTOMETRIC), 0)
        samples, extra = tags.get(_SAMPLES, 1), tags.get(_EXTRA_SAMPLES, ())
        more = samples - colours - (1 if set(extra) & {1, 2} or not extra else 0)
        if colours and more > 0:
            raise NotTaken(
                "channels",
                f"{samples} channels, of which {colours} are colours; images are RGB, and what "
                "else there is would be dropped: choose channels, and write them as RGB",
            )
    else:
        return
    if deep:
        raise NotTaken("deep", f"{picture.format} {_DEEP}")
