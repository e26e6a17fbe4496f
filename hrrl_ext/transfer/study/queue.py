"""The queue of a study: what is left to do, by one process or several on the same folder.

Processes share the study's folder; one of its folders of work is claimed by a lock (``locks.py``) on the
file ``claim`` in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ...locks import FolderLock
from .config import StudyConfig
from .images import StudyImages
from .levels import Candidate, Levels
from .measures import CLASSIFIERS, Measure, cheap_measures, costly_measures
from .parts import Part, Parts
from .trials import MEASURED, NEEDED, Trial, all_trials, keep_model_alone, train, trial_description

STAGES = ("levels", "cheap", "all")
"""How far to go: the search; and source accuracies, SVM and k-NN; and the measures that cost more."""

Report = Callable[[str], None]
Measures = Callable[[StudyConfig, StudyImages, Path, int], Iterator[Measure]]


class Job(Protocol):
    """Something to do in a folder that one process at a time may work in."""

    folder: Path

    def is_done(self) -> bool: ...

    def run(self, report: Report) -> None: ...


class Study:
    """A study in folder ``out``.

    ::

        study = Study(StudyConfig.read(yaml_content, folder=DATA), "runs/study")
        study.work(report=print)
        rows = study_rows(study)

    Args:
        config: what it is of.
        out: its folder; what is in it already is not made again.
    """

    def __init__(self, config: StudyConfig, out: str | os.PathLike[str]) -> None:
        self.config, self.out = config, Path(out)
        self.images = StudyImages(config)
        self.levels = Levels(config, self.images, self.out)

    def work(
        self,
        stage: str = "all",
        *,
        report: Report = lambda line: None,
        poll_seconds: float = 10.0,
    ) -> None:
        """Does what is left, until nothing is, also by the others that work on the same folder.

        ``report`` is told of each part in a line. Any number of processes may be in here at once, and
        each may be killed: its next start loses what the running part had done since its last epoch.
        """
        if stage not in STAGES:
            raise ValueError(f"study: stage must be one of {', '.join(STAGES)}, got {stage!r}")
        self.images.open_all()  # what cannot be opened is said before hours of training
        while True:
            worked = busy = False
            for job in self._jobs(stage):
                if job.is_done():
                    continue
                with claimed(job.folder) as mine:
                    if not mine:
                        busy = True
                    elif not job.is_done():  # by another, meanwhile
                        job.run(report)
                        worked = True
                        break  # meanwhile others may have made what comes first possible
            if not worked and not busy:
                return
            if not worked:
                time.sleep(poll_seconds)

    def _jobs(self, stage: str) -> Iterator[Job]:
        """In order; those that wait for a level are left out until it is chosen."""
        trials = all_trials(self.config)
        if stage != "levels":  # whether plain training is good is known first
            width, seed = self.config.widths[0], self.config.seeds[0]
            first = [t for t in trials if (t.width, t.seed) == (width, seed)]
            plain = [t for t in first if t.method == self.config.base]
            yield from self._measured(plain, cheap_measures)
        for candidate in self.levels.candidates():
            yield _Search(self.levels, candidate)
        for profile in self.config.profiles:  # chosen as soon as they can be
            for method in self.config.methods:
                self.levels.settings(profile, method)
        if stage != "levels":
            yield from self._measured(trials, cheap_measures)
        if stage == "all":
            yield from self._measured(trials, costly_measures)

    def _measured(self, trials: list[Trial], measures: Measures) -> Iterator[Job]:
        for trial in trials:
            settings = self.levels.settings(trial.profile, trial.method)
            if settings is not None:
                yield _Measured(self, trial, settings, measures)

    def folder(self, trial: Trial) -> Path:
        return self.out / "trials" / trial.name

    def training(self, trial: Trial) -> Part | None:
        """What its training came to; None where it is not through. ValueError: it was another one."""
        settings = self.levels.settings(trial.profile, trial.method)
        if settings is None:
            return None
        of = trial_description(self.config, trial, settings)
        return Parts(self.folder(trial) / "parts").read("training", of, NEEDED)


class _Search:
    """A candidate of the search."""

    def __init__(self, levels: Levels, candidate: Candidate) -> None:
        self.levels, self.candidate = levels, candidate
        self.folder = levels.folder(candidate)

    def is_done(self) -> bool:
        return self.levels.measured(self.candidate) is not None

    def run(self, report: Report) -> None:
        report(f"{self.candidate}: {_in_short(self.levels.measure(self.candidate))}")


class _Measured:
    """A trial's training, and some of its measures."""

    def __init__(
        self,
        study: Study,
        trial: Trial,
        settings: dict[str, Any],
        measures: Measures,
    ) -> None:
        self.study, self.trial, self.settings = study, trial, settings
        self.folder = study.folder(trial)
        self.parts = Parts(self.folder / "parts")
        self.of = trial_description(study.config, trial, settings)
        self.measures = lambda: measures(study.config, study.images, self.folder, trial.seed)

    def is_done(self) -> bool:
        training = self.parts.read("training", self.of)
        if training is None or "failed" in training:
            return training is not None
        return all(self.parts.read(m.name, m.of) is not None for m in self.measures())

    def run(self, report: Report) -> None:
        training = self.parts.read("training", self.of)
        if training is None:
            training = self.parts.keep("training", self.of, self._train)
            report(f"{self.trial}: training: {_in_short(training)}")
        keep_model_alone(self.folder / "run")
        if "failed" in training:
            return
        for name, of, make in self.measures():
            if self.parts.read(name, of) is None:
                report(f"{self.trial}: {name}: {_in_short(self.parts.keep(name, of, make))}")

    def _train(self) -> Part:
        config, trial = self.study.config, self.trial
        return train(
            self.folder / "run",
            self.study.images.source(trial.profile, trial.seed),
            self.study.images.source_test(),
            config,
            self.settings,
            width=trial.width,
            seed=trial.seed,
        )


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the folder's work is ours while within; False where another process has it."""
    lock = FolderLock(folder, "claim", shared=False)
    mine = lock.try_take()
    lock.keep()
    try:
        yield mine
    finally:
        lock.release()


def _in_short(part: Part) -> str:
    """The accuracy of a part, in per cent, or why there is none."""
    for name in ("failed", "skipped"):
        if name in part:
            return f"{name}: {part[name]}"
    found: dict[str, float] = {n: part[n] for n in MEASURED[:2] if n in part}
    found |= {n: part[n]["accuracy"] for n in CLASSIFIERS if n in part}
    shown = "  ".join(f"{n.replace('_', ' ')} {100 * v:.1f}" for n, v in found.items())
    return f"{shown}  {part['seconds']:.1f} s"
