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
from .model import JointEmbedding
from .pairs import Pairs, load_pairs
from .saved import build_joint_embedding, load_joint_embedding, save_joint_embedding
from .text_encoders import GRUEncoder
from .words import Words

__all__ = [
    "PRESETS",
    "Embeddings",
    "EmojiPairs",
    "Found",
    "GRUEncoder",
    "Index",
    "JointEmbedding",
    "Pairs",
    "Preset",
    "Retrieval",
    "Words",
    "build_joint_embedding",
    "evaluate",
    "info_nce",
    "load_embeddings",
    "load_emoji",
    "load_joint_embedding",
    "load_pairs",
    "max_hinge",
    "pairs_of_groups",
    "save_joint_embedding",
    "sigmoid_loss",
    "sum_hinge",
]
