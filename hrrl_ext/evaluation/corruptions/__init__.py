"""Common corruptions: the images of ImageNet-C and CIFAR-10-C, made or read, and errors under them."""

from .errors import (
    ALEXNET,
    mean_corruption_error,
    relative_mean_corruption_error,
    unnormalised_corruption_error,
)
from .folders import open_corruptions, write_corruptions
from .kinds import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, corrupt, corrupted

__all__ = [
    "ALEXNET",
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "SEVERITIES",
    "corrupt",
    "corrupted",
    "mean_corruption_error",
    "open_corruptions",
    "relative_mean_corruption_error",
    "unnormalised_corruption_error",
    "write_corruptions",
]
