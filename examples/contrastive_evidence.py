"""Robust views in contrastive pretraining: the tables of URRL, in small.

    python examples/contrastive_evidence.py DATA --out runs/urrl
    python examples/contrastive_evidence.py DATA --out runs/urrl --page docs/results/contrastive.md
    python examples/contrastive_evidence.py DATA --out runs/look --seeds 1 --parts 1 --epochs 1

DATA is a folder with NumPy archives (image uint8, label, class_names; see docs/data.md):
cifar100-train-{0..3}of4, cifar100-test, cifar10-train and cifar10-test.

A trial is a training, and what is measured of it; each is a file in --out. The same command goes on after
any end, also within a training, and several processes may run on one --out, best with one thread each;
--page writes what is there, and trains nothing. Of a seed come first the pretrainings of Table 1, on
CIFAR-100; then fine-tuning on a little of CIFAR-10 from MoCo and URRL, with the grid of appendix A; then
the other pretrainings. Elsewhere trials go on by tools/records.py, but to measure and to fine-tune takes
the network, which stays in --out: a seed is best ended where it was begun.

Pretraining is measured as in the paper: a linear classifier, learned by SGD on frozen features of clean
training images, on clean and corrupted test images. Settings are those of MoCo's notebook for CIFAR, but
for the width, the batch, crops from 0.2 of the area on (there 0.08) and a head of two layers (there one),
and are searched for no method. How strongly fine-tuning holds its start is chosen from MoCo's network, by
accuracy on images of CIFAR-10's training set that are not trained on; from URRL's of the same seed it is
what was chosen there. Of one seed all methods have the same images and first weights, and views of one
family the same draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from contrastive_page import LEVELS, PLAIN, PRETRAINED, STARTS, UNTRAINED, Row, write_page
from torch import nn

from hrrl_ext import URRLTrainer, evaluate, extract_features, finetune, load_model
from hrrl_ext.data import ImageSet, load_images
from hrrl_ext.evaluation import predict
from hrrl_ext.evaluation.corruptions import CORRUPTIONS
from hrrl_ext.transfer import KNeighbours, SGDProbe
from hrrl_ext.transfer.frozen import frozen_classifier
from hrrl_ext.transfer.study.config import file_name
from hrrl_ext.transfer.study.parts import Part, Parts
from hrrl_ext.transfer.study.queue import claimed

NOTEBOOK: dict[str, Any] = {
    "weight_decay": 5e-4, "queue": 4096, "key_momentum": 0.99, "temperature": 0.1, "blur": 0.0,
    "precision": "bf16", "channels_last": True, "device": "cpu", "progress": "off",
}  # fmt: skip
METHODS = {PLAIN: "plain"} | {name: spec for of in LEVELS.values() for name, spec in of.items()}
ATTACKS = ("l2:0.0625", "l2:0.25", "l2:0.5")
"""The paper's 0.5 at 256 pixels is as much of an image's norm as 0.0625 at 32."""
OF_EPOCHS = ("loss", "spread", "rank_me", "knn_accuracy", "seconds")


class Trial(NamedTuple):
    start: str
    """the pretraining that it is tuned from; "" of a pretraining"""
    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.start} {self.name} {self.seed}".strip()


# --- a trial's training


def train(args: argparse.Namespace, trial: Trial) -> Part:
    """From where it was stopped, if it was."""
    out = run_folder(args, trial)
    resume = (out / "config.json").exists()
    try:
        if trial.start:
            history = finetune(
                run_folder(args, Trial("", trial.start, trial.seed)), of_each_class(args, 0, args.images),
                method=METHODS[trial.name], out=out, resume=resume, epochs=args.tuning_epochs,
                seed=trial.seed, batch_size=64, precision="bf16", channels_last=True, device="cpu",
                progress="off",
            ).history  # fmt: skip
        elif trial.name == UNTRAINED:
            history = []
        else:
            history = pretraining(args, trial, out=out, resume=resume).fit().history
    except FloatingPointError as error:
        return {"failed": str(error)}
    return {"course": {name: [row[name] for row in history if name in row] for name in OF_EPOCHS}}


def pretraining(args: argparse.Namespace, trial: Trial, **of_run: Any) -> URRLTrainer:
    test = load_images(args.data / "cifar100-test.npz")
    settings = pretraining_settings(args, trial.name)
    return URRLTrainer(data=quarters(args), validation=test, seed=trial.seed, **settings, **of_run)


def pretraining_settings(args: argparse.Namespace, name: str) -> dict[str, Any]:
    shared = {"epochs": args.epochs, "width": args.width, "batch_size": args.batch_size}
    return NOTEBOOK | shared | dict(PRETRAINED[name])


def run_folder(args: argparse.Namespace, trial: Trial) -> Path:
    folder: Path = args.out / "runs" / file_name(str(trial))
    return folder


def quarters(args: argparse.Namespace) -> list[Path]:
    return [args.data / f"cifar100-train-{i}of4.npz" for i in range(args.parts)]


def of_each_class(args: argparse.Namespace, first: int, count: int) -> ImageSet:
    """``count`` images of CIFAR-10's training set, as many of each class, from its ``first`` on."""
    images = load_images(args.data / "cifar10-train.npz")
    begin, each = (-(-n // images.num_classes) for n in (first, count))
    rows = [(images.target == c).nonzero().flatten() for c in range(images.num_classes)]
    return images.subset([int(row) for of in rows for row in of[begin : begin + each]])


# --- what is measured of it


def measure(args: argparse.Namespace, trial: Trial) -> Part:
    if trial.start:
        network = load_model(run_folder(args, trial))
        held_out = predict(network, of_each_class(args, args.images, args.held_out))
        test = load_images(args.data / "cifar10-test.npz")
        found = evaluated(args, network, test, ATTACKS)
        return {"held_out": float(held_out.correct.double().mean())} | found
    untrained = trial.name == UNTRAINED
    network = (
        pretraining(args, trial).encoder.backbone
        if untrained
        else load_model(run_folder(args, trial))
    )
    test = load_images(args.data / "cifar100-test.npz")
    train, shown = (extract_features(network, data) for data in (load_images(quarters(args)), test))
    neighbours = KNeighbours().fit(*train)
    probe = SGDProbe(random_state=trial.seed).fit(*train)
    return {"knn": {"accuracy": neighbours.score(*shown)}} | evaluated(
        args, frozen_classifier(network, probe), test
    )


def evaluated(
    args: argparse.Namespace, network: nn.Module, test: ImageSet, attacks: Sequence[str] = ()
) -> Part:
    """On the same drawn test images for all: accuracy, mean error over the fifteen corruptions, RMS
    calibration error of clean images and, in the mean over corruptions, of corrupted ones, and accuracy
    under attack."""
    report = evaluate(
        network, test, attacks=attacks, corruptions=tuple(CORRUPTIONS), points=args.points,
        attack_points=args.attack_points, corruption_points=args.corruption_points, steps=(0.0,),
    )  # fmt: skip
    assert report.corruptions is not None
    rms = [kind["rms"] for kind in report.corruptions["kinds"]]
    return {
        "accuracy": report.accuracy["accuracy"],
        "corruption_error": report.corruptions["mean_error"],
        "rms": report.calibration["rms"],
        "corrupted_rms": sum(rms) / len(rms),
        "robust": {attack["spec"]: attack["accuracy"] for attack in report.attacks},
    }


# --- all of them


def trials(args: argparse.Namespace) -> Iterator[Trial]:
    """Those that can be told yet: what URRL's network is tuned by is chosen by then, or not in it."""
    main, further = list(PRETRAINED)[:6], list(PRETRAINED)[6:]
    for seed in range(args.seeds):
        yield from (Trial("", name, seed) for name in main)
        yield from (Trial(STARTS[0], name, seed) for name in METHODS)
        for start in STARTS[1:]:
            yield Trial(start, PLAIN, seed)
            levels = (chosen(args, family, seed) for family in LEVELS)
            yield from (Trial(start, name, seed) for name in levels if name is not None)
        yield from (Trial("", name, seed) for name in further)


def chosen(args: argparse.Namespace, family: str, seed: int) -> str | None:
    """Of its levels the one that is best on images held out; None, as long as not all are through."""
    found = {name: measured(args, Trial(STARTS[0], name, seed)) for name in LEVELS[family]}
    if any(part is None for part in found.values()):
        return None
    return max(found, key=lambda name: (found[name] or {}).get("held_out", 0.0))


def of_all(args: argparse.Namespace) -> int:
    tuned = len(METHODS) + (len(STARTS) - 1) * (1 + len(LEVELS))
    return int(args.seeds) * (len(PRETRAINED) + tuned)


def described(
    args: argparse.Namespace, trial: Trial
) -> tuple[Parts, dict[str, Any], dict[str, Any]]:
    """Where its parts are, and what its training and its measures must be of."""
    training: dict[str, Any] = {
        "start": trial.start, "name": trial.name, "seed": trial.seed, "parts": args.parts,
        "training": pretraining_settings(args, trial.start or trial.name),
    }  # fmt: skip
    measures = {"points": args.points, "corruption_points": args.corruption_points}
    if trial.start:
        training |= {
            "method": METHODS[trial.name], "images": args.images, "epochs": args.tuning_epochs,
        }  # fmt: skip
        measures |= {"held_out": args.held_out, "attack_points": args.attack_points}
    return Parts(args.out / "trials" / file_name(str(trial))), training, training | measures


def measured(args: argparse.Namespace, trial: Trial) -> Part | None:
    """What a trial came to, with its training's course; None where it is not through."""
    parts, training, measures = described(args, trial)
    if (trained := parts.read("training", training)) is None or "failed" in trained:
        return trained
    if (found := parts.read("measured", measures)) is None:
        return None
    seconds = sum(trained["course"]["seconds"]) + found["processor_seconds"]
    return trained | found | {"hours": seconds / 3600}


def work(args: argparse.Namespace) -> None:
    for trial in trials(args):
        start = Trial("", trial.start, trial.seed)
        if trial.start and ((begun := measured(args, start)) is None or "failed" in begun):
            continue  # not yet, by another process (the command comes to it); or there is none
        parts, training, measures = described(args, trial)
        if measured(args, trial) is not None:
            continue
        with claimed(parts.folder) as mine:
            if not mine:
                continue
            trained = parts.keep("training", training, partial(train, args, trial))
            if "failed" not in trained:
                parts.keep("measured", measures, partial(measure, args, trial))
        part = measured(args, trial) or {}
        shown = (
            part.get("failed") or f"{100 * part['accuracy']:.1f} %  {60 * part['hours']:.1f} min"
        )
        print(f"{trial}: {shown}", flush=True)


def rows(args: argparse.Namespace) -> list[Row]:
    """Of what is through; a network that is tuned is of a family of levels, of which one is chosen."""
    found: list[Row] = []
    for trial in trials(args):
        part = measured(args, trial)
        if part is None or "failed" in part:
            continue
        family = next((f for f, of in LEVELS.items() if trial.name in of), PLAIN)
        main = family == PLAIN or trial.name == chosen(args, family, trial.seed)
        found.append(part | trial._asdict() | {"family": family, "main": main})
    return found


def failed(args: argparse.Namespace) -> list[str]:
    """Trials whose training did; rows has none of them."""
    return [str(trial) for trial in trials(args) if "failed" in (measured(args, trial) or {})]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and trials")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=4, help="quarters of CIFAR-100 to train on")
    parser.add_argument("--epochs", type=int, default=15, help="of pretraining")
    parser.add_argument("--batch-size", type=int, default=256, help="of pretraining")
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-18's own")
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10 to fine-tune on")
    parser.add_argument("--held-out", type=int, default=2000, help="of it to choose levels by")
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
        write_page(rows(args), args.page, of_all(args), failed(args))


if __name__ == "__main__":
    main()
