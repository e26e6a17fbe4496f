"""Sub-groups that nobody labelled: found by gradient clustering, weighted by the concept level.

    python examples/hidden_groups.py --search                       # K, with two other seeds
    python examples/hidden_groups.py --page docs/results/hidden-groups.md

Odd digits against even ones, in colour: of the odd 95 % are green and of the even 95 % red, so colour
is the easy way to a low training loss. The other 5 % of each class are the hidden groups. In the
validation and the test images half of each class has either colour. The digits are scikit-learn's.
`make demo` shows it in small, and has the images and the network.

ERM, then the concept level (CL, tau = 0) with the true groups as concepts, which are not to be had in
practice; with clusters of the gradients after a short run of ERM; and with the same clusters dealt out
at random, which shows what weighting any groups does. All take the same number of epochs in all. Each
seed takes the lam whose worst group is best on its validation images.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor

from hrrl_ext import DiscoveredConcepts, HRRLTrainer
from hrrl_ext._tables import markdown, with_tables
from hrrl_ext.data import Batches
from hrrl_ext.demo.groups import coloured_digits, found_share, plain_network
from hrrl_ext.evaluation import accuracy
from hrrl_ext.transfer.differences import paired

SEARCH_SEEDS = (100, 101)  # other splits, colours and weights than those of the table
LAM_GRID = (2.0, 8.0, 32.0)
K_GRID = (4, 8, 16)
ERM, TRUE, FOUND, SHUFFLED = WAYS = (
    "ERM", "CL, true groups", "CL, discovered", "CL, discovered, shuffled"
)  # fmt: skip
PAIRS = ((TRUE, ERM), (FOUND, ERM), (SHUFFLED, ERM), (FOUND, SHUFFLED), (FOUND, TRUE))
"""What is compared: a way, and what its differences are to."""


class Experiment:
    """The runs of one seed."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        sets = coloured_digits(seed)
        self.train, self.validation, self.test = sets["train"], sets["validation"], sets["test"]

    def run(self, concepts: Any, lam: float | None, epochs: int, **more: Any) -> HRRLTrainer:
        settings: dict[str, Any] = {
            "data": self.train.images, "validation": self.validation.images,
            "validation_concepts": self.validation.group, "tau": 0.0, "s": 100, "batch_size": 32,
            "lr": 0.05, "crop_padding": 0, "flip": False, "device": "cpu", "progress": "off",
        }  # fmt: skip
        settings |= {"concepts": concepts, "lam": lam, "epochs": epochs, "seed": self.seed} | more
        trainer = HRRLTrainer(plain_network(self.args.width, self.seed), **settings)
        trainer.fit()
        return trainer

    def erm(self) -> HRRLTrainer:
        return self.run(self.train.group, None, self.args.epochs)

    def true_groups(self, lam: float) -> HRRLTrainer:
        return self.run(self.train.group, lam, self.args.epochs)

    def warm_up(self, folder: Path) -> Path:
        """Weights of a few epochs of ERM: colour is learned, what goes against it is not yet."""
        trainer = self.run(self.train.group, None, self.args.warm_up, milestones=[])
        path = folder / f"erm-{self.seed}.safetensors"
        save_model(trainer.model, str(path))
        return path

    def from_warm_up(self, concepts: Any, lam: float, init: Path, **more: Any) -> HRRLTrainer:
        return self.run(concepts, lam, self.args.epochs - self.args.warm_up, init=init, **more)

    def tested(self, trainer: HRRLTrainer) -> dict[str, float]:
        batches = Batches(self.test.images, self.test.group, 256, shuffle=False)
        measured = accuracy(trainer.model, batches, 4)
        return {"accuracy": measured.average, "worst_group": measured.worst_concept}

    def shuffled(self, concept: Tensor) -> Tensor:
        order = torch.randperm(len(concept), generator=torch.Generator().manual_seed(self.seed))
        return concept[order]

    def found(self, concept: Tensor) -> float:
        return found_share(concept, self.train.minority)


def validated(trainer: HRRLTrainer) -> float:
    """Accuracy of the worst group of the validation images, at the end of training."""
    worst: float = trainer.history[-1]["worst_concept_accuracy"]
    return worst


