"""Levels on digits, paired by seed: the tables of docs/tuning.md.

    python examples/levels_on_digits.py --out runs/levels --page docs/tuning.md

chi-square has classes of all sizes as concepts, under the paper's penalty and the chi-square distance;
auto has all images, with given lengths and with levels that set themselves. Each training is a file in
--out: the same command goes on after any end, and several may run on one --out.

The seed draws which class has which size, which images stay, and the first weights. All that the tables
say is measured on the test images. What is "chosen" in a seed is so by trainings of the same seed on four
fifths of each class: of several levels that with the best score on the other fifth, as by `hrrl tune`.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cheap_directions_page import Rows, differences, mean_of, of_way, ways
from result_page import processor

from hrrl_ext import HRRLTrainer
from hrrl_ext._tables import markdown, one_line, with_tables
from hrrl_ext.data import Batches, ImageSet, imbalance, load_images
from hrrl_ext.evaluation import accuracy
from hrrl_ext.storage import write_text
from hrrl_ext.transfer.study.config import file_name
from hrrl_ext.transfer.study.images import split_rows
from hrrl_ext.transfer.study.levels import score
from hrrl_ext.transfer.study.parts import Part, Parts
from hrrl_ext.transfer.study.queue import claimed

CLASSES = 10
ACCURACIES = ("accuracy", "worst concept", "score")
SCORES = (*ACCURACIES, "held-out score")
NOT_SEARCHED = {"chosen": "", "held-out score": ""}
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """The trainings of a table."""

    least: float
    """share that is kept of the smallest class, the others' in even steps up to 1"""
    training: Settings
    levels: Mapping[str, Settings]
    """by the name in the table; horizon, which the trainer sets itself, is of ChiSquare"""
    chosen: Mapping[str, Sequence[str]]
    """names of the best of several levels on the held-out images; with the first all are compared"""
    others: Sequence[str]
    """columns beside the accuracies"""


def _chi_square(lam: float, **more: Any) -> dict[str, Any]:
    return {"tau": 0.0, "adversary": "chi_square", "lam": lam, **more}


def _plain(tau: float | str) -> dict[str, Any]:
    return {"tau": tau, "lam": None}


_OF_BOTH = {"lr": 0.05, "schedule": "cosine", "width": 8, "crop_padding": 1, "flip": False}
_LAM = {f"lam={lam:g}": {"tau": 0.0, "lam": lam} for lam in (10.0, 5.0, 1.0)}
_CHI_SQUARE = {f"chi_square lam={lam:g}": _chi_square(lam) for lam in (1.0, 0.3, 0.1, 0.03)}
_TAU = {f"tau={tau:g}": _plain(tau) for tau in (0.03, 0.1, 0.3)}

EXPERIMENTS = {
    "chi-square": Experiment(
        least=0.06,
        training={**_OF_BOTH, "epochs": 12, "batch_size": 64},
        levels={
            "ERM": _plain(0.0),
            **_LAM,
            **_CHI_SQUARE,
            "chi_square lam=0": _chi_square(0.0),
            "chi_square lam=0.3 rho=0.5": _chi_square(0.3, rho=0.5),
            "chi_square lam=0 rho=0.5 max_weight=None": _chi_square(0.0, rho=0.5, max_weight=None),
            **{
                f"chi_square lam=0.3, horizon {steps}": _chi_square(0.3, horizon=steps)
                for steps in (48, 12, 3)
            },
        },
        chosen={"lam chosen": list(_LAM), "chi_square lam chosen": list(_CHI_SQUARE)},
        others=["largest weight", "warned"],
    ),
    "auto": Experiment(
        least=1.0,
        training={
            **_OF_BOTH,
            "epochs": 15,
            "batch_size": 32,
            "warmup": 1,
            "weight_decay": 5e-4,
            "optimizer_options": {"nesterov": True},
            "precision": "bf16",
            "channels_last": True,
        },
        levels={
            "ERM": _plain(0.0),
            **_TAU,
            "tau=theorem2": _plain("theorem2"),
            "levels=auto": {"levels": "auto"},
        },
        chosen={"tau chosen": list(_TAU)},
        others=["length at first", "length at last"],
    ),
}


# --- a trial


def source(experiment: Experiment, seed: int) -> ImageSet:
    digits = load_images("digits", split="train")
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
    shares = torch.linspace(1, experiment.least, CLASSES)[order].tolist()
    return imbalance(digits, digits.target, shares, seed)


def fitted(
    experiment: Experiment, level: str, seed: int, images: ImageSet, **more: Any
) -> HRRLTrainer:
    settings = {**experiment.training, **experiment.levels[level], "seed": seed}
    horizon = settings.pop("horizon", None)
    trainer = HRRLTrainer(
        data=images, concepts="classes", evaluate_every=settings["epochs"], device="cpu",
        progress="off", **settings, **more,
    )  # fmt: skip
    if horizon is not None:
        trainer.objective.distribution.horizon = horizon
    trainer.fit()
    return trainer


def search(experiment: Experiment, level: str, seed: int) -> Part:
    """Its score on a fifth of each class, which it was not trained on."""
    images = source(experiment, seed)
    rows, held = split_rows(images.target, 0.2, seed)
    validation = {"validation": images.subset(held), "validation_concepts": images.target[held]}
    trainer = fitted(experiment, level, seed, images.subset(rows), **validation)
    return {"held-out score": score(trainer.history[-1:])}


