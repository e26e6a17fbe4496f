"""Images and captions in one space (Faghri's thesis, chapter 3)."""

from .embeddings import Embeddings, load_embeddings
from .emoji import EmojiPairs, load_emoji
from .index import Found, Index
from .measures import Retrieval, evaluate
from .pairs import Pairs, load_pairs

__all__ = [
    "Embeddings",
    "EmojiPairs",
    "Found",
    "Index",
    "Pairs",
    "Retrieval",
    "evaluate",
    "load_embeddings",
    "load_emoji",
    "load_pairs",
]
