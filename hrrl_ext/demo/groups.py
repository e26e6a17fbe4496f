"""Groups that nobody labelled: found by gradient clustering, weighted by the concept level.

Odd digits against even ones, in colour: of the odd 95 % are green and of the even 95 % red. The other
5 % of each class are the hidden groups; in the validation and the test images half of each class has
either colour. examples/hidden_groups.py is the whole experiment, with its controls. This is a part of
it, with the same settings: levels of 8 and 32, since 2 failed there on other seeds; where validation
likes neither, plain training stays, since a collapse shows there. That was added when both levels had
collapsed in one of five seeds. A network with batch normalisation stands beside, which takes the easy
way less often by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ..clustering import DiscoveredConcepts
from ..data import ArrayImages, Batches, load_images
from ..evaluation import accuracy
from ..robust import HRRLTrainer
from ..transfer.study.parts import Part, Parts
from .levels import NETWORK

MINORITY = 0.05
"""Share of each class in the training images that has the other class's colour."""
CLUSTERS = 16
LAM_GRID = (8.0, 32.0)
"""Of these, or plain training, the best by the worst group of the validation images."""
EPOCHS, WARM_UP = 30, 3
"""In all, and of them plain training before the clustering."""
WIDTH = 16
SETTINGS: dict[str, Any] = {
    "tau": 0.0,
    "s": 100,
    "batch_size": 32,
    "lr": 0.05,
    "crop_padding": 0,
    "flip": False,
}
WAYS = {
    "ERM": "plain training (ERM)",
    "found": "CL, groups found",
    "batch norm": "ERM, with batch normalisation",
}


@dataclass(frozen=True)
class Coloured:
    """Digits that are odd (class 1) or even (0), green (1) or red (0); group = 2 class + colour."""

    images: ArrayImages
    group: Tensor

    @property
    def minority(self) -> Tensor:
        """[N] whether the colour is not that of most of the class."""
        return (self.group == 1) | (self.group == 2)


def coloured(digits: ArrayImages, minority: float, seed: int) -> Coloured:
    """A share ``minority`` of each class, chosen at random, has the other class's colour."""
    generator = torch.Generator().manual_seed(seed)
    label = digits.target % 2
    colour = label.clone()
    for c in (0, 1):
        members = (label == c).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        colour[members[: round(minority * len(members))]] = 1 - c
    images = torch.zeros_like(digits.images)
    rows = torch.arange(len(images))
    images[rows, colour] = digits.images[:, 0]
    return Coloured(ArrayImages(images, label, classes=["even", "odd"]), 2 * label + colour)


def coloured_digits(seed: int) -> dict[str, Coloured]:
    """train, validation and test; a fifth of the training images is held out for validation."""
    digits, test = load_images("digits", split="train"), load_images("digits", split="test")
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    held = len(digits) // 5
    return {
        "train": coloured(digits.subset(order[held:]), MINORITY, seed),
        "validation": coloured(digits.subset(order[:held]), 0.5, seed),
        "test": coloured(test, 0.5, seed),
    }


def plain_network(width: int, seed: int) -> nn.Module:
    """Without batch normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 2),
        )  # fmt: skip


def worst_groups(parts: Parts, seed: int) -> Part:
    """Accuracy of the worst group of the test images, by ``WAYS``; and the lam that was chosen."""
    of = {
        "seed": seed,
        "minority": MINORITY,
        "clusters": CLUSTERS,
        "lam": LAM_GRID,
        "epochs": [EPOCHS, WARM_UP],
        "width": WIDTH,
        "settings": SETTINGS,
    }
    return parts.keep(f"groups {seed}", of, lambda: _Seed(seed).compare())


def make(out: str, seeds: int) -> None:
    """The parts of the first seeds, on one thread."""
    with one_thread():
        for seed in range(seeds):
            worst_groups(Parts(Path(out) / "parts"), seed)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Seed:
    """The networks of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.sets = seed, coloured_digits(seed)

    def compare(self) -> Part:
        with tempfile.TemporaryDirectory() as folder:
            warm = self.fit(plain_network(WIDTH, self.seed), WARM_UP, milestones=[])
            init = Path(folder) / "warm.safetensors"
            save_model(warm.model, str(init))
            runs = [
                self.fit(
                    plain_network(WIDTH, self.seed),
                    EPOCHS - WARM_UP,
                    concepts=DiscoveredConcepts(CLUSTERS),
                    lam=lam,
                    init=init,
                )
                for lam in LAM_GRID
            ]
        plain = self.fit(plain_network(WIDTH, self.seed), EPOCHS)
        validated = [plain, *runs]  # of equal ones the first is taken
        found = max(validated, key=lambda run: run.history[-1]["worst_concept_accuracy"])
        return {
            "ERM": self.worst(plain),
            "found": self.worst(found),
            "batch norm": self.worst(self.fit(NETWORK, EPOCHS)),
            "lam": found.recipe.config.lam,
            "share found": found_share(runs[0].batches.concept, self.sets["train"].minority),
        }

    def fit(self, network: str | nn.Module, epochs: int, **settings: Any) -> HRRLTrainer:
        train, validation = self.sets["train"], self.sets["validation"]
        plain = {"concepts": train.group, "lam": None}
        trainer = HRRLTrainer(
            network,
            data=train.images,
            validation=validation.images,
            validation_concepts=validation.group,
            epochs=epochs,
            evaluate_every=epochs,
            width=WIDTH,
            seed=self.seed,
            device="cpu",
            progress="off",
            **(SETTINGS | plain | settings),
        )
        trainer.fit()
        return trainer

    def worst(self, trainer: HRRLTrainer) -> float:
        test = self.sets["test"]
        batches = Batches(test.images, test.group, 256, shuffle=False)
        return accuracy(trainer.model, batches, 4).worst_concept


def found_share(cluster: Tensor, minority: Tensor) -> float:
    """The share of the minorities' images that are in clusters of which they are most."""
    count = torch.bincount(cluster)
    members = torch.bincount(cluster[minority], minlength=len(count))
    return (members[2 * members > count].sum() / members.sum()).item()
