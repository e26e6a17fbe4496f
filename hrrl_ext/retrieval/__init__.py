"""Images and captions in one space (Faghri's thesis, chapter 3)."""

from .embeddings import Embeddings, load_embeddings
from .emoji import EmojiPairs, load_emoji
from .index import Found, Index
from .losses import (
    PRESETS,
    Preset,
    info_nce,
    max_hinge,
    pairs_of_groups,
    sigmoid_loss,
    sum_hinge,
)
from .measures import Retrieval, evaluate
from .pairs import Pairs, load_pairs

__all__ = [
    "PRESETS",
    "Embeddings",
    "EmojiPairs",
    "Found",
    "Index",
    "Pairs",
    "Preset",
    "Retrieval",
    "evaluate",
    "info_nce",
    "load_embeddings",
    "load_emoji",
    "load_pairs",
    "max_hinge",
    "pairs_of_groups",
    "sigmoid_loss",
    "sum_hinge",
]
