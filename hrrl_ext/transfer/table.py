"""The paper's experiment: features learned several ways, frozen, and what a linear SVM makes of them."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .._arrays import to_numpy
from .._shapes import count, entries, many, record, text
from .._tables import aligned, markdown
from ..data import Concepts, ImageSet, Source, with_classes
from ..processes import start_processes
from ..robust import HRRLConfig, HRRLTrainer
from ..spec import not_known, plain
from ..storage import WorkFolder, read_rows, write_rows
from ..training import TrainingConfig, TrainingResult
from ..training.run_folder import RunFolder
from .differences import Difference, paired
from .features import extract_features
from .probe import probe

VARIANTS = ("ERM", "EL", "CL", "HRRL")
"""Those of the paper."""
BASELINES = ("Group DRO", "CVaR")
"""Other adversaries in CL's place: no example level."""
_TRIALS = "trials.jsonl"
_DEFAULTS = {
    "model": "resnet18",
    **dict.fromkeys(("validation_concepts", "init", "init_part", "penalty")),
    **asdict(TrainingConfig()),
    **asdict(HRRLConfig()),
}
"""Of what a trial depends on; what else HRRLTrainer takes is where and how it is computed."""


def variant_config(name: str, tau: float, lam: float) -> dict[str, Any]:
    """What sets a variant apart: EL has the example level alone, CL the concept level, HRRL both."""
    match name:
        case "ERM" | "EL" | "CL" | "HRRL":
            return {
                "adversary": "hrrl",
                "tau": tau if name in ("EL", "HRRL") else 0.0,
                "lam": lam if name in ("CL", "HRRL") else None,
            }
        case "Group DRO":
            return {"adversary": "group_dro", "tau": 0.0}
        case "CVaR":
            return {"adversary": "cvar", "tau": 0.0}
    raise ValueError(f"variant {not_known(name, VARIANTS + BASELINES)}")


