"""Weather and processing against a second route: plain loops, Pillow, colorsys, values by hand."""

from __future__ import annotations

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from given_draws import Given, random_images
from torch import Tensor

from hrrl_ext.evaluation.corruptions import corrupt
from hrrl_ext.evaluation.corruptions.digital import elastic_transform, pixelate
from hrrl_ext.evaluation.corruptions.severities import TABLES
from hrrl_ext.evaluation.corruptions.weather import (
    _distance,
    _equalised,
    _ice,
    _plasma,
    snow,
    spatter,
)

# --- weather


def test_snow_falls_alike_seen_upside_down():
    made = corrupt(torch.zeros(2, 3, 40, 40), "snow", 4)
    assert (made - made.flip(2, 3)).abs().max() < 1e-6
    assert (made - made[:, :1]).abs().max() == 0
    assert made.amin() == pytest.approx(0.1 * 1.0 * 0.5 * 1.5, abs=0.1)


def test_snow_by_hand():
    """Flakes of one brightness everywhere: only the colours are left."""
    x = random_images(1, 3, 8, 8)
    grey = x[:, 0] * 0.299 + x[:, 1] * 0.587 + x[:, 2] * 0.114
    whitened = torch.maximum(x, 1.5 * grey[:, None] + 0.5)
    for noise, flakes in (
        (0.5, 0.6),
        (0.0, 0.0),
    ):  # 0.1 + 0.5 is above the threshold 0.3, 0.1 is not
        draws = Given(torch.full((1, 1, 8, 8), noise), torch.tensor([-90.0]))
        made = snow(x, draws, 1, 0.1, 1, 1, 0.3, 4, 2, 0.7)
        expected = 0.7 * x + 0.3 * whitened + 2 * flakes
        assert (made - expected).abs().max() < 1e-6


def test_frost_weighs_image_and_ice():
    black, white = (corrupt(torch.full((3, 3, 64, 64), v), "frost", 5) for v in (0.0, 1.0))
    image, ice = TABLES["frost"][1][4]
    assert black.max() <= ice and black.std((2, 3)).min() > 0.01
    assert (white - (black + image).clamp(max=1)).abs().max() < 1e-6


@pytest.mark.montecarlo
def test_ice_is_as_bright_and_as_blue_as_the_photographs():
    class Draws:
        generator = torch.Generator().manual_seed(0)

        def normal(self, *shape):
            return torch.randn(40, *shape, generator=self.generator)

        def uniform(self, low, high, *shape):
            return low + (high - low) * torch.rand(40, *shape, generator=self.generator)

    ice = _ice(Draws(), torch.zeros(40, 3, 64, 64))
    red, green, blue = ice.mean((0, 2, 3)).tolist()
    # The photographs: 0.572, 0.656, 0.702. Tones are uniform, of spread 0.11: an error of 0.017 · 3.
    assert (red, green, blue) == pytest.approx((0.572, 0.656, 0.702), abs=0.06)
    assert red < green < blue
    assert 0.06 < ice.mean(1).std((1, 2)).mean() < 0.14


def test_fog_is_a_plasma_over_the_image():
    plasma_of_black = corrupt(torch.zeros(1, 3, 32, 32), "fog", 3)
    assert not plasma_of_black.any()  # the largest value scales all of it
    made = corrupt(torch.ones(1, 3, 32, 32), "fog", 3)
    density = 0.75
    assert made.max() == pytest.approx(1, abs=1e-6)
    assert made.min() == pytest.approx(1 / (1 + density), abs=1e-6)
    plasma = made * (1 + density) / density - 1 / density
    image = 0.8 * random_images(1, 3, 32, 32)
    m = image.max()
    expected = (image + density * plasma) * m / (m + density)
    assert (corrupt(image, "fog", 3) - expected).abs().max() < 1e-5


