"""A stage: whether features transfer, on real images and at full width, seed by seed until it is stopped.

CIFAR-100 with its 20 super-classes as concepts is learned as ERM, EL, CL and HRRL; then a linear SVM is
trained on the features of each target. Models that share a seed share weights, order and augmentation, so
their differences are paired. The SVMs run in other processes, beside the training of the next model.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hrrl_ext import HRRLTrainer, extract_features
from hrrl_ext.data import ImageSet, load_images
from hrrl_ext.transfer import Features, Target
from hrrl_ext.transfer.probe import probe
from hrrl_ext.transfer.table import VARIANTS, variant_config

from .records import emit

TAU, LAM = 0.03, 10.0  # of docs/results/cifar100.md, which searched them
CONFIG: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 256,
    "lr": 0.1,
    "width": 64,
    "precision": "bf16",
    "channels_last": True,
}
DRY = CONFIG | {"epochs": 1, "width": 2, "precision": "fp32"}
TARGETS = ("cifar10", "fashion-mnist", "grocery")
SIZE = 32
_MOST = 10_000  # images that an SVM is trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of archives; the digits without it")
    parser.add_argument("--workers", type=int, default=8, help="processes for the SVMs")
    parser.add_argument(
        "--dry-run", action="store_true", help="one seed, two variants, a tiny model"
    )
    args = parser.parse_args()
    dry = args.dry_run
    config, variants = (DRY, ("ERM", "HRRL")) if dry else (CONFIG, VARIANTS)
    train, test, targets = of_digits() if args.data is None else of_archives(args.data)
    if args.data is None:
        config = config | {"concepts": "classes"}
    names = [target.name for target in targets]
    emit("transfer", images=len(train), tests=len(test), targets=names, config=config)
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        probes: list[Future[None]] = []
        for seed in range(1) if dry else itertools.count():
            for variant in variants:
                model = learned(variant, seed, train, test, "cpu" if dry else "cuda", config)
                for target in targets:
                    both = (extract_features(model, part) for part in (target.train, target.test))
                    probes.append(pool.submit(probed, variant, seed, target.name, *both))
            for probe in (probe for probe in probes if probe.done()):
                probe.result()  # raises what went wrong there
        for probe in probes:
            probe.result()


def learned(
    variant: str, seed: int, train: ImageSet, test: ImageSet, device: str, config: dict[str, Any]
) -> nn.Module:
    """A network, after a line that says how good it is at home."""
    levels = variant_config(variant, TAU, LAM)
    trainer = HRRLTrainer(
        data=train, validation=test, seed=seed, device=device, progress="off", **(config | levels)
    )
    result = trainer.fit()
    last = result.last
    emit(
        "trained",
        variant=variant,
        seed=seed,
        accuracy=last["accuracy"],
        worst_concept=last["worst_concept_accuracy"],
        images_per_second=round(last["images_per_second"]),
        seconds=round(sum(row["seconds"] for row in result.history), 1),
    )
    return result.model


def probed(variant: str, seed: int, target: str, train: Features, test: Features) -> None:
    """In a process of its own, and on one core: a line with the SVM's accuracy on the target."""
    torch.set_num_threads(1)
    emit("probed", variant=variant, seed=seed, target=target, accuracy=probe(train, test).accuracy)


def of_digits() -> tuple[ImageSet, ImageSet, list[Target]]:
    train, test = (load_images("digits", split=split) for split in ("train", "test"))
    return train, test, [Target("digits", train, test)]


def of_archives(data: Path) -> tuple[ImageSet, ImageSet, list[Target]]:
    """What there is: any parts of CIFAR-100, and any targets."""
    parts = sorted(data.glob("cifar100-train-*.npz"))
    if not parts or not (data / "cifar100-test.npz").exists():
        raise SystemExit(
            f"{data} needs cifar100-train-*.npz, at least one part, and cifar100-test.npz"
        )
    targets = [
        Target(name, *halves(data, name))
        for name in TARGETS
        if (data / f"{name}-test.npz").exists()
    ]
    train = load_images(parts, image_size=SIZE)
    return train, load_images(data / "cifar100-test.npz", image_size=SIZE), targets


def halves(data: Path, name: str) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a target; without an archive to train on, every other one to test."""
    test = load_images(data / f"{name}-test.npz", image_size=SIZE)
    if (data / f"{name}-train.npz").exists():
        train = load_images(data / f"{name}-train.npz", image_size=SIZE)
        return train.subset(range(min(len(train), _MOST))), test
    return test.subset(range(0, len(test), 2)), test.subset(range(1, len(test), 2))


if __name__ == "__main__":
    main()
