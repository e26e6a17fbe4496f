"""Views of images, as contrastive pretraining takes them: every image with a draw of its own.

:class:`Views`              a crop and a family: two views of a batch, by (seed, epoch, index, view)
:class:`RandomResizedCrop`  a part of an image, resized with antialiasing, and a flip
:class:`RandomErasing`      a rectangle that becomes one colour
:class:`MoCoViews`          colour jitter, grey, blur, solarise
:class:`AugMixViews`        AugMix, of three sets of operations
:class:`URRLViews`          one of the two families, drawn for every image and view
:func:`view_family`         a family by name
"""

from .crops import RandomResizedCrop, resized_crop
from .erasing import RandomErasing
from .families import (
    FAMILIES,
    AugMixViews,
    MoCoViews,
    URRLViews,
    ViewFamily,
    view_family,
)
from .views import Views

__all__ = [
    "FAMILIES",
    "AugMixViews",
    "MoCoViews",
    "RandomErasing",
    "RandomResizedCrop",
    "URRLViews",
    "ViewFamily",
    "Views",
    "resized_crop",
    "view_family",
]
