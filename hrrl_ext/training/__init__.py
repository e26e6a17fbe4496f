"""Algorithm 1 as a trainer: reproducible, resumable, and open about what q does."""

from .checkpoint import CheckpointError, load_model
from .config import TrainingConfig
from .trainer import HRRLTrainer, TrainingResult, choose_device

__all__ = [
    "CheckpointError",
    "HRRLTrainer",
    "TrainingConfig",
    "TrainingResult",
    "choose_device",
    "load_model",
]
