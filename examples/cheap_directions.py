"""The example level for less than Algorithm 1 costs: what each way of saving keeps of its effect.

    python examples/cheap_directions.py DATA --out runs/directions --page docs/results/cheap-directions.md
    python examples/cheap_directions.py digits --out runs/look --epochs 4 --width 4 --per-class 20 100

DATA is a folder with the archives cifar100-train-{0..3}of4, cifar100-test, cifar10-train and -test. Of
CIFAR-100 some 22,000 images are taken, with concepts of 200 to 2,000 (linear:10); digits run anywhere, in
minutes. Each trial, a way and a seed, is a file in --out: the same command goes on after any end, and
several may run on one --out. Other settings need another --out.

Whether it holds in other trainings: --epochs for longer ones, --lam with the concept level, --per-class
for fewer target images, --crop-padding for a stronger augmentation. Crops and flips are what stored
directions undo; the library refuses them with resized crops, AugMix, erasing and mixup, so that no way
is compared under these.

All ways of a seed have the same images, first weights, order and views, and train on as many passes over
the images; what line 9 takes besides shows in the processor's seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cheap_directions_page import moved_by, write_page
from torch import Tensor, nn

from hrrl_ext import extract_features, ops
from hrrl_ext.data import (
    ArrayImages,
    ImageSet,
    concept_shares,
    few_per_class,
    imbalance,
    load_images,
    lower_resolution,
    resolve_concepts,
)
from hrrl_ext.evaluation import perturbation_curve
from hrrl_ext.losses import Mixed
from hrrl_ext.models import build_model
from hrrl_ext.processes import start_processes
from hrrl_ext.robust import HRRL, ExamplePerturbation, HRRLConfig
from hrrl_ext.robust.sets import open_sets
from hrrl_ext.training import Loop, TrainingConfig
from hrrl_ext.transfer.probe import probe
from hrrl_ext.transfer.study.config import file_name
from hrrl_ext.transfer.study.parts import Part, Parts
from hrrl_ext.transfer.study.queue import claimed

STEPS = (0.0, 0.05, 0.1, 0.2, 0.4)

# --- ways of one's own


class HalfOfTheBatch(ExamplePerturbation):
    """Line 9 for every other example; the rest is trained on as it is."""

    def forward(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        assert isinstance(target, Tensor)
        x = x.clone()
        x[::2] = super().forward(model, x[::2], target[::2])
        return x


class EverySecondStep(ExamplePerturbation):
    """Line 9 in every other step, from the first on."""

    calls = 0

    def forward(self, model: nn.Module, x: Tensor, target: Tensor | Mixed) -> Tensor:
        self.calls += 1
        return super().forward(model, x, target) if self.calls % 2 else x


class Replayed(HRRL):
    """Each batch ``replays`` times, a step each, at x̃ of the gradient that the replay before has left.

    "Free" training (Shafahi et al., 2019) with x̃ = x + τ z in the place of signs and a ball. The first
    replay is plain, where theirs goes on from the perturbation of the batch before, of other images.
    """

    replays = 2
    whole_batch = "the parts of a batch would be replayed one by one"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.objective.perturbation = ExamplePerturbation(0.0)  # x̃ comes from here

    def step(self, batch: tuple[Tensor, ...], move: Callable[..., Tensor]) -> Tensor:
        x, target, concept = batch
        moved = x
        for _ in range(self.replays):
            moved = moved.detach().requires_grad_()
            concept_loss = move(self.losses, moved, target, concept)
            assert moved.grad is not None
            moved = ops.perturb(x, moved.grad, self.config.tau)[0]
        self.objective.update(concept_loss)
        self.tally.add_step(concept_loss)
        return concept_loss

    @property
    def _seen(self) -> int:
        return self.replays * super()._seen


class FourTimes(Replayed):
    replays = 4


class FirstLayer(Replayed):
    """YOPO-2-3 (Zhang et al., 2019): one step of the mean loss at x and at x̃, which moves in 3 steps.

    The pass at x leaves p, the gradient at what the first layer gives: the convolution, its normalisation
    and ReLU, since of a convolution alone all steps would have the same direction. x̃ then goes up
    <p, first layer(x̃)>, for the price of that layer.
    """

    inner = 3

    def step(self, batch: tuple[Tensor, ...], move: Callable[..., Tensor]) -> Tensor:
        return HRRL.step(self, batch, move)

    def losses(
        self, model: nn.Module, x: Tensor, target: Tensor, concept: Tensor, *more: Tensor
    ) -> tuple[Tensor, Tensor]:
        given: list[Tensor] = []
        stages = model.get_submodule("layer1")
        hook = stages.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        loss, _ = super().losses(model, x, target, concept)
        hook.remove()
        given[0].retain_grad()
        (loss / 2).backward()  # whose gradient stays in the weights, for the step
        p, moved = given[0].grad, x
        assert p is not None
        for _ in range(self.inner):
            leaf = moved.detach().requires_grad_()
            (z,) = torch.autograd.grad((first_layer(model, leaf) * p).sum(), leaf)
            moved = ops.perturb(leaf.detach(), z, self.config.tau / self.inner)[0]
        loss, concept_loss = super().losses(model, moved, target, concept)
        return loss / 2, concept_loss


def first_layer(model: Any, x: Tensor) -> Tensor:
    """What the stages of a ResNet18 are given, without a trace in its running statistics."""
    norm, out = model.bn1, model.conv1(model.normalise(x))
    return F.relu(F.batch_norm(out, None, None, norm.weight, norm.bias, training=True))


@dataclass(frozen=True)
class Way:
    settings: Mapping[str, Any]
    """of HRRL"""
    recipe: type[HRRL] = HRRL
    perturbation: type[ExamplePerturbation] | None = None
    """in the place of line 9"""

    @property
    def replays(self) -> int:
        return self.recipe.replays if issubclass(self.recipe, Replayed) else 1


def _ways() -> Iterator[tuple[str, Way]]:
    """Each of the cheap ones with the length of Algorithm 1, and three times that."""
    yield "ERM", Way({"tau": 0.0})
    yield "Algorithm 1, 0.1", Way({"tau": 0.1})
    for tau in (0.1, 0.3):
        yield f"stored, {tau}", Way({"tau": tau, "example_level": "stored"})
    stored = {"tau": 0.3, "example_level": "stored", "stored_bits": 1}
    yield "stored, 1 bit, 0.3", Way(stored)
    for tau in (0.1, 0.3):
        level = {"tau": tau}
        yield f"half of the batch, {tau}", Way(level, perturbation=HalfOfTheBatch)
        yield f"every second step, {tau}", Way(level, perturbation=EverySecondStep)
        yield f"replayed twice, {tau}", Way(level, Replayed)
        yield f"replayed 4 times, {tau}", Way(level, FourTimes)
        yield f"first layer, {tau}", Way(level, FirstLayer)


WAYS: dict[str, Way] = dict(_ways())

# --- data


@dataclass
class Data:
    """What is trained on, measured on, and transferred to."""

    whole: ImageSet
    concept: Tensor
    concepts: str
    test: ImageSet
    targets: dict[str, tuple[ArrayImages, ArrayImages]] = field(default_factory=dict)

    def source(self, args: argparse.Namespace, seed: int) -> ImageSet:
        """The seed draws which concept has which size, and which images stay."""
        shares = concept_shares(args.profile, self.concept.bincount().tolist(), seed=seed)
        images = imbalance(self.whole, self.concept, shares, seed)
        if args.images is None:
            return images
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        return images.subset(order[: args.images].sort().values)


def open_data(where: str) -> Data:
    """Each target also at half of its resolution."""
    if where == "digits":
        name, concepts = "digits", "classes"
        whole: ImageSet = load_images("digits", split="train")
        test: ImageSet = load_images("digits", split="test")
        train, held = load_images("digits", split="train"), load_images("digits", split="test")
    else:
        name, concepts, folder = "CIFAR-10", "cifar100", Path(where)
        whole = load_images([folder / f"cifar100-train-{i}of4.npz" for i in range(4)])
        test = load_images(folder / "cifar100-test.npz")
        train, held = (in_memory(folder / f"cifar10-{split}.npz") for split in ("train", "test"))
    concept, _ = resolve_concepts(concepts, whole)
    lower = lower_resolution(train), lower_resolution(held)
    targets = {name: (train, held), "half resolution": lower}
    return Data(whole, concept, concepts, test, targets)


def in_memory(path: Path) -> ArrayImages:
    images = load_images(path)
    assert isinstance(images, ArrayImages)  # an archive's are
    return images


# --- a trial

BESIDE: Mapping[str, Any] = {"lam": None, "crop_padding": HRRLConfig.crop_padding}
"""Settings of HRRL that every way has, where no option gives others."""


def beside(args: argparse.Namespace) -> dict[str, Any]:
    """What options give besides a way's settings; nothing of ``BESIDE``, which is in no description."""
    return {name: getattr(args, name) for name, v in BESIDE.items() if getattr(args, name) != v}


