"""The level of each method, chosen on held-out images of the source alone, once for all seeds.

Rule: a level's score is the mean of the average accuracy and that of the worst quarter of the concepts
(the mean of their accuracies), on held-out images of the source, over the search's seeds. The best score
is taken; of equal ones the weakest level, the one that stands first in the grid. A level whose training
failed has no score.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .config import StudyConfig, file_name
from .images import StudyImages
from .parts import Part, Parts
from .trials import SCORED, train

_HELD_OUT = "held-out"


@dataclass(frozen=True)
class Candidate:
    """One training of the search."""

    profile: str
    method: str
    value: float
    seed: int

    @property
    def name(self) -> str:
        of = f"{file_name(self.profile)}_{file_name(self.method)}"
        return f"{of}_{file_name(self.value)}_{self.seed}"

    def __str__(self) -> str:
        return f"{self.profile}, {self.method} {self.value:g}, search seed {self.seed}"


class Levels:
    """The search of a study, in its folders search/ and levels/."""

    def __init__(self, config: StudyConfig, images: StudyImages, out: Path) -> None:
        self.config, self.images, self.out = config, images, out
        self._chosen = Parts(out / "levels")

    def candidates(self) -> Iterator[Candidate]:
        for profile in self.config.profiles:
            for method, spec in self.config.methods.items():
                for value in spec.grid:
                    for seed in self.config.search.seeds:
                        yield Candidate(profile, method, value, seed)

    def folder(self, candidate: Candidate) -> Path:
        return self.out / "search" / candidate.name

    def measured(self, candidate: Candidate) -> Part | None:
        return Parts(self.folder(candidate)).read(_HELD_OUT, self._description(candidate), SCORED)

    def measure(self, candidate: Candidate) -> Part:
        """Trains with it, and keeps its accuracies; nothing else of the run is of use."""
        search, folder = self.config.search, self.folder(candidate)
        images, held_out = self.images.split(candidate.profile, candidate.seed)
        settings = self._settings(candidate)
        part = Parts(folder).keep(
            _HELD_OUT,
            self._description(candidate),
            lambda: train(
                folder / "run",
                images,
                held_out,
                self.config,
                settings,
                width=search.width,  # type: ignore[arg-type]
                seed=candidate.seed,
            ),
        )
        shutil.rmtree(folder / "run", ignore_errors=True)
        return part

    def settings(self, profile: str, method: str) -> dict[str, Any] | None:
        """Of a method with its level, and those it takes from others; None while one is not known."""
        spec = self.config.methods[method]
        settings = dict(spec.settings)
        for name in (method, *spec.levels_of):
            if (level := self.config.methods[name].level) is None:
                continue
            if (chosen := self.chosen(profile, name)) is None:
                return None
            settings[level] = chosen["value"]
        return settings

    def chosen(self, profile: str, method: str) -> Part | None:
        """The level of a method, and the scores of all; None while a candidate is not measured."""
        spec = self.config.methods[method]
        candidates = [c for c in self.candidates() if (c.profile, c.method) == (profile, method)]
        of = {"level": spec.level, "search": [self._description(c) for c in candidates]}
        name = f"{profile} {method}"
        if (kept := self._chosen.read(name, of, needs=["value"])) is not None:
            return kept
        measured = {c: self.measured(c) for c in candidates}
        if any(part is None for part in measured.values()):
            return None
        of_value = {
            value: [part or {} for c, part in measured.items() if c.value == value]
            for value in spec.grid
        }
        scores = {value: score(parts) for value, parts in of_value.items()}
        known = {value: s for value, s in scores.items() if s is not None}
        if not known:
            raise ValueError(
                f"study: every level of {method} failed on {profile}; give weaker ones than "
                f"{', '.join(f'{value:g}' for value in spec.grid)}"
            )
        value = max(known, key=known.__getitem__)  # the first of equal ones
        shown = {f"{v:g}": s for v, s in scores.items()}
        rule = (__doc__ or "").partition("Rule: ")[2].strip()
        return self._chosen.keep(
            name, of, lambda: {"value": value, "scores": shown, "rule": " ".join(rule.split())}
        )

    def _settings(self, candidate: Candidate) -> dict[str, Any]:
        spec, epochs = self.config.methods[candidate.method], self.config.search.epochs
        settings = {**spec.settings, str(spec.level): candidate.value}
        return settings if epochs is None else settings | {"epochs": epochs}

    def _description(self, candidate: Candidate) -> dict[str, Any]:
        search = {k: v for k, v in asdict(self.config.search).items() if k != "seeds"}
        return {
            "profile": candidate.profile,
            "seed": candidate.seed,
            "source": asdict(self.config.source),
            "search": search,
            "settings": {**self.config.training, **self._settings(candidate)},
        }


def score(parts: list[Part]) -> float | None:
    """Mean of average and worst quarter over the seeds; None where a training failed."""
    if any("failed" in part for part in parts):
        return None
    found = [(p["accuracy"] + worst_quarter(p["concept_accuracy"])) / 2 for p in parts]
    return statistics.fmean(found)


def worst_quarter(accuracy: Mapping[str, float | None]) -> float:
    """Mean accuracy of the worst quarter of the concepts, one at least; None is of no image. One concept
    of few held-out images has an accuracy of mostly noise, of which a minimum takes the lowest."""
    known = sorted(value for value in accuracy.values() if value is not None)
    return statistics.fmean(known[: math.ceil(len(known) / 4)])
