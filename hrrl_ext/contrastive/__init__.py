"""Contrastive pretraining that is robust: MoCo v2 and others on the views of URRL (ICLR 2021 submission).

=========================== ==================================================================
:class:`URRLTrainer`        from images to the network of the features, in one call
:class:`MoCo`               what one step computes, on the common loop
:func:`info_nce`            the loss, against a queue of any length, without its matrix of logits
:class:`KeyQueue`           the negatives, which resume with the run
:class:`MemoryBank`         those of InstDis and PIRL
=========================== ==================================================================
"""

from .config import ContrastiveConfig, ContrastiveTraining
from .encoder import Encoder, JigsawEncoder, KeyEncoder
from .instance import PIRL, InstDis
from .jigsaw import Jigsaw
from .losses import info_nce
from .memory import MemoryBank
from .moco import MoCo
from .queue import KeyQueue
from .trainer import URRLTrainer
from .views import TwoViews, ViewBatches

__all__ = [
    "PIRL",
    "ContrastiveConfig",
    "ContrastiveTraining",
    "Encoder",
    "InstDis",
    "Jigsaw",
    "JigsawEncoder",
    "KeyEncoder",
    "KeyQueue",
    "MemoryBank",
    "MoCo",
    "TwoViews",
    "URRLTrainer",
    "ViewBatches",
    "info_nce",
]
