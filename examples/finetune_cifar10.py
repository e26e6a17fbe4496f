"""A small replica of the paper's Figure 3: networks of CIFAR-100, fine-tuned on a little of CIFAR-10.

    python examples/finetune_cifar10.py DATA --out runs/finetune --search     # of alpha and w_sim
    python examples/finetune_cifar10.py DATA --out runs/finetune --alpha A --w-sim W

DATA is a folder with NumPy archives (image uint8, label, class_names; see docs/data.md):
cifar100-train-{0..3}of4, cifar100-test, cifar10-train and cifar10-test.

ERM, EL, CL and HRRL are trained on CIFAR-100 as in transfer_cifar100.py, or lie in --sources, a folder
of runs of these names. Each is fine-tuned with each seed, plainly, by L2-SP and by similarity. A run
that was stopped goes on where it was, and one that is through is not made again.

Writes errors.csv (every epoch of every run), table.md (last epoch: CIFAR-10, and CIFAR-10 at half the
resolution) and error.png (the first seed). The search sees training images of CIFAR-10 alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from hrrl_ext import HRRLTrainer, extract_features, finetune, load_model
from hrrl_ext.data import ArrayImages, ImageSet, load_images, lower_resolution
from hrrl_ext.plots import plot_errors, read_history
from hrrl_ext.transfer.table import VARIANTS, variant_config

ALPHA_GRID = (0.001, 0.01, 0.1, 1.0)
W_SIM_GRID = (0.1, 0.3, 1.0, 3.0)
SETTINGS: dict[str, Any] = {"batch_size": 64, "precision": "bf16", "channels_last": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--search", action="store_true", help="search alpha and w_sim, then stop")
    parser.add_argument("--alpha", type=float, default=0.01, help="of L2-SP")
    parser.add_argument("--w-sim", type=float, default=1.0, help="of similarity")
    parser.add_argument("--sources", type=Path, help="folder with runs ERM, EL, CL and HRRL")
    parser.add_argument("--parts", type=int, default=1, help="quarters of CIFAR-100 to train on")
    parser.add_argument("--source-epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-18's own")
    parser.add_argument("--images", type=int, default=1000, help="of CIFAR-10 to fine-tune on")
    parser.add_argument("--test-images", type=int, default=2000, help="to measure the error on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    methods = {
        "plain": "plain",
        "L2-SP": f"l2sp:alpha={args.alpha}",
        "similarity": f"similarity:w_sim={args.w_sim}",
    }
    train = subset(load_images(args.data / "cifar10-train.npz"), args.images)
    if args.search:
        search(train, source("ERM", args), args)
        return
    test = subset(load_images(args.data / "cifar10-test.npz"), args.test_images)
    assert isinstance(test, ArrayImages)
    lowered = lower_resolution(test)
    histories: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    shifted: dict[tuple[str, str, int], float] = {}
    for variant in VARIANTS:
        start = source(variant, args)
        for method, settings in methods.items():
            for seed in args.seeds:
                run, out = (variant, method, seed), args.out / f"{variant}-{method}-{seed}"
                if not (out / "results.json").exists():
                    print(f"{variant}, {method}, seed {seed}", flush=True)
                    finetuned(start, train, settings, args, seed, validation=test, out=out)
                histories[run] = read_history(out / "metrics.jsonl")
                shifted[run] = error(out, lowered)
    write(histories, shifted, args.out, args.seeds)


def subset(images: ImageSet, count: int) -> ImageSet:
    """The same number of each class, or one more, in an order of its own."""
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rank = torch.empty_like(shuffled)  # of each image within its class
    for c in range(images.num_classes):
        members = shuffled[images.target[shuffled] == c]
        rank[members] = torch.arange(len(members)) * images.num_classes + c
    return images.subset(rank.argsort()[:count])


def source(variant: str, args: argparse.Namespace) -> Path:
    """The folder of a run on CIFAR-100, which is trained if it is not there."""
    folder: Path = (args.sources or args.out / "sources") / variant
    if args.sources is None and not (folder / "results.json").exists():
        print(f"{variant} on CIFAR-100", flush=True)
        HRRLTrainer(
            data=[args.data / f"cifar100-train-{i}of4.npz" for i in range(args.parts)],
            validation=args.data / "cifar100-test.npz",
            out=folder,
            resume=(folder / "config.json").exists(),
            epochs=args.source_epochs,
            lr=0.05,
            width=args.width,
            **variant_config(variant, tau=0.03, lam=10.0),
            **SETTINGS,
        ).fit()
    return folder


def finetuned(
    start: Path, train: ImageSet, method: str, args: argparse.Namespace, seed: int, **options: Any
) -> list[dict[str, Any]]:
    out = options.get("out")
    resume = out is not None and (out / "config.json").exists()
    settings = SETTINGS | {"epochs": args.epochs, "seed": seed, "resume": resume} | options
    return finetune(start, train, method=method, **settings).history


def error(run: Path, images: ImageSet) -> float:
    logits, target = extract_features(load_model(run), images, layer="fc")
    return (logits.argmax(1) != target).float().mean().item()


def search(train: ImageSet, start: Path, args: argparse.Namespace) -> None:
    """Held-out error after the last epoch, from ERM, one seed."""
    held, kept = range(len(train) // 5), range(len(train) // 5, len(train))
    methods = [
        "plain",
        *(f"l2sp:alpha={alpha}" for alpha in ALPHA_GRID),
        *(f"similarity:w_sim={w_sim}" for w_sim in W_SIM_GRID),
    ]
    print("| method | error | training loss | penalty |\n| --- | ---: | ---: | ---: |")
    for method in methods:
        options = {"validation": train.subset(held), "progress": "off"}
        last = finetuned(start, train.subset(kept), method, args, 0, **options)[-1]
        print(
            f"| {method} | {100 * (1 - last['accuracy']):.1f} | {last['loss']:.3f} | "
            f"{last.get('penalty', 0):.3f} |",
            flush=True,
        )


def write(
    histories: dict[tuple[str, str, int], list[dict[str, Any]]],
    shifted: dict[tuple[str, str, int], float],
    out: Path,
    seeds: list[int],
) -> None:
    with (out / "errors.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["source", "method", "seed", "epoch", "error", "train_accuracy", "seconds"])
        for run, rows in histories.items():
            for row in rows:
                numbers = [1 - row["accuracy"], row["train_accuracy"], row["seconds"]]
                writer.writerow([*run, row["epoch"], *(f"{n:.4f}" for n in numbers)])
    methods = list(dict.fromkeys(method for _, method, _ in histories))
    last = {run: 1 - rows[-1]["accuracy"] for run, rows in histories.items()}
    columns = [(m, name, of) for m in methods for name, of in (("", last), (", half", shifted))]
    lines = [["error, %", *(m + name for m, name, _ in columns)], ["---"] + ["---:"] * len(columns)]
    for variant in VARIANTS:
        cells = [cell([of[variant, m, seed] for seed in seeds]) for m, _, of in columns]
        lines.append([variant, *cells])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(f"\n{table}")
    (out / "table.md").write_text(table + "\n", encoding="utf-8")
    panels = {m: {v: histories[v, m, seeds[0]] for v in VARIANTS} for m in methods}
    plot_errors(panels, out / "error.png")


def cell(values: list[float]) -> str:
    """Mean in per cent, and standard deviation where there are several."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if math.isnan(spread) else f"{mean} ± {100 * spread:.1f}"


if __name__ == "__main__":
    main()
