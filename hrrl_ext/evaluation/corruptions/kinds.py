"""The kinds of ImageNet-C and CIFAR-10-C, made here: `corrupt` a batch, `corrupted` a set of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._pixels import in_range
from ..._precision import full_float32
from ...data.ids import Ids
from ...data.image_sets import ImageSet, as_float
from ...data.resize import ImageSize
from ...spec import not_known
from . import blur, digital, noise, weather
from .draws import Draws
from .severities import parameters

_CHUNK = 2**19  # values in float32 at a time: they stay in the cache of a core

_MADE_BY: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}
CORRUPTIONS = tuple(_MADE_BY)[:15]
"""The 15 kinds of ImageNet-C, over which mCE is taken."""
EXTRA_CORRUPTIONS = tuple(_MADE_BY)[15:]
"""The 4 kinds that were published for choosing parameters."""
SEVERITIES = (1, 2, 3, 4, 5)


@torch.no_grad()
def corrupt(
    images: Tensor, kind: str, severity: int, *, seed: int = 0, index: Ids | None = None
) -> Tensor:
    """images [B, 3, H, W] as ImageNet-C or CIFAR-10-C would show them; the same shape, dtype and device.

    images    uint8, or floats in [0, 1]
    kind      one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`
    severity  1 to 5. Images with a shorter side below 85 pixels take the parameters of CIFAR-10-C,
              others those of ImageNet-C, with lengths in proportion to the side (see `severities`)
    index     [B] the number of each image in its data set; 0..B-1 by default

    What is random is drawn for each image from (seed, kind, severity, its index): an image gets the
    same corruption in any batch, and on any device up to rounding. Computed in float32, rounded once
    to uint8. No gradient. Equations and deviations from the published generators: docs/corruptions.md.
    Raises ValueError for an unknown kind or severity, another shape or values outside [0, 1],
    TypeError for another dtype, ImportError for jpeg_compression without Pillow.
    """
    _check(kind, severity)
    images = _checked(images)
    if index is None:
        index = range(len(images))
    numbers = torch.as_tensor(index).tolist()
    if len(numbers) != len(images):
        raise ValueError(
            f"corrupt: index must have one number per image, [{len(images)}], got [{len(numbers)}]"
        )
    row, unit = parameters(kind, severity, min(images.shape[2:]))
    make, out = _MADE_BY[kind], torch.empty_like(images)
    step = max(1, _CHUNK // images[0:1].numel()) if len(images) else 1
    for start in range(0, len(images), step):
        chunk = slice(start, start + step)
        x = as_float(images[chunk]).to(torch.float32).contiguous()
        with full_float32(x.device):
            made = make(x, Draws(seed, kind, severity, numbers[chunk], x.device), unit, *row)
        made = made.clamp(0, 1)
        out[chunk] = made.mul_(255).round_() if images.dtype == torch.uint8 else made
    return out


def corrupted(images: ImageSet, kind: str, severity: int, seed: int = 0) -> ImageSet:
    """The same image set, corrupted as it is fetched; see `corrupt`. Nothing is kept.

    An image's number is its place in ``images``, and stays with it in a subset. `resized` resizes
    the clean images, as ImageNet-C was made.
    """
    _check(kind, severity)
    return _Corrupted(images, kind, severity, seed, torch.arange(len(images)))


class _Corrupted(ImageSet):
    def __init__(
        self, clean: ImageSet, kind: str, severity: int, seed: int, number: Tensor
    ) -> None:
        super().__init__(
            clean.target,
            clean.image_shape,
            classes=clean.classes,
            concept_map=clean.concept_map,
            name=f"{clean.name}, {kind} {severity}",
        )
        self.columns = clean.columns
        self._clean, self._settings, self._number = clean, (kind, severity, seed), number

    def __getitems__(self, indices: Ids) -> tuple[Tensor, Tensor]:
        rows = self._rows(indices)
        images, target = self._clean.__getitems__(rows)
        kind, severity, seed = self._settings
        return corrupt(images, kind, severity, seed=seed, index=self._number[rows]), target

    def subset(self, indices: Ids) -> ImageSet:
        rows = self._rows(indices)
        return _Corrupted(self._clean.subset(rows), *self._settings, self._number[rows])

    def resized(self, image_size: ImageSize) -> ImageSet:
        return _Corrupted(self._clean.resized(image_size), *self._settings, self._number)


def _check(kind: str, severity: int) -> None:
    if kind not in _MADE_BY:
        raise ValueError(f"corrupt: kind {not_known(kind, _MADE_BY)}")
    if type(severity) is not int or severity not in SEVERITIES:
        raise ValueError(f"corrupt: severity must be one of 1, 2, 3, 4, 5, got {severity!r}")


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"corrupt: images must be RGB, [B, 3, H, W], got {list(images.shape)}; corruptions are of "
            "photographs, and of other channels there are none"
        )
    if images.is_floating_point():
        return in_range(images, "corrupt")
    if images.dtype != torch.uint8:
        raise TypeError(f"corrupt: images must be uint8, or float in [0, 1], got {images.dtype}")
    return images
