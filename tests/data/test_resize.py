"""One geometry for arrays and files: against Pillow, by hand, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages
from hrrl_ext.data.resize import fit_picture, fit_tensor

Image = pytest.importorskip("PIL.Image")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(8, 8, 8), (8, 8, 4), (7, 13, 5), (13, 7, 5), (5, 5, 11), (40, 17, 16), (1, 9, 3), (3, 1, 1)],
)
def test_arrays_and_files_agree(height, width, size):
    """At most one level apart: Pillow rounds twice (once per axis), the tensor route once."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    from_file = fit_picture(Image.fromarray(pixels), size)
    from_array = fit_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
    assert from_file.shape == from_array.shape == (3, size, size)
    assert from_file.dtype == from_array.dtype == torch.uint8
    assert (from_file.int() - from_array.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(8, 8, (4, 8)), (8, 8, (8, 4)), (16, 48, (16, 48)), (7, 13, (5, 3)), (13, 7, (3, 5)), (3, 4, (6, 8))],
)  # fmt: skip
def test_other_shapes(height, width, size):
    """Scaled to cover, and no more: the ratio of the sides stays, and one of them just fits."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    from_file = fit_picture(Image.fromarray(pixels), size)
    from_array = fit_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
    assert from_file.shape == from_array.shape == (3, *size)
    assert (from_file.int() - from_array.int()).abs().max() <= 1
    scale = max(size[0] / height, size[1] / width)
    rows, columns = int(scale * height + 1e-9), int(scale * width + 1e-9)
    whole = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR)
    top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
    expected = np.asarray(whole)[top : top + size[0], left : left + size[1]]
    assert np.array_equal(from_file.permute(1, 2, 0).numpy(), expected)


def test_centre_is_kept():
    # Shorter side already fits: only columns 2..5 of 8 remain.
    ramp = torch.arange(8, dtype=torch.uint8).expand(1, 3, 4, 8).contiguous()
    assert fit_tensor(ramp, 4)[0, 0, 0].tolist() == [2, 3, 4, 5]
    assert fit_tensor(ramp.transpose(2, 3).contiguous(), 4)[0, 0, :, 0].tolist() == [2, 3, 4, 5]


def test_shrinking_is_antialiased():
    # A checkerboard of 0 and 200 has mean 100 everywhere; without antialiasing it stays 0 or 200.
    board = torch.tensor([[0, 200], [200, 0]], dtype=torch.uint8).repeat(8, 8)
    small = fit_tensor(board.expand(1, 3, 16, 16).contiguous(), 4)
    assert (small.int() - 100).abs().max() <= 5


def test_float_stays_in_the_unit_interval():
    # White images: at 7 -> 3 and 7 -> 6 the float32 filter weights sum to slightly more than 1.
    for size in (3, 6, 20):
        fitted = fit_tensor(torch.ones(1, 3, 7, 7), size)
        assert fitted.dtype == torch.float32
        assert fitted.max() <= 1


@pytest.mark.parametrize("size", [4, 9])
def test_uint8_is_rounded_to_the_nearest_level(size):
    images = torch.from_numpy(RANDOM.integers(0, 256, (2, 3, 7, 8), dtype=np.uint8))
    exact = fit_tensor(images.float() / 255, size).double() * 255
    # Half a level, plus float32 rounding of numbers up to 255.
    assert (fit_tensor(images, size).double() - exact).abs().max() <= 0.5 + 255 * 2**-20


def test_chunks_do_not_matter(monkeypatch):
    images = torch.from_numpy(RANDOM.integers(0, 256, (5, 3, 6, 9), dtype=np.uint8))
    whole = fit_tensor(images, 4)
    monkeypatch.setattr("hrrl_ext.data.resize._CHUNK", 2)
    assert torch.equal(fit_tensor(images, 4), whole)
    assert fit_tensor(images[:0], 4).shape == (0, 3, 4, 4)


def test_resized_set():
    images = ArrayImages(np.zeros((2, 4, 6), dtype=np.uint8), [0, 1], classes=["a", "b"], name="n")
    resized = images.resized(5)
    assert resized.image_shape == (3, 5, 5)
    assert (resized.classes, resized.name, resized.target.tolist()) == (["a", "b"], "n", [0, 1])
    assert resized.resized(5) is resized


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-4, ValueError), (4.0, TypeError), (True, TypeError)]
)
def test_image_size(size, error):
    with pytest.raises(error, match="image_size must be"):
        ArrayImages(np.zeros((1, 4, 4), dtype=np.uint8), [0]).resized(size)


@pytest.mark.parametrize(("height", "width"), [(1, 301), (1, 300), (300, 1), (2, 517)])
def test_what_is_very_long_is_scaled_at_its_centre_alone(height, width):
    """As if all of it had been scaled, to a level: the centre stays where it was, on either side as much."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = 4
    scale = size / min(height, width)
    columns, rows = int(width * scale), int(height * scale)
    whole = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR)
    top, left = (rows - size) // 2, (columns - size) // 2
    expected = np.asarray(whole)[top : top + size, left : left + size].astype(int)
    from_file = fit_picture(Image.fromarray(pixels), size).permute(1, 2, 0).numpy()
    from_array = fit_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
    assert np.abs(from_file - expected).max() <= 1
    assert np.abs(from_array.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_a_row_of_a_million_pixels_is_never_scaled_whole(monkeypatch):
    """Covering 32 x 32 it would be 32 x 32,000,000."""
    asked = []
    resize = Image.Image.resize

    def seen(self, size, *how):
        asked.append(size)
        return resize(self, size, *how)

    monkeypatch.setattr(Image.Image, "resize", seen)
    row = Image.fromarray(np.full((1, 10**6, 3), 7, np.uint8))
    assert torch.equal(fit_picture(row, 32), torch.full((3, 32, 32), 7, dtype=torch.uint8))
    assert len(asked) == 1 and asked[0][0] * asked[0][1] <= 65 * 32 * 32
    array = torch.full((1, 3, 1, 10**6), 7, dtype=torch.uint8)
    assert torch.equal(fit_tensor(array, 32), torch.full((1, 3, 32, 32), 7, dtype=torch.uint8))
