"""A small replica of the paper's Tables 2 to 4, with CIFAR-100 in ImageNet's place, and two baselines.

    python examples/transfer_cifar100.py DATA --out runs/cifar100 --search      # of the levels
    python examples/transfer_cifar100.py DATA --out runs/cifar100 --tau T --lam L --alpha A \\
        --seeds 0 1 2 --page docs/results/cifar100.md
    python examples/transfer_cifar100.py --page docs/results/cifar100.md   # of its trials alone

--page puts the tables between the page's marks, and the trials and pictures into the folder beside it.
Without DATA nothing is trained: the tables of accuracy come from the trials that are there.

DATA is a folder with NumPy archives (image uint8, label, class_names; see docs/data.md):
cifar100-train-{0..3}of4, cifar100-test, cifar10-*, grocery-* and fashion-mnist-*.

Features are learned on CIFAR-100 with its 20 super-classes as concepts, then probed by a linear SVM on
CIFAR-10 (similar concepts), CIFAR-10 at half the resolution (other images), Grocery (other concepts) and
Fashion-MNIST (both). The search sees training images of CIFAR-100 only: a fifth of them is held out.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

import torch

from hrrl_ext import HRRLTrainer
from hrrl_ext._tables import with_tables
from hrrl_ext.data import ArrayImages, ImageSet, load_images, lower_resolution
from hrrl_ext.plots import plot_histories
from hrrl_ext.transfer import Target, TransferTable, transfer_table
from hrrl_ext.transfer.table import BASELINES, VARIANTS, Trial

BASE = "ERM"
OF_SOURCE = ("accuracy", "worst_concept_accuracy")
OF_Q = ("effective_concepts", "largest_weight")
SIZE = 32
TAU_GRID = (0.003, 0.01, 0.03, 0.1, 0.3)
LAM_GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
ETA_Q_GRID = (0.001, 0.01, 0.1)
ALPHA_GRID = (0.2, 0.5, 0.7, 0.9)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "data", type=Path, nargs="?", help="without it --page is of the trials it has"
    )
    parser.add_argument("--out", type=Path, help="folder of the trainings")
    parser.add_argument("--search", action="store_true", help="search the levels, then stop")
    parser.add_argument("--tau", type=float)
    parser.add_argument("--lam", type=float)
    parser.add_argument("--eta-q", type=float, default=0.01, help="of Group DRO")
    parser.add_argument("--alpha", type=float, default=0.5, help="of CVaR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", type=int, default=2, help="quarters of CIFAR-100 to train on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-18's own")
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    args = parser.parse_args(argv)
    if args.data is None:
        if args.page is None:
            parser.error(
                "without DATA there is nothing to train on; give it, or a --page with trials"
            )
        tables = accuracies(read_trials(args.page))
        args.page.write_text(with_tables(args.page, tables), encoding="utf-8")
        return
    if args.out is None:
        parser.error("DATA is to train on, and the trainings need a folder: give --out")
    config = {
        "epochs": args.epochs,
        "batch_size": 64,
        "lr": 0.05,
        "width": args.width,
        "precision": "bf16",
        "channels_last": True,
    }
    parts = [args.data / f"cifar100-train-{i}of4.npz" for i in range(args.parts)]
    train = load_images(parts)
    if args.search:
        search(train, config)
        return
    table = transfer_table(
        train,
        validation=args.data / "cifar100-test.npz",
        targets=list(open_targets(args.data)),
        tau=args.tau,
        lam=args.lam,
        variants=VARIANTS + BASELINES,
        eta_q=args.eta_q,
        alpha=args.alpha,
        seeds=args.seeds,
        out=args.out,
        report=lambda line: print(line, flush=True),
        **config,
    )
    print(f"\n{table}")
    (args.out / "table.md").write_text(table.to_markdown() + "\n")
    plot(table, args.out)
    if args.page is not None:
        write_page(table, args.page)


def plot(table: TransferTable, out: Path) -> None:
    """The runs of the first seed."""
    seed = min(trial.seed for trial in table.trials)
    plot_histories({t.variant: t.history for t in table.trials if t.seed == seed}, out)


def write_page(table: TransferTable, page: Path) -> None:
    text = with_tables(page, {**accuracies(table), "seconds": seconds(table)})
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    plot(table, out)
    with (out / "trials.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["variant", "seed", *table.columns, *OF_Q])
        for t in table.trials:
            measured = [(t.source | t.targets)[c] for c in table.columns]
            q = [f"{t.history[-1][name]:.2f}" for name in OF_Q]
            writer.writerow([t.variant, t.seed, *measured, *q])
    page.write_text(text, encoding="utf-8")


def read_trials(page: Path) -> TransferTable:
    """What ``write_page`` left in the folder beside the page: without the course of the trainings."""
    trials = []
    with (page.with_suffix("") / "trials.csv").open(newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            variant, seed = row.pop("variant"), int(row.pop("seed"))
            source = {name: float(row.pop(name)) for name in OF_SOURCE}
            targets = {name: float(value) for name, value in row.items() if name not in OF_Q}
            trials.append(Trial(variant, seed, source, targets, []))
    return TransferTable(trials)


def accuracies(table: TransferTable) -> dict[str, str]:
    """The tables that need no more than the trials."""
    return {"accuracy": table.to_markdown(), "difference": table.to_markdown(BASE)}


def seconds(table: TransferTable) -> str:
    """What training took, as one cell per variant."""
    total = {
        variant: [
            sum(row["seconds"] for row in t.history) for t in table.trials if t.variant == variant
        ]
        for variant in table.variants
    }
    lines = [["training, s", *total], ["---"] + ["---:"] * len(total)]
    lines.append(["median", *(f"{statistics.median(values):.0f}" for values in total.values())])
    lines.append(["range", *(f"{min(v):.0f} to {max(v):.0f}" for v in total.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def search(train: ImageSet, config: dict[str, Any]) -> None:
    """Held-out accuracy of EL over tau, CL over lam, Group DRO over eta_q, CVaR over alpha; one seed."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held, kept = order[: len(train) // 5], order[len(train) // 5 :]
    levels: list[dict[str, Any]] = [
        {"tau": 0.0, "lam": None},
        *({"tau": tau, "lam": None} for tau in TAU_GRID),
        *({"tau": 0.0, "lam": lam} for lam in LAM_GRID),
        *({"tau": 0.0, "adversary": "group_dro", "eta_q": eta_q} for eta_q in ETA_Q_GRID),
        *({"tau": 0.0, "adversary": "cvar", "alpha": alpha} for alpha in ALPHA_GRID),
    ]
    print("| level | accuracy | worst concept | effective concepts | largest weight |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for level in levels:
        last = (
            HRRLTrainer(
                data=train.subset(kept),
                validation=train.subset(held),
                progress="off",
                **(config | level),
            )
            .fit()
            .last
        )
        shown = " ".join(f"{k}={v}" for k, v in level.items() if v not in (0.0, None)) or "ERM"
        print(
            f"| {shown} | {100 * last['accuracy']:.1f} | "
            f"{100 * last['worst_concept_accuracy']:.1f} | {last['effective_concepts']:.1f} | "
            f"{last['largest_weight']:.1f} |",
            flush=True,
        )


def open_targets(data: Path) -> list[Target]:
    def both(name: str) -> tuple[ArrayImages, ArrayImages]:
        train = load_images(data / f"{name}-train.npz", image_size=SIZE)
        test = load_images(data / f"{name}-test.npz", image_size=SIZE)
        assert isinstance(train, ArrayImages) and isinstance(test, ArrayImages)  # as of any archive
        return train.subset(range(min(len(train), 10_000))), test

    cifar_train, cifar_test = both("cifar10")
    halved = lower_resolution(cifar_train), lower_resolution(cifar_test)
    return [
        Target("CIFAR-10", cifar_train, cifar_test),
        Target("CIFAR-10, half resolution", *halved),
        Target("Grocery", *both("grocery")),
        Target("Fashion-MNIST", *both("fashion-mnist")),
    ]


if __name__ == "__main__":
    main()
