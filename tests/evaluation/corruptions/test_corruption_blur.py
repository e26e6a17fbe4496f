"""Noise and blur against a second route: closed forms, plain loops in float64, numpy.convolve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from given_draws import Given, random_images

from hrrl_ext.evaluation.corruptions import corrupt
from hrrl_ext.evaluation.corruptions.blur import _sources, disk, glass_blur, motion_blur, zoom_blur
from hrrl_ext.evaluation.corruptions.filters import convolve, smear, smooth, zoom
from hrrl_ext.evaluation.corruptions.severities import TABLES

GREY = torch.full((4, 3, 96, 96), 0.5)
COUNT = GREY.numel()


# --- noise: five standard errors of a mean over `COUNT` values


@pytest.mark.montecarlo
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise_is_a_clamped_normal(severity):
    (scale,) = TABLES["gaussian_noise"][0][severity - 1]
    made = corrupt(GREY, "gaussian_noise", severity).double()
    a = 0.5 / scale
    tail = 0.5 * math.erfc(a / math.sqrt(2))  # P(n > a), which becomes 1; as much becomes 0
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    variance = scale**2 * (1 - 2 * tail - 2 * a * density) + 2 * tail * 0.25
    assert abs(made.mean() - 0.5) < 5 * math.sqrt(variance / COUNT)
    # The variance of a squared deviation is at most its fourth moment, 3 scale^4.
    assert abs(made.var() - variance) < 5 * math.sqrt(3 * scale**4 / COUNT)
    assert abs((made == 1).double().mean() - tail) <= 5 * math.sqrt(tail / COUNT)
    channels = torch.corrcoef(made.transpose(0, 1).flatten(1))
    assert (channels - torch.eye(3)).abs().max() < 5 / math.sqrt(COUNT / 3)


@pytest.mark.montecarlo
@pytest.mark.parametrize("level", [0.25, 0.5])
def test_shot_noise_has_the_mean_and_variance_of_counts(level):
    made = corrupt(torch.full_like(GREY, level), "shot_noise", 2).double()
    photons = 25
    counts = made * photons
    assert (counts - counts.round()).abs().max() < 1e-5
    # Of 6.25 or 12.5 expected counts, more than 25 come once in a thousand times and are clamped.
    assert abs(made.mean() - level) < 5 * math.sqrt(level / photons / COUNT) + 2e-4
    assert abs(made.var() - level / photons) < 0.03 * level / photons
    assert not corrupt(torch.zeros_like(GREY[:1]), "shot_noise", 5).any()


@pytest.mark.montecarlo
@pytest.mark.parametrize("severity", [1, 5])
def test_impulse_noise_sets_a_share_to_black_and_as_much_to_white(severity):
    (amount,) = TABLES["impulse_noise"][0][severity - 1]
    made = corrupt(GREY, "impulse_noise", severity)
    for value in (0, 1):
        share = (made == value).double().mean()
        assert abs(share - amount / 2) < 5 * math.sqrt(amount / 2 / COUNT)
    assert set(made.unique().tolist()) == {0, 0.5, 1}
    alone = ((made != 0.5).sum(1) == 1).double().mean()  # of three channels, one
    assert abs(alone - 3 * amount * (1 - amount) ** 2) < 5 * math.sqrt(3 / COUNT)


@pytest.mark.montecarlo
def test_speckle_noise_grows_with_the_value():
    for level in (0.2, 0.4):
        made = corrupt(torch.full_like(GREY, level), "speckle_noise", 1).double()
        assert made.std() == pytest.approx(0.15 * level, rel=5 / math.sqrt(2 * COUNT))
    assert not corrupt(torch.zeros_like(GREY[:1]), "speckle_noise", 5).any()


# --- blur


def blurred(x: np.ndarray, sigma: float, truncate: float, mode: str) -> np.ndarray:
    """Along the last two axes, by padding and numpy.convolve."""
    reach = int(truncate * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    kernel /= kernel.sum()
    for axis in (-1, -2):
        x = np.apply_along_axis(
            lambda row: np.convolve(np.pad(row, reach, mode=mode), kernel, "valid"), axis, x
        )
    return x


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1, 3, 20])
@pytest.mark.parametrize(("edge", "mode"), [("nearest", "edge"), ("reflect", "symmetric")])
def test_smooth_is_the_convolution(sigma, edge, mode):
    x = random_images(1, 2, 9, 14)
    expected = blurred(x.double().numpy(), sigma, 3, mode)
    found = smooth(x, sigma, truncate=3, edge=edge)
    assert np.abs(found.numpy() - expected).max() < 1e-6  # sums of values below 1 in float32


def test_gaussian_blur_takes_its_sigma_from_the_table():
    x = random_images(1, 3, 32, 32)
    expected = blurred(x.double().numpy(), 0.8, 4, "edge")
    assert np.abs(corrupt(x, "gaussian_blur", 4).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(
    "kind", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"]
)
def test_blur_keeps_one_colour(kind):
    colour = torch.tensor([0.0, 0.3, 1.0])[None, :, None, None].expand(2, 3, 30, 41)
    assert (corrupt(colour, kind, 5) - colour).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["gaussian_blur", "defocus_blur", "motion_blur"])
def test_a_point_far_from_the_edges_keeps_its_mass(kind):
    point = torch.zeros(1, 3, 96, 96)
    point[..., 48, 48] = 1
    made = corrupt(point, kind, 3)
    assert made.sum((2, 3)).sub(1).abs().max() < 1e-5
    assert made.max() < 0.5


@pytest.mark.parametrize(
    ("radius", "soft"), [row for table in TABLES["defocus_blur"] for row in table]
)
@pytest.mark.parametrize("unit", [0.4, 1, 2])
def test_disk(radius, soft, unit):
    kernel = disk(radius, soft, unit)
    assert abs(kernel.double().sum() - 1) < 1e-6
    assert torch.equal(kernel, kernel.T) and torch.equal(kernel, kernel.flip(0))
    half = len(kernel) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    reach = max(1, round((2 if radius > 8 else 1) * unit)) * math.sqrt(2)
    assert not kernel.numpy()[np.hypot(x, y) > radius * unit + reach + 1e-9].any()


def test_a_hard_disk_is_flat():
    kernel = disk(3, 0.1, 1)
    assert (kernel > 1e-6).sum() == 29  # points of the plane within 3 of the origin
    assert kernel[kernel > 1e-6].sub(1 / 29).abs().max() < 1e-7


@pytest.mark.parametrize("size", [(9, 20), (3, 4), (1, 5)])
def test_convolve_is_the_sum_over_the_kernel(size):
    x, kernel = random_images(2, 3, *size), disk(2, 0.5, 1)
    half = len(kernel) // 2
    index = [
        np.pad(np.arange(n), half, mode="reflect") if n > 1 else np.zeros(2 * half + 1, int)
        for n in size
    ]
    padded = x.double().numpy()[..., index[0], :][..., index[1]]
    expected = np.zeros(x.shape)
    for dy in range(2 * half + 1):
        for dx in range(2 * half + 1):
            expected += kernel[dy, dx].item() * padded[..., dy : dy + size[0], dx : dx + size[1]]
    assert np.abs(convolve(x, kernel).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("height", "width", "reach"), [(9, 12, 1), (11, 8, 2), (14, 14, 4), (3, 3, 2)]
)
def test_glass_blur_is_the_published_loop(height, width, reach):
    """Visiting one pixel after the other; NumPy's views make the published swap a copy."""
    generator = torch.Generator().manual_seed(reach)
    shift = torch.randint(-reach, reach, (2, height, width, 2), generator=generator)
    found = _sources(Given(shift), reach, height, width)
    for i in range(2):
        holds = np.arange(height * width).reshape(height, width)
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dy, dx = shift[i, h, w].tolist()
                holds[h, w] = holds[h + dy, w + dx]
        assert found[i].tolist() == holds.ravel().tolist()


