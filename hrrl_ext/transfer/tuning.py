"""Levels chosen on held-out images of the source: :func:`tune`, and ``hrrl tune``."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..data import Concepts, Source, load_images, resolve_concepts
from ..data.sources import takes_root
from ..processes import start_processes
from ..robust import HRRLConfig, HRRLTrainer
from ..robust.config import by_config
from ..spec import NUMBER, not_known, repeated
from ..storage import WorkFolder, write_csv, write_json, write_text
from ..training import TrainingConfig
from .study.config import file_name
from .study.images import split_rows
from .study.levels import score, worst_quarter
from .study.parts import Part, Parts
from .study.trials import MEASURED, SCORED, goes_on, keep_model_alone
from .tuning_table import level_row, levels_table

Grid = Mapping[str, Sequence[float]]
Report = Callable[[str], None]

TAU = ("tau=0.01,0.03,0.1,0.3", "tau_multiple=0.3,1,3")
"""What is tried where no grid is given, the weakest first: with tau as a number, and as theorem2."""
BY_ADVERSARY = {
    "hrrl": "lam=100,30,10,3",
    "chi_square": "lam=3,1,0.3",
    "group_dro": "eta_q=0.0003,0.001,0.003,0.01",
    "cvar": "alpha=0.9,0.7,0.5",
}
"""The same of the concept level."""

OF_TUNE = ("evaluate_every", "max_steps", "patience")
"""Settings of a training that the search gives."""
_NUMBER = "a number"
_NEEDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "tau_multiple": {"tau": ["theorem2"]},
    "lam": {"adversary": ["hrrl", "chi_square"]},
    "c": {"adversary": ["hrrl"], "lam": [_NUMBER]},
    "eta_q": {"adversary": ["group_dro"]},
    "alpha": {"adversary": ["cvar"]},
    "max_weight": {"adversary": ["chi_square"], "lam": [_NUMBER]},
    "rho": {"adversary": ["chi_square"], "lam": [_NUMBER]},
    "balance": {"sampling": ["class", "concept"]},
}
"""What a setting is without effect without."""
_NO_LEVELS: Mapping[str, Any] = {"tau": 0.0, "lam": None}
_ERRORS = 3.0


@dataclass(frozen=True)
class Tuning:
    """What a search has found."""

    rows: list[dict[str, Any]]
    """one for each level, as in levels.csv"""
    settings: dict[str, Any]
    """those of :class:`hrrl_ext.HRRLTrainer` that were given, and the level that was chosen"""
    table: str
    """of Markdown, with the rule under it"""


def tune(
    model: str = "resnet18",
    *,
    data: Source,
    out: str | os.PathLike[str],
    concepts: Concepts = None,
    grid: Grid | Sequence[str] | None = None,
    held_out: float = 0.2,
    images: int | None = None,
    root: str | None = None,
    device: str = "auto",
    num_workers: int = 0,
    keep_gib: float = 2.0,
    report: Report = lambda line: None,
    **settings: Any,
) -> Tuning:
    """Chooses levels on held-out images of ``data``, never of a target.

    ::

        found = tune(data="digits", out="runs/tune", grid=["tau=0.03,0.1", "lam=30,10"], epochs=20)
        HRRLTrainer(data="digits", out="runs/hrrl", **found.settings).fit()

    Every value of the grid is tried alone, beside plain training; then the best of each setting together.
    A level's score is the mean of the average accuracy and that of the worst quarter of the concepts on
    the held-out images after the last epoch; the best is chosen, of equal ones that which stands first.
    Only a training that went to its end can be. One that is far behind after a third or two thirds of
    the epochs is stopped: by three standard errors of the best's score, so that chance stops few.

    Args:
        model, data, concepts, root, device, num_workers, keep_gib: as for HRRLTrainer; concepts must be
            known.
        out: folder of the search, which writes levels.md, levels.csv and chosen.yaml (for ``hrrl train
            --config``) there. The same call goes on after any end, to the same table; a larger grid adds
            to it.
        grid: values by setting, the weakest first, as a mapping or as text: "tau=0.01,0.03". Any setting
            of :class:`hrrl_ext.robust.HRRLConfig` that may be a fraction can be searched. ``TAU`` and
            ``BY_ADVERSARY`` if not given.
        held_out: share of each concept that is measured on.
        images: of ``data``, drawn; all if None.
        report: is told of each training in a line.
        **settings: of every training, as for HRRLTrainer; without tau and lam there is neither level
            beside the grid's.
    """
    if not isinstance(model, str):
        raise TypeError(
            f"tune trains a network for each level and needs model by name, got {type(model).__name__}"
        )
    if start_processes(device)[0].size > 1:
        raise ValueError("tune is a search of one process; start it without torchrun")
    if not 0 < held_out < 1:
        raise ValueError(f"tune: held_out must lie between 0 and 1, got {held_out}")
    base = _base(settings)
    grid = read_grid(default_grid(base) if grid is None else grid, base)
    folder = WorkFolder(out, "a search", "tune.json")
    its_root = root if takes_root(data) else None
    whole = load_images(data, split="train", image_size=base.get("image_size"), root=its_root)
    concept, names = resolve_concepts(concepts, whole)
    rows = split_rows(concept, held_out, base.get("seed", 0), images)
    description = {
        "model": model,
        "data": whole.name,
        "images": [len(part) for part in rows],
        "concepts": names,
        "held_out": held_out,
        "settings": base,
    }
    train, held = rows
    options = {
        "model": model,
        "data": whole.subset(train),
        "concepts": concept[train],
        "validation": whole.subset(held),
        "validation_concepts": concept[held],
        "device": device,
        "num_workers": num_workers,
        "keep_gib": keep_gib,
    }
    with folder.held():
        if folder.taken:
            folder.require_same(description)
        else:
            folder.require_free()
            folder.describe(description)
        search = _Search(folder.path, grid, base, options, report)
        search.run()
        return _written(search)


def default_grid(base: Mapping[str, Any]) -> list[str]:
    """Of the lengths and the adversary that there are in ``base``."""
    return [TAU[base["tau"] == "theorem2"], BY_ADVERSARY[base.get("adversary", "hrrl")]]


def read_grid(grid: Grid | Sequence[str], base: Mapping[str, Any]) -> dict[str, list[float]]:
    """Numbers by setting, each of which can stand beside ``base``."""
    if isinstance(grid, str):
        grid = [grid]
    if not isinstance(grid, Mapping):
        pairs = [text.partition("=") for text in grid]
        if names := repeated(name for name, *_ in pairs):
            raise ValueError(f"tune: grid: {names[0]} is given twice")
        grid = {name.strip(): _numbers(name, values) for name, _, values in pairs}
    hints = get_type_hints(HRRLConfig)
    known = [name for name, hint in hints.items() if float in (hint, *get_args(hint))]
    for name, values in grid.items():
        if name not in known:
            raise ValueError(f"tune: grid: setting {not_known(name, known)}")
        if not values or len({*values}) < len(values):
            raise ValueError(f"tune: grid: {name} must list different numbers, got {values}")
        for other, needed in _NEEDS.get(name, {}).items():
            value = base.get(other, getattr(HRRLConfig, other))
            if (_NUMBER if isinstance(value, int | float) else value) not in needed:
                raise ValueError(
                    f"tune: grid: {name} is without effect but for {other}="
                    f"{' or '.join(needed if needed == [_NUMBER] else map(repr, needed))}; give it"
                )
        for value in values:
            where = f"tune: grid: {name}={value:g}"
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{where}: a level is positive; none is tried in any case")
            _check({**base, name: value}, where)
    if not grid:
        raise ValueError(f"tune: grid is empty; give settings with values, such as {TAU[0]}")
    return {name: list(values) for name, values in grid.items()}


def _numbers(name: str, values: str) -> list[float]:
    try:
        return [NUMBER.read(value.strip()) for value in values.split(",")]
    except ValueError:
        raise ValueError(
            f"tune: grid: {name} must list finite numbers, such as {TAU[0]!r}, got {values!r}"
        ) from None


def _base(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of every training: plain, but for what is given."""
    for name in (*OF_TUNE, "levels"):
        if name in settings:
            raise ValueError(f"tune: {name} is set by the search; leave it out")
    base = {**_NO_LEVELS, **settings}
    _check(base, "tune")
    return base


