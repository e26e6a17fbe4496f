"""Algorithm 1 as a trainer: reproducible, resumable, and open about what q does."""

from .checkpoint import CheckpointError
from .config import TrainingConfig
from .run_folder import load_model
from .trainer import HRRLTrainer, TrainingResult

__all__ = [
    "CheckpointError",
    "HRRLTrainer",
    "TrainingConfig",
    "TrainingResult",
    "load_model",
]
