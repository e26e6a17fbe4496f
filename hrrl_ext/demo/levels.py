"""Digits of which some are rare: features learned four ways, and a shift at either level.

The source is scikit-learn's digits (8x8), each digit a concept, cut to a long tail of 135 images of one
to 5 of another; each seed draws which are rare. Of one seed all methods have the same images, first
weights and batches. Measured on the test images, where all digits are as frequent:

- at home: accuracy, and that of the worst digit, which is what the concept level is for;
- concept level: a linear SVM on the features, with five examples of each of the five rarest digits;
- example level: accuracy on x + STEP ∇ℓ/‖∇ℓ‖, of each network's own gradient, which is what the level
  trains against; and a linear SVM on the features of the digits at half the resolution, as the paper's.

How it was chosen. The network, the batch and the length of training: by the accuracy at home of plain
training (ERM) on two or three seeds and by its time, among linear:10, tail:10, tail:30 and tail:100,
widths 8 to 16 and 30 to 60 epochs; tail:30 is the longest tail on which ERM is good (96 %, and 85 % for
the worst digit). The shifts: by what the levels are for, before any of them was measured there; STEP and
the five examples so that ERM is neither perfect nor lost there. The levels: by held-out images of the
source, as in a study, with seeds of their own. No choice was made by how HRRL, EL or CL did in the table.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data import ImageSet, few_per_class, load_images
from ..evaluation import perturbation_curve
from ..robust import HRRLTrainer
from ..training import TrainingResult
from ..transfer import Features, extract_features
from ..transfer.probe import probe
from ..transfer.study import StudyConfig
from ..transfer.study.images import StudyImages
from ..transfer.study.levels import score
from ..transfer.study.parts import Part, Parts
from ..transfer.table import variant_config

PROFILE = "tail:30"
HALF = "half resolution"
STEP = 0.4
"""Some 8 of 255 in each value, in the mean square."""
RAREST, EXAMPLES = 5, 5
"""How many digits count as rare, and the examples of each for the SVM."""

CONFIG = StudyConfig.read(
    {
        "source": {"train": "digits", "test": "digits", "concepts": "classes"},
        "targets": {HALF: {"train": "digits", "test": "digits", "lower": 2}},
        "methods": {
            "ERM": {},
            "EL": {"search": {"tau": [0.1, 0.3, 1.0]}},
            "CL": {"search": {"lam": [10.0, 3.0, 1.0]}},
            "HRRL": {"levels_of": ["EL", "CL"]},
        },
        "profiles": [PROFILE],
        "widths": [16],
        "search": {"held_out": 0.3, "seeds": [1000, 1001, 1002]},
        "training": {
            "epochs": 30,
            "batch_size": 64,
            "lr": 0.1,
            "schedule": "cosine",
            "s": 20,
            "crop_padding": 1,
            "flip": False,
        },
    }
)
NETWORK = "convnet"

MEASURES = {
    "home": "digits at home",
    "worst": "the worst digit at home",
    "rare": "rare digits, SVM, 5 examples",
    "moved": "moved along the gradient",
    "half": "half resolution, SVM",
}
PURPOSE = {
    "EL": ("images worse than at home", ("moved", "half"), "docs/study.md"),
    "CL": ("unequal concepts", ("worst", "rare"), "docs/results/hidden-groups.md"),
    "HRRL": ("both", ("moved", "half", "worst", "rare"), "docs/study.md"),
}
"""Of a method: what it is for, the measures of that, and a page with more."""
SOURCE = (
    "Digits, some of them rare: 135 images of one down to 5 of another; each seed\n"
    "draws which. ERM is plain training, EL the example level alone, CL the concept\n"
    "level alone, HRRL both."
)


class Levels:
    """The trainings of this part, and what they came to; ``parts`` keeps each."""

    def __init__(self, out: Path, report: Callable[[str], None]) -> None:
        self.out, self.report = out, report
        self.parts = Parts(out / "parts")
        self.images = StudyImages(CONFIG)

    def search(self) -> dict[str, float]:
        """tau and lam: the best score on held-out images of the source; of equal ones the weakest."""
        chosen = {}
        for method, spec in CONFIG.methods.items():
            if spec.level is None:
                continue
            scores = {value: self._score(spec.level, value) for value in spec.grid}
            best = max(scores, key=lambda value: scores[value])
            chosen[spec.level] = best
            shown = "  ".join(f"{value:g}: {100 * s:.1f}" for value, s in scores.items())
            self.report(f"{method:4}  {spec.level:3}  {shown}  ->  {best:g}")
        return chosen

    def trial(self, method: str, seed: int, levels: dict[str, float], *, keep: bool) -> Part:
        """The measures of one network; with ``keep`` its run is in models/METHOD-SEED."""
        settings = variant_config(method, levels["tau"], levels["lam"])
        of = {"method": method, "seed": seed, **_description(settings)}

        def make() -> Part:
            source = self.images.source(PROFILE, seed)
            run = self.out / "models" / f"{method}-{seed}" if keep else None
            if run is not None:
                shutil.rmtree(run, ignore_errors=True)  # of an attempt that was interrupted
            result = _fit(source, self.images.source_test(), seed, run, settings)
            return self._measured(result, source, seed)

        return self.parts.keep(f"{method} {seed}", of, make)

    def _score(self, level: str, value: float) -> float:
        """0 where a training failed."""
        parts = [self._candidate(level, value, seed) for seed in CONFIG.search.seeds]
        return score(parts) or 0.0

    def _candidate(self, level: str, value: float, seed: int) -> Part:
        settings = {**variant_config("ERM", 0.0, 0.0), level: value}
        of = {"seed": seed, "held_out": CONFIG.search.held_out, **_description(settings)}

        def make() -> Part:
            try:
                with warnings.catch_warnings():  # of too small a lam, which the score tells as well
                    warnings.simplefilter("ignore")
                    result = _fit(*self.images.split(PROFILE, seed), seed, None, settings)
            except FloatingPointError as error:
                return {"failed": str(error)}
            return {name: result.last[name] for name in ("accuracy", "concept_accuracy")}

        return self.parts.keep(f"search {level} {value:g} {seed}", of, make)

    def _measured(self, result: TrainingResult, source: ImageSet, seed: int) -> Part:
        test, half = self.images.source_test(), self.images.target(HALF)
        rare = torch.bincount(source.target).argsort(stable=True)[:RAREST]
        few, rare_test = (
            _of_classes(images, rare) for images in (load_images("digits", split="train"), test)
        )
        few = few.subset(few_per_class(few, EXAMPLES, seed))
        (moved,) = perturbation_curve(result.model, test, [STEP]).accuracy

        def svm(train: ImageSet, test: ImageSet) -> float:
            features: list[Features] = [extract_features(result.model, s) for s in (train, test)]
            return probe(*features).accuracy

        return {
            "home": result.last["accuracy"],
            "worst": result.last["worst_concept_accuracy"],
            "rare": svm(few, rare_test),
            "moved": moved,
            "half": svm(half.train, half.test),
            "history": result.history,
        }


def _description(settings: dict[str, Any]) -> dict[str, Any]:
    width = CONFIG.widths[0]
    network = {"network": NETWORK, "width": width, "profile": PROFILE}
    return network | dict(CONFIG.training) | settings


def _fit(
    source: ImageSet, test: ImageSet, seed: int, run: Path | None, settings: dict[str, Any]
) -> TrainingResult:
    """Measured after each epoch where the run is kept, for its pictures, else once."""
    return HRRLTrainer(
        NETWORK,
        data=source,
        validation=test,
        concepts=CONFIG.source.concepts,
        out=run,
        seed=seed,
        width=CONFIG.widths[0],
        evaluate_every=CONFIG.training["epochs"] if run is None else 1,
        device="cpu",
        progress="off",
        **CONFIG.training,
        **settings,
    ).fit()


def _of_classes(images: ImageSet, classes: torch.Tensor) -> ImageSet:
    return images.subset(torch.isin(images.target, classes).nonzero().flatten())
