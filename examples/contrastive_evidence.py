"""Robust views in contrastive pretraining: the tables of URRL, in small.

    python examples/contrastive_evidence.py DATA --out runs/urrl
    python examples/contrastive_evidence.py DATA --out runs/urrl --page docs/results/contrastive.md
    python examples/contrastive_evidence.py DATA --out runs/look --seeds 1 --parts 1 --epochs 1

DATA is a folder with NumPy archives (image uint8, label, class_names; see docs/data.md):
cifar100-train-{0..3}of4, cifar100-test, cifar10-train and cifar10-test.

A trial is a file in --out: the same command goes on after any end, also within a pretraining, and several
processes may run on one --out; --page writes what is there, and trains nothing. Of a seed come first the
main comparison's pretrainings on CIFAR-100; then fine-tuning on a little of CIFAR-10 from MoCo and URRL,
with the grid of appendix A; then the other pretrainings. Elsewhere trials go on by tools/records.py, but
fine-tuning needs the network that it starts from: a seed is best ended where it was begun.

Settings are those of MoCo's notebook for CIFAR, but for the width, and are searched for no method. Of one
seed all methods have the same images and first weights, and views of one family the same draws.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from contrastive_page import PRETRAINED, STARTS, Row, write_page

from hrrl_ext import URRLTrainer, evaluate, finetune, load_model
from hrrl_ext.data import ImageSet, load_images
from hrrl_ext.transfer.study.config import file_name
from hrrl_ext.transfer.study.parts import Part, Parts
from hrrl_ext.transfer.study.queue import claimed

NOTEBOOK: dict[str, Any] = {
    "lr": 0.06, "weight_decay": 5e-4, "queue": 4096, "key_momentum": 0.99,
    "temperature": 0.1, "blur": 0.0, "precision": "bf16", "channels_last": True, "device": "cpu",
    "progress": "off",
}  # fmt: skip
TUNED: dict[str, Any] = {
    "plain": "plain",
    "L2-SP": "l2sp:alpha=0.01,beta=0.01",
    "similarity": "similarity:w_sim=1",
}
GRID = {
    f"L2-SP {alpha:g}, {beta:g}": f"l2sp:alpha={alpha:g},beta={beta:g}"
    for beta in (0.001, 0.01)
    for alpha in (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
}

Trial = tuple[str, str, str, int]
"""kind ("pretrained" or "tuned"), its start, what is done, seed"""


# --- a trial


def pretrained(args: argparse.Namespace, name: str, seed: int) -> Part:
    """A pretraining, from where it was stopped, and what its network comes to on CIFAR-100: by its online
    probe, a linear layer that no feature feels."""
    out, settings = run_folder(args, name, seed), pretraining(args, name) | {"seed": seed}
    train = [args.data / f"cifar100-train-{i}of4.npz" for i in range(args.parts)]
    test = load_images(args.data / "cifar100-test.npz")
    resume = (out / "config.json").exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fresh = URRLTrainer(data=train, validation=test, **settings)
        untrained = fresh.recipe.evaluate(fresh.encoder)
        trainer = URRLTrainer(data=train, validation=test, out=out, resume=resume, **settings)
        history = trainer.fit().history
    told = sorted({str(w.message).split(":")[0] for w in caught if w.category is UserWarning})
    curve = {name: [row[name] for row in history] for name in ("loss", "spread", "knn_accuracy")}
    measured = measures(args, out, test)
    return {
        "untrained": untrained,
        "rank_me": history[-1]["rank_me"],
        "told": told,
        **curve,
        **measured,
    }


def tuned(args: argparse.Namespace, start: str, method: str, seed: int) -> Part:
    """Another task from a pretrained network."""
    train = few(load_images(args.data / "cifar10-train.npz"), args.images)
    test = load_images(args.data / "cifar10-test.npz")
    out = args.out / "tuned" / file_name(f"{start} {method} {seed}")
    finetune(
        run_folder(args, start, seed), train, method=(TUNED | GRID)[method], validation=test, out=out,
        resume=(out / "config.json").exists(), epochs=args.tuning_epochs, seed=seed, batch_size=64,
        precision="bf16", channels_last=True, device="cpu", progress="off",
    )  # fmt: skip
    return measures(args, out, test, attacks=("l2:0.5",))


def measures(
    args: argparse.Namespace, run: Path, test: ImageSet, attacks: Sequence[str] = ()
) -> Part:
    """On the same drawn test images for all: accuracy, mean corruption error, RMS calibration error of
    clean images and of corrupted ones, and robust accuracy."""
    report = evaluate(
        load_model(run), test, attacks=attacks, points=args.points, attack_points=args.attack_points,
        corruption_points=args.corruption_points, steps=(0.0,),
    )  # fmt: skip
    assert report.corruptions is not None
    kinds = [kind["rms"] for kind in report.corruptions["kinds"] if not kind["extra"]]
    found = {
        "accuracy": report.accuracy["accuracy"],
        "corruption_error": report.corruptions["mean_error"],
        "rms": report.calibration["rms"],
        "corrupted_rms": sum(kinds) / len(kinds),
    }
    if report.attacks:
        found["robust"] = report.attacks[0]["accuracy"]
    return found


def few(images: ImageSet, count: int) -> ImageSet:
    """The first of each class, in the order of the set."""
    each = -(-count // images.num_classes)
    rows = [(images.target == c).nonzero().flatten()[:each] for c in range(images.num_classes)]
    return images.subset([int(row) for of in rows for row in of])


def pretraining(args: argparse.Namespace, name: str) -> dict[str, Any]:
    shared = {"epochs": args.epochs, "width": args.width, "batch_size": args.batch_size}
    return NOTEBOOK | shared | dict(PRETRAINED[name])


def run_folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    folder: Path = args.out / "pretrained" / file_name(f"{name} {seed}")
    return folder


# --- all of them


def trials(args: argparse.Namespace) -> Iterator[Trial]:
    main, further = list(PRETRAINED)[:5], list(PRETRAINED)[5:]
    for seed in range(args.seeds):
        yield from (("pretrained", "", name, seed) for name in main)
        yield from (("tuned", start, method, seed) for start in STARTS for method in TUNED)
        yield from (("tuned", "MoCo", method, seed) for method in GRID)
        yield from (("pretrained", "", name, seed) for name in further)


def described(args: argparse.Namespace, trial: Trial) -> tuple[Parts, dict[str, Any]]:
    """Where its part is, and what it must be of."""
    kind, start, name, seed = trial
    of: dict[str, Any] = {
        "kind": kind, "start": start, "name": name, "seed": seed, "parts": args.parts,
        "training": pretraining(args, start or name), "corruption_points": args.corruption_points,
        "points": args.points,
    }  # fmt: skip
    if kind == "tuned":
        of |= {"method": (TUNED | GRID)[name], "images": args.images, "epochs": args.tuning_epochs}
        of |= {"attack_points": args.attack_points}
    return Parts(args.out / "trials" / file_name(f"{kind} {start} {name} {seed}")), of


def work(args: argparse.Namespace) -> None:
    for trial in trials(args):
        _, start, name, seed = trial
        parts, of = described(args, trial)
        if parts.read("part", of) is not None:
            continue
        if start:
            begun, its = described(args, ("pretrained", "", start, seed))
            if begun.read("part", its) is None or not run_folder(args, start, seed).exists():
                continue  # not yet, by another process (the command comes to it); or elsewhere
            make = partial(tuned, args, start, name, seed)
        else:
            make = partial(pretrained, args, name, seed)
        with claimed(parts.folder) as mine:
            if not mine:
                continue
            part = parts.keep("part", of, make)  # unless it is there by now
        shown = f"{start} {name}, seed {seed}: {100 * part['accuracy']:.1f} %".strip()
        print(f"{shown}  {part['processor_seconds']:.0f} s", flush=True)


def rows(args: argparse.Namespace) -> list[Row]:
    found: list[Row] = []
    for trial in trials(args):
        parts, of = described(args, trial)
        if (part := parts.read("part", of)) is not None:
            found.append(part | of)
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and trials")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=4, help="quarters of CIFAR-100 to train on")
    parser.add_argument("--epochs", type=int, default=15, help="of pretraining")
    parser.add_argument("--batch-size", type=int, default=512, help="of pretraining")
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-18's own")
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10 to fine-tune on")
    parser.add_argument("--tuning-epochs", type=int, default=10)
    parser.add_argument("--points", type=int, default=5000, help="test images to measure on")
    parser.add_argument("--corruption-points", type=int, default=1000)
    parser.add_argument("--attack-points", type=int, default=500)
    parser.add_argument("--page", type=Path, help="write this Markdown page, train nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.page is None:
        work(args)
    else:
        write_page(rows(args), args.page, len(list(trials(args))))


if __name__ == "__main__":
    main()
