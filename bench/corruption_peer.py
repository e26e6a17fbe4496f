"""imagecorruptions 1.1.2, which most people take for ImageNet-C's corruptions, made to import and run.

It was written for releases of its own dependencies that are years old. What they have renamed since is
given back here under the old name, and nothing else is changed: its own loops and kernels are timed.

    pip install --no-deps imagecorruptions opencv-python-headless scikit-image lazy_loader
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np


def load() -> Callable[..., Any]:
    """corrupt(image [H, W, 3] uint8, severity, corruption_name=...) → uint8; ImportError without it."""
    folder = importlib.util.find_spec("imagecorruptions")
    if folder is None or not folder.submodule_search_locations:
        raise ImportError("imagecorruptions is not installed")
    import scipy.ndimage
    import skimage.filters

    root = folder.submodule_search_locations[0]
    resources: Any = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, name: f"{root}/{name}"
    sys.modules.setdefault("pkg_resources", resources)
    interpolation: Any = types.ModuleType("scipy.ndimage.interpolation")
    interpolation.map_coordinates = scipy.ndimage.map_coordinates
    sys.modules.setdefault("scipy.ndimage.interpolation", interpolation)
    legacy_numpy: Any = np
    legacy_numpy.float_ = np.float64

    corruptions: Any = importlib.import_module("imagecorruptions.corruptions")

    def gaussian(image: Any, *args: Any, multichannel: bool = False, **settings: Any) -> Any:
        axis = -1 if multichannel else None
        return skimage.filters.gaussian(image, *args, channel_axis=axis, **settings)

    corruptions.gaussian = gaussian
    corrupt: Callable[..., Any] = importlib.import_module("imagecorruptions").corrupt
    return corrupt