def test_plasma_is_the_diamond_square_fractal():
    """Point by point on a torus of 8: the mean of four neighbours, plus noise that decays by level."""
    draws = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    value = {(0, 0): 0.0}
    step, wobble = 8, 100.0

    def at(y, x):
        return value[y % 8, x % 8]

    def put(y, x, shifts):
        near = sum(at(y + dy, x + dx) for dy, dx in shifts) / 4
        value[y, x] = near + wobble**2 * draws[0, y, x].item()

    while step >= 2:
        h = step // 2
        for y in range(h, 8, step):
            for x in range(h, 8, step):
                put(y, x, [(-h, -h), (-h, h), (h, -h), (h, h)])
        for y in range(0, 8, h):
            for x in range((y // h + 1) % 2 * h, 8, step):
                put(y, x, [(-h, 0), (h, 0), (0, -h), (0, h)])
        step, wobble = h, wobble / 1.7
    expected = np.array([[value[y, x] for x in range(8)] for y in range(8)])
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = _plasma(Given(draws.clone()), 8, 1.7)[0]
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_mud_covers_and_water_adds_its_colour():
    x = 0.5 * random_images(1, 3, 48, 48)
    made = corrupt(x, "spatter", 5)
    mud = torch.tensor([63, 42, 20])[None, :, None, None] / 255
    cover = ((made - x) / (mud - x))[:, 2]  # the darkest colour, where x is hardly ever
    touched = (made != x).any(1)
    assert 0.02 < touched.float().mean() < 0.9
    assert (made - (x + cover[:, None] * (mud - x))).abs().max() < 1e-4
    assert cover[touched].min() > 0.79 and cover[touched].max() < 1.01
    draws = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    added = spatter(x, Given(draws), 1, 0.65, 0.3, 2, 0.68, 0.5, 0) - x
    gloss = added / torch.tensor([175, 238, 238])[None, :, None, None] * 255
    assert (gloss - gloss[:, :1]).abs().max() < 1e-5
    assert gloss.min() == 0 and gloss.max() == pytest.approx(0.5, abs=1e-6)
    assert (gloss > 0).float().mean() > 0.05


def test_no_drops_leave_the_image_alone():
    x = random_images(1, 3, 16, 16)
    for mud in (0, 1):
        dry = Given(torch.full((1, 1, 16, 16), -9.0))
        assert torch.equal(spatter(x, dry, 1, 0.6, 0.3, 1, 0.68, 0.5, mud), x)


@pytest.mark.parametrize("size", [(12, 9), (1, 6), (30, 30)])
@pytest.mark.parametrize("reach", [3, 20])
def test_distance_to_the_edge(size, reach):
    edge = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(2)) < 0.03
    edge[0] = False
    found = _distance(edge, reach)
    assert (found[0] == reach).all()
    y, x = np.mgrid[: size[0], : size[1]]
    expected = np.full(size, float(reach))
    for py, px in edge[1, 0].nonzero().tolist():
        expected = np.minimum(expected, np.hypot(y - py, x - px))
    assert np.abs(found[1, 0].numpy() - expected).max() < 1e-5


def test_equalised_levels_are_ranks():
    level = torch.tensor([[3, 3, 7, 7], [9, 9, 9, 20], [5, 5, 5, 5]])[:, None, None, :]
    found = _equalised(level)[:, 0, 0].tolist()
    # (rank - count of the lowest) / (4 - count of the lowest), times 255; one level alone stays.
    assert found == [[0, 0, 255, 255], [0, 0, 0, 255], [5, 5, 5, 5]]


# --- digital


def hsv(x: Tensor, change) -> np.ndarray:
    """Each pixel through colorsys."""
    pixels = [
        colorsys.rgb_to_hsv(*p) for p in x[0].permute(1, 2, 0).reshape(-1, 3).double().tolist()
    ]
    back = [colorsys.hsv_to_rgb(*change(*p)) for p in pixels]
    return np.array(back).reshape(*x.shape[2:], 3).transpose(2, 0, 1)


def colours() -> Tensor:
    """Random ones, greys, black, white and pure ones."""
    x = random_images(1, 3, 8, 8)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0, 1, 0.4
    x[0, :, 1, :3] = torch.eye(3)
    return x


@pytest.mark.parametrize("severity", [1, 5])
def test_brightness_adds_to_the_value(severity):
    (added,) = TABLES["brightness"][1][severity - 1]
    expected = hsv(colours(), lambda h, s, v: (h, s, min(v + added, 1)))
    made = corrupt(colours(), "brightness", severity)
    assert np.abs(made[0].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("severity", [1, 2, 4, 5])
def test_saturate_scales_the_saturation(severity):
    factor, added = TABLES["saturate"][1][severity - 1]
    expected = hsv(colours(), lambda h, s, v: (h, min(s * factor + added, 1), v))
    made = corrupt(colours(), "saturate", severity)
    assert np.abs(made[0].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("severity", [1, 5])
def test_contrast_is_affine_about_the_mean_of_each_channel(severity):
    x = random_images(2, 3, 16, 20)
    (factor,) = TABLES["contrast"][1][severity - 1]
    clean = x.double()
    mean = clean.mean((2, 3), keepdim=True)
    made = corrupt(x, "contrast", severity)
    assert (made - (factor * clean + (1 - factor) * mean)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(32, 32), (36, 44)])
@pytest.mark.parametrize("share", [0.95, 0.65, 0.5, 0.25])
def test_pixelate_is_pillows_box_filter(size, share):
    Image = pytest.importorskip("PIL.Image")
    image = (random_images(3, *size) * 255).round()
    picture = Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy())
    small = picture.resize((int(size[1] * share), int(size[0] * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX), dtype=float)
    made = pixelate(image[None] / 255, Given(), 1, share)[0].permute(1, 2, 0) * 255
    # Pillow rounds to levels after each axis.
    assert np.abs(made.numpy() - expected).max() <= 1.01


def test_pixelate_by_a_divisor_takes_block_means():
    x = random_images(1, 3, 12, 8)
    means = torch.nn.functional.avg_pool2d(x, 4)
    expected = means.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert (pixelate(x, Given(), 1, 0.25) - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("side", "quality"), [(32, 58), (96, 15)])
def test_jpeg_is_pillows(side, quality):
    Image = pytest.importorskip("PIL.Image")
    x = (random_images(2, 3, side, side) * 255).to(torch.uint8)
    made = corrupt(x, "jpeg_compression", 3)
    for image, found in zip(x, made, strict=True):
        file = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        assert np.array_equal(np.asarray(Image.open(file)), found.permute(1, 2, 0).numpy())


def test_jpeg_without_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install \"hrrl_ext\[images\]\""):
        corrupt(torch.full((1, 3, 8, 8), 0.5), "jpeg_compression", 1)


def elastic(x: Tensor, corners: Tensor, noise: float, amplitude: float, unit: float = 1) -> Tensor:
    field = torch.full((1, 2, *x.shape[2:]), noise)
    return elastic_transform(x, Given(corners, field), unit, amplitude, 2, 1)


def test_elastic_transform_at_rest():
    x = random_images(1, 3, 12, 15)
    assert (elastic(x, torch.zeros(1, 3, 2), 0, 9) - x).abs().max() < 1e-5


@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (1, 2)])
def test_three_points_that_move_together_shift_the_image(shift):
    columns, rows = shift
    x = random_images(1, 3, 12, 12)
    made = elastic(x, torch.tensor([[shift] * 3]) / 12.0, 0, 0)
    padded = np.pad(x[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    expected = padded[:, 4 - rows : 16 - rows, 4 - columns : 16 - columns]
    assert np.abs(made[0].numpy() - expected).max() < 1e-4


def test_three_points_set_an_affine_map():
    """A value linear in the place stays linear, and the three points carry theirs along."""
    row, column = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")
    x = (0.01 * row + 0.02 * column)[None, None].repeat(1, 3, 1, 1)
    corners = torch.tensor([[[3.0, 1.0], [-2.0, 2.0], [1.0, -1.0]]])  # (column, row) in pixels
    made = elastic(x, corners / 30, 0, 0)[0, 0]
    for (c, r), (dc, dr) in zip([(25, 25), (25, 5), (5, 5)], corners[0].tolist(), strict=True):
        assert made[int(r + dr), int(c + dc)] == pytest.approx(0.01 * r + 0.02 * c, abs=1e-5)
    inner = made[8:22, 8:22]
    assert inner.diff(n=2, dim=0).abs().max() < 1e-5 and inner.diff(n=2, dim=1).abs().max() < 1e-5


def test_displacement_of_the_elastic_transform():
    x = random_images(1, 3, 12, 12)
    made = elastic(x, torch.zeros(1, 3, 2), 0.5, 4)  # two pixels down and right
    padded = np.pad(x[0].numpy(), ((0, 0), (0, 2), (0, 2)), mode="symmetric")
    assert np.abs(made[0].numpy() - padded[:, 2:, 2:]).max() < 1e-4
    larger = elastic(x, torch.zeros(1, 3, 2), 0.5, 1, unit=2)  # twice as far over twice the length
    assert (made - larger).abs().max() < 1e-4