def training(args: argparse.Namespace, way: Way, seed: int) -> dict[str, Any]:
    """As many passes that move weights, or that add to their gradient, for every way."""
    if args.epochs % way.replays:
        raise ValueError(
            f"--epochs must be a multiple of {way.replays}, got {args.epochs}: each batch comes so often"
        )
    return {
        "epochs": args.epochs // way.replays, "batch_size": args.batch_size, "lr": args.lr,
        "schedule": "cosine", "precision": args.precision, "channels_last": True, "seed": seed,
    }  # fmt: skip


def loop_of(way: Way, data: Data, args: argparse.Namespace, seed: int) -> Loop:
    """What HRRLTrainer does, for a recipe of one's own."""
    config = TrainingConfig(**training(args, way, seed), evaluate_every=args.epochs)
    method = HRRLConfig(width=args.width, **{**BESIDE, **beside(args), **way.settings})
    processes, device = start_processes("cpu")
    sets = open_sets(
        data.source(args, seed), data.concepts, data.test, None, root=None, training=config,
        method=method, device=device, processes=processes, num_workers=0, keep_gib=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    images = sets.images
    model = build_model(
        "resnet18",
        num_classes=images.num_classes,
        image_size=images.image_shape[-1],
        width=args.width,
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = way.recipe(model, sets, method, processes, at_once=config.batch_size)
    if way.perturbation is not None:
        recipe.objective.perturbation = way.perturbation(float(method.tau))
    return Loop(recipe, config, processes=processes, device=device, progress="off")


def trial(way: Way, data: Data, args: argparse.Namespace, seed: int) -> Part:
    few = {  # drawn first, so that a class of too few images costs no training
        (name, count): train.subset(few_per_class(train, count, seed))
        for name, (train, _) in data.targets.items()
        for count in args.per_class
    }
    loop = loop_of(way, data, args, seed)
    begun = time.process_time()
    model, last = (result := loop.fit()).model, result.last
    found = {
        "images": len(loop.recipe.sets.images),  # type: ignore[attr-defined]
        "training_seconds": time.process_time() - begun,
    }
    curve = perturbation_curve(model, data.test, STEPS)
    found |= {moved_by(step): v for step, v in zip(STEPS, curve.accuracy, strict=True)}
    found["worst concept"] = last["worst_concept_accuracy"]
    of_test = {name: extract_features(model, test) for name, (_, test) in data.targets.items()}
    for (name, count), images in few.items():
        measure = name if len(args.per_class) == 1 else f"{name}, {count} a class"
        found[measure] = probe(
            extract_features(model, images), of_test[name], method="svm"
        ).accuracy
    return found


# --- all of them


def description(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """A trial is taken up only as what it is of."""
    way = WAYS[name]
    of = {"way": name, "data": Path(args.data).name}
    of |= {n: getattr(args, n) for n in ("profile", "images", "width")}
    of["per_class"] = args.per_class if len(args.per_class) > 1 else args.per_class[0]
    settings = {**beside(args), **way.settings}
    return of | {"training": training(args, way, seed), "settings": settings}


def trials(args: argparse.Namespace) -> Iterator[tuple[str, int, Parts, dict[str, Any]]]:
    """Seed by seed: after each, all ways can be compared."""
    for seed in args.seeds:
        for name in args.ways:
            folder = args.out / "trials" / f"{file_name(name)}_{seed}"
            yield name, seed, Parts(folder), description(args, name, seed)


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each trial that is through."""
    found = []
    for name, seed, parts, of in trials(args):
        if (part := parts.read("trial", of)) is not None:
            measured = {k: v for k, v in part.items() if k not in ("of", "seconds")}
            found.append({"way": name, "seed": seed} | measured)
    return found


def work(args: argparse.Namespace) -> None:
    data = cache(lambda: open_data(args.data))
    for name, seed, parts, of in trials(args):
        if parts.read("trial", of) is not None:
            continue
        with claimed(parts.folder) as mine:
            if not mine or parts.read("trial", of) is not None:  # another's, or by now
                continue
            part = parts.keep("trial", of, lambda: trial(WAYS[name], data(), args, seed))  # noqa: B023
            shown = "  ".join(f"{k} {100 * part[k]:.1f}" for k in map(moved_by, STEPS))
            print(f"{name}, seed {seed}: {shown}  {part['training_seconds']:.0f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help='folder of archives, or "digits"')
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--profile", default="linear:10", help="sizes of the concepts")
    parser.add_argument("--images", type=int, help="train on so many of them")
    parser.add_argument(
        "--per-class", type=int, nargs="+", default=[500], help="a target's training images"
    )
    parser.add_argument("--lam", type=float, help="with the concept level")
    parser.add_argument(
        "--crop-padding", type=int, default=BESIDE["crop_padding"], help="of the augmentation"
    )
    parser.add_argument("--epochs", type=int, default=12, help="passes over the images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--page", type=Path, help="Markdown page to begin, or bring up to date")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    work(args)
    if args.page is not None:
        of_all = len(args.ways) * len(args.seeds)
        names = ("profile", "width", "epochs", "batch_size", "lr", "precision", *BESIDE)
        settings = {n: v for n in names if (v := getattr(args, n)) is not None}
        settings["images per class"] = " and ".join(map(str, args.per_class))
        write_page(rows(args), args.page, of_all, settings)


if __name__ == "__main__":
    main()