def search(args: argparse.Namespace) -> None:
    """On validation images, mean of the seeds; the K that is best by the worst group is taken."""
    settings = [("true groups", lam) for lam in LAM_GRID]
    settings += [(f"clusters:{k}", lam) for k, lam in itertools.product(K_GRID, LAM_GRID)]
    experiments = [Experiment(args, seed) for seed in SEARCH_SEEDS]
    print("| concepts | lam | accuracy | worst group |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        warm = [experiment.warm_up(Path(folder)) for experiment in experiments]
        for concepts, lam in settings:
            runs = [
                experiment.true_groups(lam)
                if concepts == "true groups"
                else experiment.from_warm_up(concepts, lam, init)
                for experiment, init in zip(experiments, warm, strict=True)
            ]
            average = 100 * statistics.mean(run.history[-1]["accuracy"] for run in runs)
            worst = 100 * statistics.mean(map(validated, runs))
            print(f"| {concepts} | {lam:g} | {average:.1f} | {worst:.1f} |", flush=True)


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per seed and way, measured on the test images at the end of training."""
    rows = []
    for seed in args.seeds:
        experiment = Experiment(args, seed)
        clusters = DiscoveredConcepts(args.clusters)
        with tempfile.TemporaryDirectory() as folder:
            init = experiment.warm_up(Path(folder))
            true = max(map(experiment.true_groups, LAM_GRID), key=validated)
            discovered = max(
                (experiment.from_warm_up(clusters, lam, init) for lam in LAM_GRID), key=validated
            )
            shuffled = experiment.shuffled(discovered.batches.concept)
            # Of these ids there are other ones than groups of the validation images.
            lam = discovered.recipe.config.lam
            chance = experiment.from_warm_up(
                shuffled, lam, init, validation=None, validation_concepts=None
            )
        runs = (experiment.erm(), true, discovered, chance)
        for way, run in zip(WAYS, runs, strict=True):
            found = experiment.found(run.batches.concept) if run in (discovered, chance) else ""
            measured = experiment.tested(run)
            lam = run.recipe.config.lam
            facts = {"way": way, "seed": seed, "lam": "" if lam is None else lam}
            rows.append({**facts, **measured, "found": found})
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In %: mean ± standard deviation over the seeds."""
    lines = ["| way | accuracy | worst group | minorities found |", "| --- | ---: | ---: | ---: |"]
    for way in WAYS:
        cells = [way]
        for name in ("accuracy", "worst_group", "found"):
            values = [100 * row[name] for row in rows if row["way"] == way and row[name] != ""]
            numbers = torch.tensor(values, dtype=torch.float64)
            spread = f" ± {numbers.std():.1f}" if len(values) > 1 else ""
            cells.append(f"{numbers.mean():.1f}{spread}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(rows: list[dict[str, Any]]) -> str:
    """Of the same seed, in points: mean (95 % interval of Student's t; seeds)."""

    def by_seed(way: str, name: str) -> dict[int, float]:
        return {row["seed"]: row[name] for row in rows if row["way"] == way}

    lines = [["difference", "accuracy", "worst group"]]
    for way, base in PAIRS:
        names = ("accuracy", "worst_group")
        found = (paired(by_seed(way, name), by_seed(base, name)) for name in names)
        lines.append([f"{way} − {base}", *("" if one is None else str(one) for one in found)])
    return markdown(lines)


def write_page(rows: list[dict[str, Any]], page: Path) -> None:
    text = with_tables(page, {"accuracy": table(rows), "difference": differences(rows)})
    page.write_text(text, encoding="utf-8")
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    with (out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", action="store_true", help="search K, then stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=30, help="in all, the warm-up included")
    parser.add_argument(
        "--warm-up", type=int, default=3, help="epochs of ERM before the clustering"
    )
    parser.add_argument("--clusters", type=int, default=16, help="K")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    args = parser.parse_args(argv)
    if args.search:
        search(args)
        return
    rows = compare(args)
    print(f"\n{table(rows)}\n\n{differences(rows)}")
    if args.page is not None:
        write_page(rows, args.page)


if __name__ == "__main__":
    main()