def _check(settings: Mapping[str, Any], where: str) -> None:
    """By the dataclasses that will take them, before any training."""
    of_loop, of_method = by_config(settings, "tune")
    try:
        HRRLConfig(**of_method)
        TrainingConfig(**of_loop)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


# --- the search


class _Search:
    """Trainings of levels: of each a part that is measured at each look, as far as it has come."""

    def __init__(
        self,
        out: Path,
        grid: Grid,
        base: Mapping[str, Any],
        options: Mapping[str, Any],
        report: Report,
    ) -> None:
        self.out, self.grid, self.base, self.options, self.report = out, grid, base, options, report
        epochs = base.get("epochs", TrainingConfig.epochs)
        self.looks = sorted({math.ceil(epochs * share / 3) for share in (1, 2, 3)})
        """epochs after which levels are compared"""
        self.parts: dict[str, list[Part]] = {}
        """by level, as many as it has been looked at"""
        self.levels: dict[str, dict[str, float]] = {}
        """what its name stands for"""

    def run(self) -> None:
        alone = [{}, *({name: v} for name, values in self.grid.items() for v in values)]
        self._race(alone)
        best: dict[str, float] = {}
        for name, values in self.grid.items():
            if (level := self.best([{name: value} for value in values])) is not None:
                best |= self.levels[level]
        if len(best) > 1:
            self._race([best])
        for level in self.levels:
            keep_model_alone(self._folder(level))

    def _race(self, levels: Sequence[dict[str, float]]) -> None:
        """Look by look, so that all are there to be compared; who was behind one whose training fails
        later goes on."""
        names = [_named(level) for level in levels]
        self.levels |= zip(names, levels, strict=True)
        self.parts |= {level: [] for level in names}
        while going := [level for level in names if self._goes_on(level)]:
            looks = min(len(self.parts[level]) for level in going)
            for level in going:
                if len(self.parts[level]) == looks:
                    self.parts[level].append(self._measured(level, self.looks[looks]))

    def best(self, levels: Sequence[dict[str, float]]) -> str | None:
        """Of those that are through; of equal ones the first."""
        scores = {level: self.score(level) for level in map(_named, levels)}
        known = {level: value for level, value in scores.items() if value is not None}
        return max(known, key=known.__getitem__) if known else None

    def score(self, level: str) -> float | None:
        """Of a level that is through."""
        parts = self.parts[level]
        return score(parts[-1:]) if len(parts) == len(self.looks) else None

    def _goes_on(self, level: str) -> bool:
        """Whether it is not through, has not failed and is not too far behind."""
        parts = self.parts[level]
        if not parts:
            return True
        looks = len(parts)
        if looks == len(self.looks) or "failed" in parts[-1]:
            return False
        others = (p for p in self.parts.values() if len(p) >= looks and "failed" not in p[-1])
        best = max((p[looks - 1] for p in others), key=_value)
        return _value(best) - _value(parts[-1]) <= _ERRORS * standard_error(best)

    def _measured(self, level: str, epochs: int) -> Part:
        """After so many epochs; trained to there, where it is not yet."""
        settings = {**self.base, **self.levels[level]}
        parts, name = Parts(self.out / "parts"), f"{level} {epochs}"
        part = parts.read(name, settings, SCORED)
        if part is None:
            folder = self._folder(level)
            part = parts.keep(name, settings, lambda: self._train(folder, settings, epochs))
            found = part.get("failed") or (
                f"average {100 * part['accuracy']:.1f}  "
                f"worst quarter {100 * worst_quarter(part['concept_accuracy']):.1f}"
            )
            self.report(f"{level}, epoch {epochs}: {found}")
        return part

    def _folder(self, level: str) -> Path:
        return self.out / "runs" / file_name(level)

    def _train(self, folder: Path, settings: Mapping[str, Any], epochs: int) -> Part:
        trainer = HRRLTrainer(
            **self.options,
            **settings,
            out=folder,
            resume=goes_on(folder),
            evaluate_every=1,
            progress="off",
        )
        done, worked = len(trainer.history), time.process_time()
        try:
            history = trainer.fit(until=epochs).history
        except FloatingPointError as error:
            return {"failed": str(error)}
        worked = time.process_time() - worked
        if trainer.device.type == "cpu" and len(history) > done:
            seconds = worked / (len(history) - done)
        else:
            seconds = statistics.median(row["seconds"] for row in history)
        row = history[epochs - 1]
        return {
            **{name: row[name] for name in (*MEASURED, "effective_concepts", "largest_weight")},
            "held_out": len(self.options["validation"]),
            "seconds_per_epoch": seconds,
        }


