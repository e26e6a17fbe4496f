"""Images and captions in one space (Faghri's thesis, chapter 3)."""

from .clip_losses import info_nce, sigmoid_loss
from .config import RetrievalConfig, RetrievalTraining
from .embeddings import Embeddings, load_embeddings
from .emoji import EmojiPairs, load_emoji
from .exported import export
from .gallery import Gallery, embed, open_gallery_images
from .hugging_face import HuggingFaceEncoder, TokenizerWords
from .index import Found, Index
from .losses import Keys, max_hinge, pairs_of_groups, sum_hinge
from .measures import Retrieval, evaluate
from .model import JointEmbedding
from .pair_queue import PairQueue
from .pairs import Pairs, load_pairs
from .presets import PRESETS, Preset
from .recipe import VSE
from .saved import build_joint_embedding, load_joint_embedding, save_joint_embedding
from .text_encoders import GRUEncoder
from .trainer import RetrievalTrainer
from .words import Words

__all__ = [
    "PRESETS",
    "VSE",
    "Embeddings",
    "EmojiPairs",
    "Found",
    "GRUEncoder",
    "Gallery",
    "HuggingFaceEncoder",
    "Index",
    "JointEmbedding",
    "Keys",
    "PairQueue",
    "Pairs",
    "Preset",
    "Retrieval",
    "RetrievalConfig",
    "RetrievalTrainer",
    "RetrievalTraining",
    "TokenizerWords",
    "Words",
    "build_joint_embedding",
    "embed",
    "evaluate",
    "export",
    "info_nce",
    "load_embeddings",
    "load_emoji",
    "load_joint_embedding",
    "load_pairs",
    "max_hinge",
    "open_gallery_images",
    "pairs_of_groups",
    "save_joint_embedding",
    "sigmoid_loss",
    "sum_hinge",
]