def test_glass_blur_moves_pixels_between_two_blurs():
    x = random_images(1, 3, 12, 12)
    shifts = [torch.randint(-2, 2, (1, 12, 12, 2)) for _ in range(2)]
    expected = smooth(x, 0.7).flatten(2)
    for shift in shifts:
        expected = expected[..., _sources(Given(shift), 2, 12, 12)[0]]
    found = glass_blur(x, Given(*shifts), 1, 0.7, 2, 2)
    assert torch.equal(found, smooth(expected.view_as(x), 0.7))


@pytest.mark.parametrize("angle", [0.0, 30.0, -90.0, 137.0])
def test_smear_is_the_sum_along_the_line(angle):
    x = random_images(2, 1, 8, 11)
    weights = np.exp(-0.5 * (np.arange(7) / 2.0) ** 2)
    weights /= weights.sum()
    expected = np.zeros(x.shape)
    for i, w in enumerate(weights):
        dy = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        dx = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        rows, columns = np.clip(np.arange(8) + dy, 0, 7), np.clip(np.arange(11) + dx, 0, 10)
        expected += w * x.double().numpy()[..., rows, :][..., columns]
    found = smear(x, torch.tensor([angle, angle]), 3, 2)
    assert np.abs(found.numpy() - expected).max() < 1e-6


def test_motion_blur_has_an_angle_for_each_image():
    x = random_images(1, 3, 16, 16).repeat(2, 1, 1, 1)
    found = motion_blur(x, Given(torch.tensor([-45.0, 10.0])), 1, 4, 2)
    for i, angle in enumerate((-45.0, 10.0)):
        assert torch.equal(found[i], smear(x[:1], torch.tensor([angle]), 4, 2)[0])


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre magnified along each axis by numpy.interp, corner onto corner, and cropped."""
    for axis in (-1, -2):
        n = x.shape[axis]
        source = math.ceil(n / factor)
        top, size = (n - source) // 2, round(source * factor)
        at = top + np.linspace(0, source - 1, size)[(size - n) // 2 :][:n]
        x = np.apply_along_axis(lambda row, at=at: np.interp(at, np.arange(len(row)), row), axis, x)
    return x


@pytest.mark.parametrize(("step", "count"), [(0.01, 12), (0.03, 11)])
def test_zoom_blur_is_the_mean_of_zooms(step, count):
    x = random_images(1, 3, 40, 33)
    clean = x.double().numpy()
    expected = (clean + sum(zoomed(clean, 1 + i * step) for i in range(count))) / (count + 1)
    # Positions up to 40 in float32: 40 · 2^-23 of a pixel, of a slope of at most 1 per pixel.
    assert np.abs(zoom_blur(x, Given(), 1, step, count).numpy() - expected).max() < 1e-5


def test_zoom_keeps_corners():
    centre = random_images(1, 1, 5, 4)
    made = zoom(centre, 2, (10, 8))
    assert torch.equal(
        made[..., [0, 0, -1, -1], [0, -1, 0, -1]], centre[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    )