def _value(part: Part) -> float:
    found = score([part])
    return -math.inf if found is None else found


def standard_error(part: Part) -> float:
    """Of the score, as if every held-out image were a coin: average and worst quarter at their worst move
    together."""
    average, count = part["accuracy"], part["held_out"]
    quarter = worst_quarter(part["concept_accuracy"])
    of_average, of_quarter = (
        math.sqrt(p * (1 - p) / n) for p, n in ((average, count), (quarter, count / 4))
    )
    return (of_average + of_quarter) / 2


def _named(level: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in level.items()) or "as given"


# --- what it has found


def _written(search: _Search) -> Tuning:
    chosen = search.best(list(search.levels.values()))
    if chosen is None:
        raise ValueError(
            "tune: every training failed, the one without a level of the grid as well; lower lr, and see "
            f"{search.out / 'parts'} for what happened"
        )
    first = next(iter(search.parts.values()))[-1]
    rows = []
    for level, parts in search.parts.items():
        stopped = "failed" if "failed" in parts[-1] else "stopped"
        what = "" if search.score(level) is not None else stopped
        epochs = search.looks[len(parts) - 1]
        rows.append(
            level_row(level, epochs, parts[-1], first, "chosen" if level == chosen else what)
        )
    settings = {**search.base, **search.levels[chosen]}
    table = levels_table(rows)
    write_csv(search.out / "levels.csv", list(rows[0]), rows, line_end="\n")
    write_text(search.out / "levels.md", table)
    write_json(search.out / "chosen.yaml", settings)  # JSON is YAML
    return Tuning(rows, settings, table)
