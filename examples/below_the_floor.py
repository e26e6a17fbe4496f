"""Cheaper than Algorithm 1: what shortcuts in the example level do to the time and to the network.

    python examples/below_the_floor.py digits                        # anywhere, a minute
    python examples/below_the_floor.py TRAIN.npz TEST.npz --epochs 8 --width 8 --out runs/below

HRRL's step has 5 units of work where ERM's has 3: the pass that finds x̃ costs 2. Each way below saves on
that pass and leaves the rest of the step alone. Every way takes the same number of steps over the same
images in the same order, from the same weights. Printed are, per way, the time of a step over ERM's
(interleaved, the fastest of many), the accuracy, that of the worst concept, and the accuracy at x̃ of
the trained network for two lengths of the perturbation. The results are in docs/speed.md.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import HRRLObjective, ops
from hrrl_ext.data import Augmentation, ImageSet, load_images
from hrrl_ext.models import build_model
from hrrl_ext.robust import ExamplePerturbation

MEASURES = ("accuracy", "worst_concept", "at_tau", "at_2_tau")
TIMED_ROUNDS = 15


class Run:
    """A network in training, with what a way may keep between the steps."""

    def __init__(self, images: ImageSet, args: argparse.Namespace, seed: int, tau: float) -> None:
        torch.manual_seed(seed)
        self.images, self.seed, self.tau = images, seed, tau
        self.model: nn.Module = build_model(
            "resnet18",
            num_classes=images.num_classes,
            image_size=images.image_shape[-1],
            width=args.width,
        )
        count = torch.bincount(images.target, minlength=images.num_classes)
        self.objective = HRRLObjective(count, tau=tau, lam=args.lam)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4
        )
        self.schedule = torch.optim.lr_scheduler.LinearLR(
            self.optimizer, 1.0, 0.0, args.epochs * (len(images) // args.batch_size)
        )
        self.augment = Augmentation(args.crop_padding, flip=args.flip)
        self.direction = torch.zeros(0)  # [N, C, H, W] of the last epoch, before augmentation

    def perturb(self, x: Tensor, target: Tensor) -> Tensor:
        return self.objective.perturb(self.model, x, target)

    def descend(self, x: Tensor, target: Tensor) -> None:
        """Lines 10 and 11 of Algorithm 1. Each class is a concept."""
        out = self.objective(self.model(x), target, target)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        self.optimizer.step()
        self.objective.update(out.concept_loss)
        self.schedule.step()


@dataclass
class Batch:
    epoch: int
    rows: Tensor
    """[B] numbers of the images"""
    x: Tensor
    target: Tensor
    augment: Callable[[Tensor], Tensor]
    """the same crops and flips as x has, for anything of its shape"""


def batch_of(run: Run, rows: Tensor, epoch: int, number: int) -> Batch:
    pixels, target = run.images.__getitems__(rows.tolist())

    def augment(images: Tensor) -> Tensor:
        draws = torch.Generator().manual_seed(1_000_003 * run.seed + 10_007 * epoch + number)
        return run.augment(images, draws)

    return Batch(epoch, rows, augment(pixels).float() / 255, target, augment)


# --- the ways: a step each


def erm(run: Run, b: Batch) -> None:
    run.descend(b.x, b.target)


def algorithm_1(run: Run, b: Batch) -> None:
    run.descend(run.perturb(b.x, b.target), b.target)


def lower_precision(run: Run, b: Batch) -> None:
    """The pass for x̃ in bfloat16, training in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        x = run.perturb(b.x, b.target)
    run.descend(x, b.target)


def lower_resolution(run: Run, b: Batch) -> None:
    """The gradient of images of half the side: a quarter of the work."""
    small = F.avg_pool2d(b.x, 2)
    direction = F.interpolate(run.perturb(small, b.target) - small, scale_factor=2.0)
    run.descend(ops.perturb(b.x, direction, run.tau)[0], b.target)


def half_of_the_batch(run: Run, b: Batch) -> None:
    """The other half is trained on as it is."""
    half = len(b.x) // 2
    x = torch.cat([run.perturb(b.x[:half], b.target[:half]), b.x[half:]])
    run.descend(x, b.target)


def every_second_epoch(run: Run, b: Batch) -> None:
    """In between the direction of the last epoch, cropped and flipped as the image is now."""
    if not len(run.direction):
        run.direction = torch.zeros(len(run.images), *b.x.shape[1:])
    if b.epoch % 2 == 0:
        x = run.perturb(b.x, b.target)
        # Augmentation moves pixels: it is linear, and its adjoint moves the direction back.
        _, adjoint = torch.autograd.functional.vjp(b.augment, torch.zeros_like(x), x - b.x)
        run.direction[b.rows] = adjoint
    else:
        x = ops.perturb(b.x, b.augment(run.direction[b.rows]), run.tau)[0]
    run.descend(x, b.target)


