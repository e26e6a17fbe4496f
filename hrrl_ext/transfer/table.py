"""The paper's experiment: learn features four ways, freeze them, and see how a linear SVM transfers."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._files import replacing
from ..data import Concepts, ImageSet, Source
from ..training import HRRLTrainer
from .features import extract_features
from .probe import probe

VARIANTS = ("ERM", "EL", "CL", "HRRL")


def variant_levels(name: str, tau: float, lam: float) -> dict[str, Any]:
    """tau and lam of a variant: EL has the example level alone, CL the concept level, HRRL both."""
    if name not in VARIANTS:
        raise ValueError(f"a variant is one of {', '.join(VARIANTS)}, got {name!r}")
    return {
        "tau": tau if name in ("EL", "HRRL") else 0.0,
        "lam": lam if name in ("CL", "HRRL") else None,
    }


@dataclass(frozen=True)
class Target:
    """A target task: an SVM is trained on the features of ``train`` and measured on ``test``."""

    name: str
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Trial:
    """One model: how it was trained, how good it is at home, and what its features are worth."""

    variant: str
    seed: int
    source: dict[str, float]
    """accuracy and worst_concept_accuracy on the validation images, where there are any"""
    targets: dict[str, float]
    """accuracy of the SVM on each target's test images"""
    history: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class TransferTable:
    """Accuracies in [0, 1], a row per variant, mean and standard deviation over the seeds."""

    trials: list[Trial]

    def cell(self, variant: str, column: str) -> tuple[float, float]:
        """(mean, sample standard deviation; NaN for one seed)."""
        values = [
            (trial.source | trial.targets)[column]
            for trial in self.trials
            if trial.variant == variant
        ]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return statistics.fmean(values), spread

    @property
    def variants(self) -> list[str]:
        return [v for v in VARIANTS if any(trial.variant == v for trial in self.trials)]

    @property
    def columns(self) -> list[str]:
        return [*self.trials[0].source, *self.trials[0].targets]

    def rows(self) -> list[list[str]]:
        """Header and one row per variant, in per cent."""
        table = [["features", *(c.replace("_", " ") for c in self.columns)]]
        for variant in self.variants:
            cells = (self.cell(variant, column) for column in self.columns)
            table.append([variant, *(_per_cent(mean, spread) for mean, spread in cells)])
        return table

    def to_markdown(self) -> str:
        header, *rows = self.rows()
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        rows = self.rows()
        width = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                [
                    row[0].ljust(width[0]),
                    *(v.rjust(w) for v, w in zip(row[1:], width[1:], strict=True)),
                ]
            )
            for row in rows
        )


def transfer_table(
    data: Source,
    *,
    targets: Sequence[Target],
    tau: float,
    lam: float,
    concepts: Concepts = None,
    validation: Source | None = None,
    variants: Iterable[str] = VARIANTS,
    seeds: Iterable[int] = (0,),
    out: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
    **config: Any,
) -> TransferTable:
    """Trains every variant with every seed on ``data`` and probes its features on every target.

    All variants share the configuration (see :class:`hrrl_ext.training.TrainingConfig`) but for tau
    and lam; with one seed they start from the same weights and see the same batches. With ``out``
    each finished trial is kept in ``out/trials.jsonl`` and not computed again.
    """
    seeds, variants = list(seeds), list(variants)
    if not seeds or not variants:
        raise ValueError("transfer_table needs at least one seed and one variant")
    levels = {variant: variant_levels(variant, tau, lam) for variant in variants}
    path = None if out is None else Path(out) / "trials.jsonl"
    trials = [] if path is None else _read(path)
    done = {(trial.variant, trial.seed) for trial in trials}
    for seed in seeds:
        for variant in variants:
            if (variant, seed) in done:
                continue
            result = HRRLTrainer(
                data=data,
                concepts=concepts,
                validation=validation,
                seed=seed,
                progress="off",
                **levels[variant],
                **config,
            ).fit()
            measured = ("accuracy", "worst_concept_accuracy") if validation is not None else ()
            accuracies = {}
            for target in targets:
                train, test = (
                    extract_features(result.model, s) for s in (target.train, target.test)
                )
                accuracies[target.name] = probe(train, test).accuracy
            trial = Trial(
                variant, seed, {m: result.last[m] for m in measured}, accuracies, result.history
            )
            trials.append(trial)
            if path is not None:
                with replacing(path) as partial:
                    partial.write_text("".join(json.dumps(asdict(t)) + "\n" for t in trials))
            shown = {**trial.source, **trial.targets}
            numbers = "  ".join(f"{name} {100 * value:.1f}" for name, value in shown.items())
            report(f"{variant:4}  seed {seed}  {numbers}")
    return TransferTable([t for t in trials if t.variant in variants and t.seed in seeds])


def _read(path: Path) -> list[Trial]:
    if not path.exists():
        return []
    return [Trial(**json.loads(line)) for line in path.read_text().splitlines()]


def _per_cent(mean: float, spread: float) -> str:
    return f"{100 * mean:.1f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.1f}")
