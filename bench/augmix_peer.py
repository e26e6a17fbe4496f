"""AugMix as its authors have it: one image at a time, by Pillow; written from the paper's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from hrrl_ext.data.augmix import OPERATIONS, Chains

AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR


def as_pictures(images: Tensor) -> list[Any]:
    """Of [B, C, H, W] uint8, C = 1 or 3."""
    rows = images.permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row) for row in rows]


def as_tensor(pictures: Sequence[Any]) -> Tensor:
    images = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)


def operated(picture: Any, name: str, level: float, severity: float = 3.0) -> Any:
    """A level below 0 goes in the other direction, where there is one. Of MoCo's operations a level as
    high as the severity goes as far as its views do."""
    sign, level, moved_by = (1 if level > 0 else -1), abs(level), level / severity
    width, height = picture.size

    def moved(*matrix: float) -> Any:
        return picture.transform((width, height), AFFINE, matrix, resample=BILINEAR)

    match name:
        case "autocontrast":
            return ImageOps.autocontrast(picture)
        case "equalize":
            return ImageOps.equalize(picture)
        case "posterize":
            return ImageOps.posterize(picture, 4 - int(level * 4 / 10))
        case "solarize":
            return ImageOps.solarize(picture, 256 - int(level * 256 / 10))
        case "rotate":
            return picture.rotate(sign * int(level * 30 / 10), resample=BILINEAR)
        case "shear_x":
            return moved(1, sign * level * 0.3 / 10, 0, 0, 1, 0)
        case "shear_y":
            return moved(1, 0, 0, sign * level * 0.3 / 10, 1, 0)
        case "translate_x":
            return moved(1, 0, sign * int(level * (width / 3) / 10), 0, 1, 0)
        case "translate_y":
            return moved(1, 0, 0, 0, 1, sign * int(level * (height / 3) / 10))
        case "brightness_jitter" | "contrast_jitter" | "color_jitter":
            enhance = getattr(ImageEnhance, name.removesuffix("_jitter").capitalize())
            return enhance(picture).enhance(1 + 0.4 * moved_by)
        case "hue_jitter":  # as torchvision's, a byte that goes around
            hue, saturation, value = picture.convert("HSV").split()
            hue = hue.point([(h + int(0.1 * moved_by * 255)) % 256 for h in range(256)])
            return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        case "grey":
            return ImageEnhance.Color(picture).enhance(0)
        case "blur":
            return picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * abs(moved_by)))
    return getattr(ImageEnhance, name.capitalize())(picture).enhance(level * 1.8 / 10 + 0.1)


def mixed(pictures: Sequence[Any], chains: Chains) -> Tensor:
    """[B, C, H, W] float32 in [0, 1], for the same draws."""
    drawn = (t.tolist() for t in (chains.operation, chains.level, chains.weight, chains.mix))
    out = []
    for picture, operations, levels, weights, m in zip(pictures, *drawn, strict=True):
        mixture = np.zeros_like(np.asarray(picture), dtype=np.float32)
        for chain, strengths, weight in zip(operations, levels, weights, strict=True):
            made = picture.copy()
            for number, level in zip(chain, strengths, strict=True):
                if number >= 0:
                    made = operated(made, OPERATIONS[number].name, level)
            mixture += weight * (np.asarray(made, dtype=np.float32) / 255)
        out.append((1 - m) * (np.asarray(picture, dtype=np.float32) / 255) + m * mixture)
    return as_tensor(out)
