"""The published parameters for images of 224 pixels (ImageNet-C) and of 32 pixels (CIFAR-10-C).

Source: the generators of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019), github.com/hendrycks/robustness. A row is a severity, 1 to
5; the comment above names its columns, the arguments of the function of that name. Columns in px are
lengths in pixels of an image of that side, see `parameters`.
"""

from __future__ import annotations

import math

Row = tuple[float, ...]

# scale: standard deviation
_GAUSSIAN_NOISE = ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))
_GAUSSIAN_NOISE_32 = ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))
# photons: expected count of a white pixel
_SHOT_NOISE = ((60,), (25,), (12,), (5,), (3,))
_SHOT_NOISE_32 = ((500,), (250,), (100,), (75,), (50,))
# amount: share of the values that become 0 or 1
_IMPULSE_NOISE = ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))
_IMPULSE_NOISE_32 = ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))
# scale: relative standard deviation
_SPECKLE_NOISE = ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,))
_SPECKLE_NOISE_32 = ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))
# radius of the disk, sigma of its soft edge, both in px
_DEFOCUS_BLUR = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
_DEFOCUS_BLUR_32 = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
# sigma in px, reach of a swap in px, rounds of swaps
_GLASS_BLUR = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
_GLASS_BLUR_32 = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
# radius, sigma, in px
_MOTION_BLUR = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
_MOTION_BLUR_32 = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
# step between factors, number of factors from 1 on
_ZOOM_BLUR = ((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))
_ZOOM_BLUR_32 = ((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26))
# sigma in px
_GAUSSIAN_BLUR = ((1,), (2,), (3,), (4,), (6,))
_GAUSSIAN_BLUR_32 = ((0.4,), (0.6,), (0.7,), (0.8,), (1,))
# mean and scale of noise, flake in px, threshold, radius and sigma of the fall in px, share of the image
_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_SNOW_32 = (
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
# weight of the image, weight of the ice
_FROST = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
_FROST_32 = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
# density, decay of the fractal from one octave to the next
_FOG = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
_FOG_32 = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
# mean and scale of noise, drop in px, threshold, strength (water) or edge in px (mud), whether mud
_SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6, 0),
    (0.65, 0.3, 3, 0.68, 0.6, 0),
    (0.65, 0.3, 2, 0.68, 0.5, 0),
    (0.65, 0.3, 1, 0.65, 1.5, 1),
    (0.67, 0.4, 1, 0.65, 1.5, 1),
)
_SPATTER_32 = (
    (0.62, 0.1, 0.7, 0.7, 0.5, 0),
    (0.65, 0.1, 0.8, 0.7, 0.5, 0),
    (0.65, 0.3, 1, 0.69, 0.5, 0),
    (0.65, 0.1, 0.7, 0.69, 0.6, 1),
    (0.65, 0.1, 0.5, 0.68, 0.6, 1),
)
# added to the value V of HSV
_BRIGHTNESS = ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))
_BRIGHTNESS_32 = ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))
# factor of the deviation from the mean
_CONTRAST = ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))
_CONTRAST_32 = ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))
# factor of the saturation S of HSV, added to it
_SATURATE = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))
_SATURATE_32 = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
# amplitude and sigma of the displacement in px; jitter of three points as a share of the side. The
# first table was published in multiples of 244, which its authors call a slip for 224.
_ELASTIC_TRANSFORM = (
    (244 * 2, 244 * 0.7, 24.4 / 224),
    (244 * 2, 244 * 0.08, 48.8 / 224),
    (244 * 0.05, 244 * 0.01, 4.88 / 224),
    (244 * 0.07, 244 * 0.01, 4.88 / 224),
    (244 * 0.12, 244 * 0.01, 4.88 / 224),
)
_ELASTIC_TRANSFORM_32 = (
    (0, 0, 0.08),
    (32 * 0.05, 32 * 0.2, 0.07),
    (32 * 0.08, 32 * 0.06, 0.06),
    (32 * 0.1, 32 * 0.04, 0.05),
    (32 * 0.1, 32 * 0.03, 0.03),
)
# share of the side that is left
_PIXELATE = ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))
_PIXELATE_32 = ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))
# quality
_JPEG_COMPRESSION = ((25,), (18,), (15,), (10,), (7,))
_JPEG_COMPRESSION_32 = ((80,), (65,), (58,), (50,), (40,))

TABLES: dict[str, tuple[tuple[Row, ...], tuple[Row, ...]]] = {
    "gaussian_noise": (_GAUSSIAN_NOISE, _GAUSSIAN_NOISE_32),
    "shot_noise": (_SHOT_NOISE, _SHOT_NOISE_32),
    "impulse_noise": (_IMPULSE_NOISE, _IMPULSE_NOISE_32),
    "defocus_blur": (_DEFOCUS_BLUR, _DEFOCUS_BLUR_32),
    "glass_blur": (_GLASS_BLUR, _GLASS_BLUR_32),
    "motion_blur": (_MOTION_BLUR, _MOTION_BLUR_32),
    "zoom_blur": (_ZOOM_BLUR, _ZOOM_BLUR_32),
    "snow": (_SNOW, _SNOW_32),
    "frost": (_FROST, _FROST_32),
    "fog": (_FOG, _FOG_32),
    "brightness": (_BRIGHTNESS, _BRIGHTNESS_32),
    "contrast": (_CONTRAST, _CONTRAST_32),
    "elastic_transform": (_ELASTIC_TRANSFORM, _ELASTIC_TRANSFORM_32),
    "pixelate": (_PIXELATE, _PIXELATE_32),
    "jpeg_compression": (_JPEG_COMPRESSION, _JPEG_COMPRESSION_32),
    "speckle_noise": (_SPECKLE_NOISE, _SPECKLE_NOISE_32),
    "gaussian_blur": (_GAUSSIAN_BLUR, _GAUSSIAN_BLUR_32),
    "spatter": (_SPATTER, _SPATTER_32),
    "saturate": (_SATURATE, _SATURATE_32),
}


def parameters(kind: str, severity: int, side: int) -> tuple[Row, float]:
    """The published row for images of this side, and how many pixels one published pixel is.

    Sides below √(32 · 224) ≈ 85 take the table of 32 pixels, others that of 224; lengths scale with
    the side. Below 32 pixels they do not: a blur of less than a pixel would do nothing.
    """
    large, small = TABLES[kind]
    if side < math.sqrt(32 * 224):
        return small[severity - 1], max(1.0, side / 32)
    return large[severity - 1], side / 224
