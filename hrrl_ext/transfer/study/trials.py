"""A trial: one network, trained on a source with a method and a seed; kept, and measured later."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data import ImageSet
from ...pretrained import from_pretrained
from ...robust import HRRLTrainer
from ...training.run_folder import RunFolder
from .config import StudyConfig, file_name
from .parts import Part

MEASURED = ("accuracy", "worst_concept_accuracy", "concept_accuracy")
SCORED = ("accuracy", "concept_accuracy")
"""By which levels are chosen."""
NEEDED = (*MEASURED, "seconds_per_epoch", "processor_seconds_per_epoch")
"""Of what a training came to, by whoever analyses it."""


@dataclass(frozen=True)
class Trial:
    """Which network of a study."""

    profile: str
    width: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{file_name(self.profile)}_w{self.width}_{file_name(self.method)}_{self.seed}"

    def __str__(self) -> str:
        return f"{self.profile}, width {self.width}, {self.method}, seed {self.seed}"


def all_trials(config: StudyConfig) -> list[Trial]:
    """Width by width, and there seed by seed: after each, all methods can be compared."""
    return [
        Trial(profile, width, method, seed)
        for width in config.widths
        for seed in config.seeds
        for profile in config.profiles
        for method in config.methods
    ]


def trial_description(
    config: StudyConfig, trial: Trial, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the training of a trial is of; ``settings`` are its method's, with the level chosen."""
    return {
        "profile": trial.profile,
        "width": trial.width,
        "seed": trial.seed,
        "source": asdict(config.source),
        "settings": {**config.training, **settings},
    }


def train(
    folder: Path,
    images: ImageSet,
    validation: ImageSet,
    config: StudyConfig,
    settings: Mapping[str, Any],
    *,
    width: int,
    seed: int,
) -> Part:
    """Trains a network into ``folder``, or goes on with it; its accuracies, after the last epoch alone.

    This is the one place that trains a source: a method that HRRLTrainer does not know belongs here.
    A loss that is not finite is a result as well: the part says ``failed``, and why.
    """
    options = {**config.training, **settings}
    epochs = options.get("epochs", 90)
    trainer = HRRLTrainer(
        data=images,
        validation=validation,
        concepts=config.source.concepts,
        out=folder,
        resume=goes_on(folder),
        width=width,
        seed=seed,
        evaluate_every=epochs,
        progress="off",
        **options,
    )
    done, worked = len(trainer.history), time.process_time()
    try:
        history = trainer.fit().history
    except FloatingPointError as error:
        return {"failed": str(error)}
    last, epochs_now = history[-1], len(history) - done
    on_cpu = trainer.device.type == "cpu" and epochs_now > 0
    worked = time.process_time() - worked
    return {
        "images": len(images),
        "concept_count": dict(
            zip(trainer.concept_names, trainer.batches.concept.bincount().tolist(), strict=True)
        ),
        **{name: last[name] for name in MEASURED},
        "loss": last["loss"],
        "train_accuracy": last["train_accuracy"],
        "effective_concepts": last["effective_concepts"],
        "mu": last["mu"],
        "epochs": len(history),
        "seconds_per_epoch": statistics.median(row["seconds"] for row in history),
        "processor_seconds_per_epoch": worked / epochs_now if on_cpu else None,
        "threads": torch.get_num_threads(),
    }


def goes_on(folder: Path) -> bool:
    """Whether a run in the folder has a checkpoint to go on from; what was stopped before its first one
    is removed."""
    begun = bool(RunFolder(folder).checkpoints)
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    return begun


def keep_model_alone(folder: Path) -> None:
    """Drops the checkpoints of a run that is through: many times the size of its model, best/."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def trained_model(folder: Path) -> nn.Module:
    """The network after the last epoch: the only one that was evaluated, so the best."""
    return from_pretrained(folder / "best")
