"""Images and captions in one space (Faghri's thesis, chapter 3)."""

from .losses import (
    PRESETS,
    Preset,
    info_nce,
    max_hinge,
    pairs_of_groups,
    sigmoid_loss,
    sum_hinge,
)

__all__ = [
    "PRESETS",
    "Preset",
    "info_nce",
    "max_hinge",
    "pairs_of_groups",
    "sigmoid_loss",
    "sum_hinge",
]
