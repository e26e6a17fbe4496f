"""The training loop: reproducible, resumable, and the same whatever is trained.

========================= =================================================================
:class:`Loop`             epochs, files, exact resumption, signals, progress
:class:`Recipe`           what the loop asks of a method: its step, and what an epoch reports
:class:`Move`             from a loss to new weights: precision, parts, processes, optimiser
:class:`TrainingConfig`   how long, and by which optimiser
:class:`RunLogger`        what is told of a run: MLflow, W&B, or an object of one's own
========================= =================================================================
"""

from .checkpoint import CheckpointError
from .config import TrainingConfig
from .loggers import RunLogger
from .loop import Loop
from .move import Move
from .recipe import Recipe
from .result import TrainingResult
from .run_folder import RunFolder, load_model

__all__ = [
    "CheckpointError",
    "Loop",
    "Move",
    "Recipe",
    "RunFolder",
    "RunLogger",
    "TrainingConfig",
    "TrainingResult",
    "load_model",
]
