"""Common corruptions: the images of ImageNet-C and CIFAR-10-C, and what is said of a model by them."""

from .corrupt import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, corrupt, corrupted

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "SEVERITIES",
    "corrupt",
    "corrupted",
]
