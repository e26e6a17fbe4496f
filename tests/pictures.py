"""Files for tests, of which no two have one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hrrl_ext.data import FolderImages


def noisy_pictures(folder: Path, count: int, image_size: int) -> FolderImages:
    """Noise of 15 x 40, 16 x 39 pixels, .., of one class; skips the test without Pillow."""
    image, noise = pytest.importorskip("PIL.Image"), np.random.default_rng(0)
    (folder / "a").mkdir()
    for i in range(count):
        pixels = noise.integers(0, 256, (15 + i, 40 - i, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"a/{i:02}.png")
    return FolderImages(folder, image_size=image_size)