def replayed(run: Run, b: Batch) -> None:
    """Two steps on a batch: on x, whose backward pass also yields the gradient of x, then on x̃.

    As "free" adversarial training does (Shafahi et al., 2019). There are half as many batches.
    """
    x = b.x.requires_grad_()
    run.descend(x, b.target)
    assert x.grad is not None
    run.descend(ops.perturb(x.detach(), x.grad, run.tau)[0], b.target)


WAYS: dict[str, Callable[[Run, Batch], None]] = {
    "ERM and CL": erm,
    "Algorithm 1": algorithm_1,
    "lower precision": lower_precision,
    "lower resolution": lower_resolution,
    "half of the batch": half_of_the_batch,
    "every second epoch": every_second_epoch,
    "replayed": replayed,
}


# --- training and measuring


def train(way: str, images: ImageSet, args: argparse.Namespace, seed: int) -> Run:
    run = Run(images, args, seed, args.tau)
    for epoch in range(args.epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + epoch))
        batches = order.split(args.batch_size)[: len(images) // args.batch_size]  # whole ones
        if way == "replayed":  # each other half of the images, twice
            batches = batches[epoch % 2 :: 2]
        for number, rows in enumerate(batches):
            WAYS[way](run, batch_of(run, rows, epoch, number))
    return run


def measure(run: Run, test: ImageSet) -> dict[str, float]:
    model = run.model.eval()
    right: list[list[Tensor]] = [[], [], []]
    for rows in torch.arange(len(test)).split(500):
        pixels, target = test.__getitems__(rows.tolist())
        x = pixels.float() / 255
        for k, found in enumerate(right):
            moved = ExamplePerturbation(k * run.tau)(model, x, target)
            with torch.no_grad():
                found.append(model(moved).argmax(1) == target)
    clean, once, twice = (torch.cat(found).double() for found in right)
    target = test.target[: len(test)]
    worst = min(clean[target == k].mean().item() for k in target.unique())
    means = (clean.mean().item(), worst, once.mean().item(), twice.mean().item())
    return dict(zip(MEASURES, means, strict=True))


def step_seconds(images: ImageSet, args: argparse.Namespace) -> dict[str, float]:
    """The fastest step of each way; they take turns, so that other load meets all alike."""
    runs = {way: Run(images, args, 0, args.tau) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rows = torch.arange(args.batch_size)
    for turn in range(TIMED_ROUNDS + 1):
        for way, run in runs.items():
            spent = []
            for epoch in range(2):  # of which one reuses
                b = batch_of(run, rows, epoch, turn)
                one = time.perf_counter()
                WAYS[way](run, b)
                spent.append(time.perf_counter() - one)
            if turn:  # the first warms up
                steps = 2 if way == "replayed" else 1
                seconds[way].append(sum(spent) / 2 / steps)
    return {way: min(found) for way, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="whatever load_images opens")
    parser.add_argument("test", nargs="?", help="the same set's test split, if not given")
    parser.add_argument("--out", type=Path, help="folder for trials.csv")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, help="train on the first so many")
    parser.add_argument("--test-images", type=int, help="test on the first so many")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tau", type=float, default=0.3)
    parser.add_argument("--lam", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--crop-padding", type=int, default=4)
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    images = first(load_images(args.train, split="train"), args.images)
    test = first(load_images(args.test or args.train, split="test"), args.test_images)
    rows: list[dict[str, object]] = []
    for seed in args.seeds:
        for way in args.ways:
            start = time.process_time()
            run = train(way, images, args, seed)
            cpu = time.process_time() - start
            rows.append({"way": way, "seed": seed, "cpu_seconds": round(cpu, 1)})
            rows[-1] |= measure(run, test)
            print(rows[-1], flush=True)
            if args.out is not None:
                write(rows, args.out)
    seconds = step_seconds(images, args)
    print("\n" + table(rows, seconds))


def first(images: ImageSet, count: int | None) -> ImageSet:
    return images if count is None else images.subset(range(min(count, len(images))))


def write(rows: list[dict[str, object]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict[str, object]], seconds: dict[str, float]) -> str:
    """Accuracies in %: the mean over the seeds, and between them the largest difference."""
    lines = [
        "| way | step, ms | over ERM | accuracy | worst concept | at x̃ of τ | at x̃ of 2τ |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way in dict.fromkeys(str(row["way"]) for row in rows):
        cells = [way, f"{1e3 * seconds[way]:.1f}", f"{seconds[way] / seconds['ERM and CL']:.2f}"]
        for name in MEASURES:
            found = torch.tensor([100 * float(str(r[name])) for r in rows if r["way"] == way])
            cells.append(f"{found.mean():.1f} ({found.max() - found.min():.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