def trial(experiment: Experiment, level: str, seed: int) -> Part:
    """What it comes to on the test images."""
    images = source(experiment, seed)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = fitted(experiment, level, seed, images)
    test = load_images("digits", split="test")
    found = accuracy(trainer.model, Batches(test, test.target, 256, shuffle=False), CLASSES)
    by_class = dict(enumerate(found.concept.tolist()))
    first, last, tau = trainer.history[0], trainer.history[-1], trainer.recipe.config.tau
    return {
        "images": len(images),
        "smallest": int(images.target.bincount().min()),
        "optimiser steps": experiment.training["epochs"] * len(trainer.batches),
        "accuracy": found.average,
        "worst concept": found.worst_concept,
        "score": score([{"accuracy": found.average, "concept_accuracy": by_class}]),
        "largest weight": last["largest_weight"],
        "warned": any("the concepts' losses asks for" in str(one.message) for one in told),
        "length at first": first.get("mean_tau", tau),
        "length at last": last.get("mean_tau", tau),
    }


# --- all of them


def jobs(args: argparse.Namespace, table: str) -> Iterator[tuple[str, str, int, Parts, Settings]]:
    """(search or trial, level, seed, its folder, what it is of).

    Seed by seed: after each, all levels can be compared.
    """
    experiment = EXPERIMENTS[table]
    searched = {level for levels in experiment.chosen.values() for level in levels}
    for seed in args.seeds:
        for level, settings in experiment.levels.items():
            of = {"level": level, "seed": seed, "least": experiment.least}
            of["settings"] = {**experiment.training, **settings}
            parts = Parts(args.out / table / f"{file_name(level)}_{seed}")
            for kind in ("search", "trial") if level in searched else ("trial",):
                yield kind, level, seed, parts, of


def work(args: argparse.Namespace, table: str) -> None:
    experiment, make = EXPERIMENTS[table], {"search": search, "trial": trial}
    for kind, level, seed, parts, of in jobs(args, table):
        if parts.read(kind, of) is not None:
            continue
        with claimed(parts.folder) as mine:
            if not mine or parts.read(kind, of) is not None:  # another's, or by now
                continue
            part = parts.keep(kind, of, lambda: make[kind](experiment, level, seed))  # noqa: B023
            shown = "  ".join(f"{k} {100 * v:.1f}" for k, v in part.items() if k in SCORES)
            print(f"{table}: {level}, seed {seed}: {shown}", flush=True)


def rows_of(args: argparse.Namespace, table: str) -> list[dict[str, Any]]:
    """A row for each trial that is through, and those of what is chosen among them."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for kind, level, seed, parts, of in jobs(args, table):
        if (part := parts.read(kind, of)) is not None:
            row = rows.setdefault((level, seed), {"way": level, "seed": seed} | NOT_SEARCHED)
            row |= {k: v for k, v in part.items() if k not in ("of", "seconds")}
    found = [row for row in rows.values() if "accuracy" in row]
    return [*found, *chosen_of(found, EXPERIMENTS[table])]


def chosen_of(rows: Rows, experiment: Experiment) -> list[dict[str, Any]]:
    """Of the seeds of which all levels that are chosen from are through."""
    found = []
    for name, levels in experiment.chosen.items():
        for seed in sorted({row["seed"] for row in rows}):
            of_seed = [row for row in rows if row["seed"] == seed and row["way"] in levels]
            if len(of_seed) == len(levels):
                best = max(of_seed, key=lambda row: row["held-out score"])
                found.append({**best, "way": name, "chosen": best["way"]})
    return found


# --- the page


def means(rows: Rows, others: Sequence[str]) -> str:
    """In %: mean ± standard deviation over the seeds."""
    lines = [["setting", "seeds", *ACCURACIES, *others]]
    for way in ways(rows):
        cells = [way, str(len(of_way(rows, way, "accuracy")))]
        cells += [mean_of(of_way(rows, way, name).values()) for name in ACCURACIES]
        for name in others:
            values = list(of_way(rows, way, name).values())
            if name == "warned":
                cells.append(f"{sum(values)} of {len(values)}")
            else:
                cells.append(f"{statistics.fmean(values):.2g}")
        lines.append(cells)
    return markdown(lines)


def tables_of(args: argparse.Namespace, table: str, rows: Rows) -> dict[str, str]:
    """By the name of their marks."""
    experiment = EXPERIMENTS[table]
    images, least, steps = (
        _range({row[name] for row in rows}) for name in ("images", "smallest", "optimiser steps")
    )
    state = (
        f"{sum(not row['chosen'] for row in rows)} of {len(experiment.levels) * len(args.seeds)} trials "
        f"are through: {steps} steps on {images} images, the smallest class of {least}. {processor()}."
    )
    alone = [{name: row[name] for name in ("way", "seed", *ACCURACIES)} for row in rows]
    bases = "ERM", next(iter(experiment.chosen))
    against = {f"{table} against {base}": differences(alone, base) for base in bases}
    return {f"{table} state": one_line(state), table: means(rows, experiment.others)} | against


def _range(values: Set[int]) -> str:
    return " to ".join(str(v) for v in dict.fromkeys((min(values), max(values))))


def write_page(args: argparse.Namespace, table: str) -> None:
    """Its tables, and the trials as they are beside the results."""
    rows = rows_of(args, table)
    if not rows:
        raise ValueError(f"{args.page}: no trial of {table} is through yet; nothing to write")
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out = args.page.parent / "results" / "levels"
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{table}.csv", text.getvalue())
    write_text(args.page, with_tables(args.page, tables_of(args, table, rows)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--tables", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    args = parser.parse_args(argv)
    for table in args.tables:
        work(args, table)
        if args.page is not None:
            write_page(args, table)


if __name__ == "__main__":
    main()
