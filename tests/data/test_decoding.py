"""What becomes of the pixels of a file, kind by kind, and that the page says the same."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hrrl_ext._streams import Draws
from hrrl_ext.data import FolderImages, RandomResizedCrop, folders, load_images
from hrrl_ext.data.decoding import FORMATS, SUFFIXES, as_rgb, read_picture

Image = pytest.importorskip("PIL.Image")

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
RED, HIDDEN, WHITE = (250, 10, 20), (9, 8, 7), (255, 255, 255)
MORE_BITS = "more than 8 bits a channel"


def encoded(picture, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file


def decoded(file: io.BytesIO | bytes) -> np.ndarray:
    picture = read_picture(io.BytesIO(file) if isinstance(file, bytes) else file)
    assert picture.mode == "RGB"
    return np.array(picture)


def png(colour_type: int, channels: int, bits: int) -> bytes:
    """One pixel of 0x1234 in every channel, written by the specification: Pillow writes no RGB of 16 bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    pixel = b"\x12\x34" * channels if bits == 16 else b"\x12" * channels
    header = struct.pack(">IIBBBBB", 1, 1, bits, colour_type, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + pixel)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(bits: int, samples: int, photometric: int, extra: tuple[int, ...] = ()) -> bytes:
    """One black pixel, written by the specification."""
    pixel = bytes(samples * bits // 8)
    tags = [
        (256, (1,)), (257, (1,)), (258, (bits,) * samples), (259, (1,)), (262, (photometric,)),
        (273, (8,)), (277, (samples,)), (278, (1,)), (279, (len(pixel),)),
    ] + ([(338, extra)] if extra else [])  # fmt: skip
    body, entries = bytearray(pixel + bytes(len(pixel) % 2)), b""
    for tag, values in tags:
        value = struct.pack(f"<{len(values)}H", *values)
        if len(value) > 4:
            place, value = 8 + len(body), value
            body += value
            value = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + bytes(body) + directory


LOSSLESS = {"PNG": {}, "BMP": {}, "PPM": {}, "TIFF": {}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_rgb_of_8_bits_is_taken_as_it_is(kind):
    file = encoded(Image.fromarray(PIXELS), kind, **LOSSLESS[kind])
    assert np.array_equal(decoded(file), PIXELS)


def test_a_jpeg_is_what_pillow_makes_of_it():
    file = encoded(Image.fromarray(PIXELS), "JPEG")
    assert np.array_equal(decoded(file), np.array(Image.open(file)))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palettes_become_rgb(mode):
    picture = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
    assert decoded(encoded(picture, "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_cmyk_becomes_rgb():
    picture = Image.new("CMYK", (1, 1), (0, 255, 255, 0))  # magenta and yellow on white paper
    assert decoded(encoded(picture, "TIFF")).tolist() == [[[255, 0, 0]]]


DEEP = {
    "PNG, grey": png(0, 1, 16), "PNG, RGB": png(2, 3, 16), "PNG, grey and alpha": png(4, 2, 16),
    "PNG, RGBA": png(6, 4, 16), "TIFF, grey": tiff(16, 1, 1), "TIFF, RGB": tiff(16, 3, 2),
    "TIFF, RGBA": tiff(16, 4, 2, (2,)), "TIFF, 32 bits": tiff(32, 1, 1),
    "PGM": b"P5 1 1 65535\n\x12\x34", "PGM, 10 bits": b"P5 1 1 1023\n\x02\x34",
    "PPM": b"P6 1 1 65535\n" + b"\x12\x34" * 3, "PPM, 12 bits": b"P6 1 1 4095\n" + b"\x02\x34" * 3,
    "PPM, text": b"P3 1 1 1000\n500 500 500\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_are_refused(kind):
    """Pillow takes the upper 8 of some, and cuts others off at 255."""
    with pytest.raises(ValueError, match=f"{MORE_BITS}.*convert it to 8 bits, or give"):
        read_picture(io.BytesIO(DEEP[kind]))


def test_the_same_files_of_8_bits_are_read():
    """What is refused above is refused for its bits, not for how these tests write it."""
    assert decoded(png(2, 3, 8)).tolist() == [[[0x12] * 3]]
    assert decoded(tiff(8, 3, 2)).tolist() == [[[0, 0, 0]]]
    assert decoded(tiff(8, 1, 1)).tolist() == [[[0, 0, 0]]]
    assert decoded(b"P6 1 1 255\n\x12\x34\x56").tolist() == [[[0x12, 0x34, 0x56]]]
    assert decoded(b"P6 1 1 100\n" + bytes([50] * 3)).tolist() == [[[128] * 3]]  # scaled, half up


@pytest.mark.parametrize(
    ("samples", "photometric", "extra"),
    [(4, 2, (0,)), (5, 2, (0, 0)), (5, 2, (2, 0)), (2, 1, (0,)), (5, 5, (0,))],
    ids=["RGB and infrared", "five bands", "RGBA and one", "grey and one", "CMYK and one"],
)
def test_channels_that_pillow_would_drop_are_refused(samples, photometric, extra):
    with pytest.raises(
        ValueError, match=f"{samples} channels, of which .* are colours; images are"
    ):
        read_picture(io.BytesIO(tiff(8, samples, photometric, extra)))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pictures_of_more_bits_that_others_open(mode):
    with pytest.raises(ValueError, match=MORE_BITS):
        as_rgb(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("mode", ["HSV", "LAB", "RGBX"])
def test_other_modes_are_named(mode):
    with pytest.raises(ValueError, match=f"mode {mode} is not read; convert it to RGB"):
        as_rgb(Image.new(mode, (4, 4)))


def with_alpha(mode: str):
    """A visible, a hidden and a half-transparent pixel."""
    picture = Image.new("RGBA", (3, 1), (*HIDDEN, 0))
    picture.putpixel((0, 0), (*RED, 255))
    picture.putpixel((2, 0), (100, 100, 100, 128))
    return picture if mode == "RGBA" else picture.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_is_laid_on_white(kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    visible, hidden, half = decoded(encoded(with_alpha("RGBA"), kind, **options))[0].tolist()
    assert tuple(visible) == RED
    assert tuple(hidden) == WHITE
    # (128 * 100 + 127 * 255) / 255 = 177.2
    assert half == [177] * 3


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA"])
def test_every_kind_of_alpha(mode):
    hidden = Image.new(mode, (1, 1))
    assert hidden.getpixel((0, 0))[-1] == 0
    assert as_rgb(hidden).getpixel((0, 0)) == WHITE


def test_opaque_grey_keeps_its_levels():
    assert as_rgb(Image.new("LA", (1, 1), (7, 255))).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette(kind):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([*HIDDEN, *RED])
    picture.putpixel((1, 0), 1)
    assert decoded(encoded(picture, kind)).tolist() == [[list(HIDDEN), list(RED)]]
    assert decoded(encoded(picture, kind, transparency=0)).tolist() == [[list(WHITE), list(RED)]]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", HIDDEN), ("L", 9)])
def test_a_transparent_colour_without_a_palette(mode, colour):
    picture = Image.new(mode, (1, 1), colour)
    assert decoded(encoded(picture, "PNG", transparency=colour)).tolist() == [[list(WHITE)]]


# What the bytes of each orientation show when upright, in NumPy's words.
UPRIGHT = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_carried_out_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(PIXELS)
    options = LOSSLESS.get(kind, {"quality": 100, "subsampling": 0})
    file = encoded(picture, kind, exif=exif, **options)
    stored = decoded(encoded(picture, kind, **options))  # a JPEG has levels of its own
    upright = read_picture(file)
    assert np.array_equal(np.array(upright), UPRIGHT[orientation](stored))
    assert as_rgb(upright) is upright  # nothing is left to turn


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(encoded(Image.fromarray(PIXELS), "PNG", exif=exif)), PIXELS)


def test_a_broken_header_does_not_lose_an_image(monkeypatch):
    """Of such headers some versions of Pillow raise what they like."""

    def broken(*_):
        raise SyntaxError("not a TIFF file")

    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
    monkeypatch.setattr(Image.Exif, "load", broken)
    assert np.array_equal(decoded(file), PIXELS)


def test_a_turned_palette_with_transparency():
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([*HIDDEN, *RED])
    picture.putpixel((1, 0), 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(picture, "PNG", transparency=0, exif=exif)
    assert decoded(file).tolist() == [[list(WHITE)], [list(RED)]]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_pictures(kind):
    first, second = Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), WHITE)
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert decoded(file)[0, 0].tolist() == list(RED)


def test_the_bytes_decide_and_not_the_suffix(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(PIXELS), "BMP").getvalue())
    assert np.array_equal(np.array(read_picture(tmp_path / "a.png")), PIXELS)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n",
        b"no image",
        b"",
        b"\x89PNG",
    ],
    ids=["EPS", "text", "empty", "cut"],
)
def test_other_files_are_named_and_nothing_is_run(tmp_path, monkeypatch, content):
    """Pillow hands EPS to Ghostscript, whatever the suffix."""

    def run(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    monkeypatch.setattr("subprocess.check_call", run)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.png").write_bytes(content)
    with pytest.raises(OSError, match=r"cannot decode image .*a\.png: its first bytes are of none"):
        FolderImages(tmp_path, image_size=4)[0]


@pytest.mark.parametrize("name", [*FORMATS, *SUFFIXES])
def test_the_page_names_every_format_and_suffix(name):
    section = PAGE.split("### What is read, and how")[1].split("\n## ")[0]
    assert name in section


def test_pixels_are_counted_before_any_is_decoded(monkeypatch):
    """Of a PNG whose header promises 40 x 30 and that holds one pixel, which decoding would fail at."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    file = bytearray(png(2, 3, 8))
    file[16:24] = struct.pack(">II", 40, 30)
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    way_out = r"Make the picture smaller, or raise PIL\.Image\.MAX_IMAGE_PIXELS"
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=rf"^40 x 30 pixels are more than 1,000\. {way_out}"),
    ):
        read_picture(io.BytesIO(bytes(file)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # twice as many: Pillow refuses to open it
    with pytest.raises(ValueError, match=rf"exceeds limit of 1000 pixels.* {way_out}"):
        read_picture(io.BytesIO(bytes(file)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(OSError, match="truncated"):
        read_picture(io.BytesIO(bytes(file)))


def test_a_jpeg_of_too_many_pixels_is_decoded_at_half_its_sides(monkeypatch):
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    file = encoded(Image.fromarray(ramp), "JPEG", quality=95)
    whole = read_picture(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        half = read_picture(file)
    assert (whole.size, half.size) == ((64, 64), (32, 32))
    mean = np.asarray(whole).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(half) - mean).max() < 8  # of JPEG's blocks, on a ramp


# --- at reduced scale


@pytest.fixture
def photos(tmp_path):
    """A class of a large JPEG, of one that is turned, of a small one and of a PNG."""
    wave = np.sin(9 * np.add.outer(np.linspace(0, 1, 330), np.linspace(0, 1, 410)))
    pixels = np.stack([128 + 120 * wave, 255 * (wave > 0), 90 + 60 * wave**2], 2).astype(np.uint8)
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a/large.jpg", quality=95)
    picture.save(tmp_path / "a/large.png")
    picture.resize((170, 130)).save(tmp_path / "a/small.jpg", quality=95)
    picture.save(tmp_path / "a/turned.jpg", quality=95, exif=exif)
    return tmp_path


def test_jpeg_files_are_decoded_at_reduced_scale(photos, monkeypatch):
    """Those whose half is twice the wanted size or more; what looks at whole pictures has them whole."""
    side, sizes = 48, []
    fit = folders.fit_picture

    def seen(picture, to):
        sizes.append(picture.size)
        return fit(picture, to)

    monkeypatch.setattr(folders, "fit_picture", seen)
    whole, reduced = (
        load_images(source, image_size=side) for source in (photos, f"{photos}:decode=reduced")
    )
    pixels = [images.__getitems__([0, 1, 2, 3])[0] for images in (whole, reduced)]
    assert sizes == [
        *((410, 330), (410, 330), (170, 130), (330, 410)),
        *((205, 165), (410, 330), (170, 130), (165, 205)),
    ]
    assert pixels[0].shape == (4, 3, side, side)
    levels = (pixels[0].int() - pixels[1].int()).abs()
    assert not levels[1:3].any()
    assert 0 < levels[[0, 3]].float().mean() < 2
    assert isinstance(whole, FolderImages) and isinstance(reduced, FolderImages)
    assert reduced.picture(0, lambda _: None).size == (410, 330)
    again = whole.subset([0, 3]).at_reduced_scale().resized(side)  # as every copy
    assert torch.equal(again.__getitems__([0, 1])[0], pixels[1][[0, 3]])
    assert again.name == reduced.name == f"{photos}:decode=reduced"


def test_at_reduced_scale_enough_is_left_of_the_smallest_part(photos):
    """Of a part that has half the sides, twice 24 pixels: of a picture at least 96, where 48 are enough
    of one that is seen whole."""
    sizes = []

    class Seen(RandomResizedCrop):
        def of_picture(self, picture, draws, size):
            sizes.append(picture.size)
            return super().of_picture(picture, draws, size)

    draws = [Draws.of_images(torch.arange(4), 0)]
    for source, scale in (
        (photos, 0.25),
        (f"{photos}:decode=reduced", 0.25),
        (f"{photos}:decode=reduced", 1),
    ):
        images = load_images(source, image_size=24)
        assert isinstance(images, FolderImages)
        images.parts([0, 1, 2, 3], draws, Seen((scale, 1.0), (1.0, 1.0)))
    assert sizes == [
        *((410, 330), (410, 330), (170, 130), (330, 410)),
        *((205, 165), (410, 330), (170, 130), (165, 205)),
        *((103, 83), (410, 330), (85, 65), (83, 103)),
    ]


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.5, 0.6), (2.0, 3.0)])
@pytest.mark.parametrize("scale", [(0.1, 0.3), (1.0, 1.0)])
def test_no_part_is_narrower(scale, ratio):
    """But for a pixel of rounding; parts of the middle among them, where none that is drawn fits."""
    crop, draws = RandomResizedCrop(scale, ratio), Draws.of_images(torch.arange(300), 0)
    for height, width in ((100, 100), (100, 370), (230, 100)):
        assert crop.boxes(draws, height, width)[:, 2:4].min() >= 100 * crop.narrowest - 1


def test_reduced_scale_is_of_image_files(photos):
    with pytest.raises(ValueError, match="digits-train: decode=reduced goes with image files"):
        load_images("digits:decode=reduced")
    with pytest.raises(ValueError, match="decode must be reduced, or not there, got 'half'"):
        load_images(f"{photos}:decode=half", image_size=8)
    table = photos / "meta.csv"
    table.write_text("image,label\na/large.jpg,a\na/large.png,b\n")
    listed = load_images(
        f"{table}:image=image,label=label,decode=reduced", image_size=8, root=photos
    )
    assert listed.name.endswith(":decode=reduced") and len(listed) == 2
