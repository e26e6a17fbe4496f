"""Contrastive pretraining that is robust: momentum contrast on the views of URRL (ICLR 2021 submission).

=========================== ==================================================================
:class:`URRLTrainer`        from images to the network of the features, in one call
:class:`MoCo`               what one step computes, on the common loop
:func:`info_nce`            the loss, against a queue of any length, without its matrix of logits
:class:`KeyQueue`           the negatives, which resume with the run
=========================== ==================================================================
"""

from .config import ContrastiveConfig, ContrastiveTraining
from .encoder import Encoder, KeyEncoder
from .losses import info_nce
from .queue import KeyQueue
from .recipe import MoCo
from .trainer import URRLTrainer
from .views import TwoViews, ViewBatches

__all__ = [
    "ContrastiveConfig",
    "ContrastiveTraining",
    "Encoder",
    "KeyEncoder",
    "KeyQueue",
    "MoCo",
    "TwoViews",
    "URRLTrainer",
    "ViewBatches",
    "info_nce",
]