@dataclass(frozen=True)
class Target:
    """A target task: an SVM is trained on the features of ``train`` and measured on ``test``."""

    name: str
    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        """What is equal in both is one class, whatever the order in which ``test`` has them."""
        test = with_classes(self.test, self.train.classes, of=f"{self.name} train", data="test")
        object.__setattr__(self, "test", test)


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
        values = list(self._by_seed(variant, column).values())
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return statistics.fmean(values), spread

    def difference(self, variant: str, base: str, column: str) -> Difference:
        """Of variant minus base under the same seed: same weights, same batches. Mean, and its 95 %
        interval by Student's t."""
        found = paired(self._by_seed(variant, column), self._by_seed(base, column))
        if found is None:
            raise ValueError(f"{variant} and {base} have no seed in common")
        return found

    def _by_seed(self, variant: str, column: str) -> dict[int, float]:
        of = [trial for trial in self.trials if trial.variant == variant]
        return {trial.seed: (trial.source | trial.targets)[column] for trial in of}

    @property
    def variants(self) -> list[str]:
        known = VARIANTS + BASELINES
        return [v for v in known if any(trial.variant == v for trial in self.trials)]

    @property
    def columns(self) -> list[str]:
        return [*self.trials[0].source, *self.trials[0].targets] if self.trials else []

    def rows(self, base: str | None = None) -> list[list[str]]:
        """Header and one row per variant, in per cent: mean ± standard deviation; with ``base`` the
        differences from it, mean (95 % interval; seeds)."""
        table = [["features", *(c.replace("_", " ") for c in self.columns)]]
        for variant in self.variants:
            if variant == base:
                continue
            table.append([variant, *(self._shown(variant, base, c) for c in self.columns)])
        return table

    def _shown(self, variant: str, base: str | None, column: str) -> str:
        if base is not None:
            return str(self.difference(variant, base, column))
        mean, spread = self.cell(variant, column)
        return f"{100 * mean:.1f}" + ("" if math.isnan(spread) else f" ± {100 * spread:.1f}")

    def to_markdown(self, base: str | None = None) -> str:
        return markdown(self.rows(base))

    def __str__(self) -> str:
        return aligned(self.rows())


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

    ``variants`` are of ``VARIANTS`` and ``BASELINES``. They share the configuration (see
    :class:`hrrl_ext.training.TrainingConfig`) but for tau, lam and the adversary; with one seed they
    start from the same weights and see the same batches. With ``out`` each finished trial is kept in
    ``out/trials.jsonl`` and not computed again; its run, with the model, is the folder
    ``out/models/VARIANT-SEED``, and one that was interrupted goes on there. More variants and seeds can
    be asked for; ValueError where anything else differs from what the trials there are of. A training
    that ``max_minutes`` ends is no trial: ``report`` is told, and the next call goes on with it.
    """
    seeds, variants = list(seeds), list(variants)
    if not seeds or not variants:
        raise ValueError("transfer_table needs at least one seed and one variant")
    if not isinstance(model := config.get("model", "resnet18"), str):
        raise TypeError(
            "transfer_table trains a network for each trial and needs model by name, got "
            f"{type(model).__name__}"
        )
    if start_processes(config.get("device", "auto"))[0].size > 1:
        raise ValueError("transfer_table is work of one process; start it without torchrun")
    of_variant = {variant: variant_config(variant, tau, lam) for variant in variants}
    source: dict[str, Any] = {"data": data, "concepts": concepts, "validation": validation}
    kept = None if out is None else WorkFolder(out, "a transfer table", "table.json")
    description = {} if kept is None else _description(source, targets, tau, lam, config)
    with nullcontext() if kept is None else kept.held():
        trials = [] if kept is None else _of_before(kept, description)
        done = {(trial.variant, trial.seed) for trial in trials}
        for seed, variant in product(seeds, variants):
            if (variant, seed) in done:
                continue
            run = None
            if kept is not None:
                run = RunFolder(kept.path / "models" / f"{variant.replace(' ', '-')}-{seed}")
                if not run.checkpoints:  # stopped before its first one
                    shutil.rmtree(run.path, ignore_errors=True)
            trainer = HRRLTrainer(
                **source,
                seed=seed,
                out=None if run is None else run.path,
                resume=run is not None and bool(run.checkpoints),
                progress="off",
                **(config | of_variant[variant]),
            )
            result = trainer.fit()
            if not trainer.loop.over:
                report(f"{variant:4}  seed {seed}  stopped in epoch {len(result.history) + 1}")
                continue
            trial = _measured(variant, seed, result, targets, validation is not None)
            trials.append(trial)
            if kept is not None:
                kept.describe(description)
                write_rows(kept.path / _TRIALS, map(asdict, trials))
            shown = {**trial.source, **trial.targets}
            numbers = "  ".join(f"{name} {100 * value:.1f}" for name, value in shown.items())
            report(f"{variant:4}  seed {seed}  {numbers}")
        return TransferTable([t for t in trials if t.variant in variants and t.seed in seeds])


def _measured(
    variant: str, seed: int, result: TrainingResult, targets: Sequence[Target], validated: bool
) -> Trial:
    source = ("accuracy", "worst_concept_accuracy") if validated else ()
    accuracies = {}
    for target in targets:
        train, test = (extract_features(result.model, s) for s in (target.train, target.test))
        accuracies[target.name] = probe(train, test).accuracy
    return Trial(variant, seed, {m: result.last[m] for m in source}, accuracies, result.history)


# --- what is kept


def _of_before(kept: WorkFolder, description: Mapping[str, Any]) -> list[Trial]:
    """The trials in the folder, if they are of this description."""
    if kept.taken:
        kept.require_same(description, {"settings": _DEFAULTS})
    trials = _read(kept.path / _TRIALS)
    if trials and not kept.taken:
        raise ValueError(
            f"transfer_table: {kept.path} has trials of before settings were kept with them in "
            "table.json; choose another out"
        )
    return trials


def _description(
    source: Mapping[str, Any],
    targets: Sequence[Target],
    tau: float,
    lam: float,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What every trial is of, but for its variant and seed."""
    given = {name: value for name, value in config.items() if name in _DEFAULTS}
    return {
        **{name: _said(value) for name, value in source.items()},
        "targets": {t.name: [_said(t.train), _said(t.test)] for t in targets},
        "settings": _said({**_DEFAULTS, **given, "tau": tau, "lam": lam}),
    }


def _said(value: Any) -> Any:
    """As it stands in JSON: images by name and number, arrays by a digest, what else by its type."""
    value = plain(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, ImageSet):
        return [value.name, len(value)]
    if isinstance(value, Mapping):
        return {str(name): _said(entry) for name, entry in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(to_numpy(value))
        return [list(array.shape), hashlib.sha256(array.data).hexdigest()]
    if isinstance(value, Sequence):
        return [_said(entry) for entry in value]
    if is_dataclass(value):
        return {type(value).__name__: _said(vars(value))}
    return type(value).__name__


def _read(path: Path) -> list[Trial]:
    if not path.exists():
        return []
    names = [field.name for field in fields(Trial)]
    rows = read_rows(
        path,
        names,
        of="a transfer table",
        numbers=["seed"],
        named=["source", "targets"],
        shape=record(variant=text, seed=count, history=many(entries)),
    )
    return [Trial(**{name: row[name] for name in names}) for row in rows]
