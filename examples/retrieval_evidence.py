"""Hard negatives in joint embeddings: the comparisons of the thesis's chapter 3, in small, and more.

    python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse
    python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse --page PAGE.md
    python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse --rates trials.csv
    python examples/retrieval_evidence.py emoji --out runs/look --splits 1 --image-epochs 2    # a look

FEATURES.npz holds features [N, F] of N images and captions [N, C], texts; "emoji" is the embedded set.
A trial is a variant, a split and a seed. Each learning rate of it is a file in --out: the same command
goes on after any end, and several may run on one --out; --page writes what is there, and trains nothing.
The thesis's comparisons have all splits x seeds, seed s on split s first; what is beside them that alone.

The learning rate and the epoch are chosen by rsum on the validation part, and nothing on test images. The
rate is searched from --lr on, by halves and doubles, until those beside the best one are tried: by each
variant on each split, with one seed; other seeds take what was found, and with --rates all take what an
earlier search found, whose table stands beside the page. Only λ of q is chosen by the worst concept of
the validation part, at the chosen epoch. Of one split and seed all variants have the
same pairs (retrieval_splits.py), first weights (where shapes agree) and order.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from retrieval_page import write_page
from retrieval_rows import BINS, LAMBDAS, OF_Q, WORST
from retrieval_splits import EMOJI, SPLITS, Sets, open_pairs, split_of, without_mask
from scipy.stats import skew
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer, ops
from hrrl_ext.data import ImageSet
from hrrl_ext.models import build_model
from hrrl_ext.retrieval import JointEmbedding, Pairs, RetrievalTrainer, embed, evaluate
from hrrl_ext.transfer.study.config import file_name
from hrrl_ext.transfer.study.parts import Part, Parts
from hrrl_ext.transfer.study.queue import claimed

Encoder = Callable[[], nn.Module]
FARTHEST = 3
"""How often a search doubles or halves the learning rates that it begins with."""
LOOKED_AT = (10, 30)
"""Epochs at which the distances of the hardest negatives are kept (Fig. 3.5), besides the last."""
TOLD = ("queue_drift", "worst_concept_rsum")
"""Of the row of the best epoch, where a trial has it."""
TRAINED_BEFORE = ("frozen", "fine-tuned")
"""Encoders that have learned something by then."""


@dataclass(frozen=True)
class Variant:
    preset: str = "VSE++"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """of RetrievalTrainer"""
    masked: bool = True
    """whether other captions of a pair's image are no negatives of it"""
    encoder: str = ""
    """of images: "frozen" after it learned the concepts of the training images; "fine-tuned" from there,
    in the second half of the epochs; "fresh", trained from the start"""


SH = {"loss": "sum_hinge"}
NEGATIVES = {
    **{f"VSE++, {n} negatives": Variant(settings={"negatives": n}) for n in (2, 4, 8, 16, 32, 64)},
    **{f"VSE++, {n} negatives": Variant(settings={"batch_size": n}) for n in (256, 512)},
}
BY_QUEUE = {
    f"VSE++, {n} negatives by queue": Variant(settings={"queue": n - 128})
    for n in (256, 512, 1024, 2048)
}
"""The batch, and those before it as they were embedded then."""


def of_images(*encoders: str) -> dict[str, Variant]:
    return {
        f"{loss}, {encoder}": Variant(settings=settings, encoder=encoder)
        for encoder in encoders
        for loss, settings in (("VSE++", {}), ("SH", SH))
    }


OF_FEATURES = {
    "VSE++": Variant(),
    "SH": Variant(settings=SH),
    "VSE0": Variant("VSE0"),
    "VSE++, no mask": Variant(masked=False),
    "SH, no mask": Variant(settings=SH, masked=False),
    "Order++": Variant("Order++"),
    "Order0": Variant("Order0"),
    "InfoNCE": Variant(settings={"loss": "info_nce"}),
    "SigLIP": Variant(settings={"loss": "sigmoid"}),
    **NEGATIVES,
}
CONCEPTS = {"concepts": "classes", "validation_concepts": "classes", "s": 100}
BY_LAMBDA = {
    f"VSE++, frozen{OF_Q}{lam:g}": Variant(settings=CONCEPTS | {"lam": lam}, encoder="frozen")
    for lam in LAMBDAS
}
OF_IMAGES = of_images(*TRAINED_BEFORE) | BY_LAMBDA
BEGUN_BY_SH = {"warmup_loss": "sum_hinge", "warmup_for": 5}
BESIDE_FEATURES = {
    "VSE++, free lengths": Variant(settings={"normalise_image": False}),
    "VSE++, begun by SH": Variant(settings=BEGUN_BY_SH),
    "Order++, begun by SH": Variant("Order++", BEGUN_BY_SH),
    **BY_QUEUE,
}
BESIDE_IMAGES = of_images("fresh")

# --- a trial


def training(args: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    """A larger batch has as many steps, of which each goes through more pairs. Words of sentences must
    occur four times, as in the public code; words of names and keywords twice."""
    batch_size = variant.settings.get("batch_size", args.batch_size)
    epochs = args.image_epochs if variant.encoder else args.epochs
    return {
        "epochs": epochs * max(1, batch_size // args.batch_size),
        "batch_size": args.batch_size, "dim": args.dim, "text_width": args.text_width,
        "word_dim": args.word_dim, "min_count": 2 if variant.encoder else 4, "width": args.width,
    } | dict(variant.settings)  # fmt: skip


def train(
    variant: Variant, sets: Sets, args: argparse.Namespace, seed: int, lr: float, encoder: Encoder
) -> Part:
    """What a learning rate came to; of a collapse, in which words it was told."""
    sizes = {name: [len(part.images), len(part)] for name, part in sets.items()}
    own = encoder() if variant.encoder in TRAINED_BEFORE else None
    try:
        return {"sizes": sizes, **Run(variant, sets, args, seed, lr, own).part()}
    except FloatingPointError as error:
        return {"sizes": sizes, "collapsed": str(error)}


def classifier(train: Pairs, args: argparse.Namespace, seed: int) -> nn.Module:
    """A network that has learned the concepts of the training images; its features are taken."""
    model = build_encoder(train, args, seed)
    HRRLTrainer(
        model, data=image_set(train), concepts="classes", lam=None, tau=0.0,
        epochs=args.image_epochs // 2, batch_size=64, lr=0.05, schedule="cosine", crop_padding=2,
        flip=False, seed=seed, device="cpu", progress="off",
    ).fit()  # fmt: skip
    return model


def build_encoder(train: Pairs, args: argparse.Namespace, seed: int) -> nn.Module:
    images = image_set(train)
    size = images.image_shape[-1]
    torch.manual_seed(seed)
    return build_model("convnet", num_classes=images.num_classes, image_size=size, width=args.width)


def image_set(pairs: Pairs) -> ImageSet:
    assert isinstance(pairs.images, ImageSet)
    return pairs.images


class Run:
    """One training, epoch by epoch."""

    def __init__(
        self,
        variant: Variant,
        sets: Sets,
        args: argparse.Namespace,
        seed: int,
        lr: float,
        encoder: nn.Module | None,
    ) -> None:
        self.sets, self.lr = sets, lr
        settings = training(args, variant)
        self.data = sets["train"] if variant.masked else without_mask(sets["train"])
        self.settings = {
            "validation": sets["validation"], "preset": variant.preset, "seed": seed, "lr": lr,
            "device": "cpu", "progress": "off", **settings,
        }  # fmt: skip
        self.curve: list[float] = []
        self.told: dict[str, float] = {}
        self.best: tuple[int, dict[str, Tensor]] = (0, {})
        self.hardest: dict[str, Any] = {}
        self.looked_at = {*LOOKED_AT, settings["epochs"]}
        self.begun = time.process_time()
        self.model = self._fit(variant, args, seed, encoder)
        self.seconds = time.process_time() - self.begun

    def _fit(
        self, variant: Variant, args: argparse.Namespace, seed: int, encoder: nn.Module | None
    ) -> JointEmbedding:
        if not variant.encoder:
            return self._train("resnet18")  # a name has no meaning where images are features
        if variant.encoder == "fresh":
            return self._train(build_encoder(self.data, args, seed))
        assert encoder is not None
        if variant.encoder == "frozen":
            return self._train(encoder, freeze=True)
        first = self.settings["epochs"] // 2
        model = self._train(encoder, freeze=True, epochs=first, milestones=[])
        model.freeze(False)  # the thesis's protocol: at a tenth of the rate
        own = {"lr": self.lr / 10, "epochs": self.settings["epochs"] - first, "milestones": []}
        for name in ("dim", "text_width", "word_dim", "width", "min_count"):
            self.settings.pop(name)
        return self._train(model, **own)

    def _train(self, model: str | nn.Module, **settings: Any) -> JointEmbedding:
        trainer = RetrievalTrainer(model, data=self.data, **(self.settings | settings))
        for _ in range(trainer.loop.config.epochs):
            trainer.fit(len(trainer.history) + 1)
            row = trainer.history[-1]
            self.curve.append(row["rsum"])
            if self.curve[-1] > max(self.curve[:-1], default=-1.0):
                self.told = {name: row[name] for name in TOLD if name in row}
                self.best = len(self.curve), copy.deepcopy(trainer.model.state_dict())
            if (epoch := len(self.curve)) in self.looked_at and not trainer.model.order:
                self.hardest[str(epoch)] = hardest_distances(trainer.model, self.sets["train"])
        return trainer.model

    def part(self) -> Part:
        final = tested(self.model, self.sets["test"])
        epoch, weights = self.best
        self.model.load_state_dict(weights)
        return self.told | {
            "lr": self.lr, "training_seconds": self.seconds, "curve": self.curve, "best_epoch": epoch,
            "final": final, "best": tested(self.model, self.sets["test"]), "hardest": self.hardest,
        }  # fmt: skip


def tested(model: JointEmbedding, test: Pairs) -> dict[str, float]:
    """Of images with concepts rsum of the worst one too; a group's is that of its first image."""
    found, concepts = embed(model, test), None
    groups = found.image_group, found.caption_group
    if isinstance(test.images, ImageSet):
        ids = test.image_group.tolist()
        concepts = [int(test.images.target[ids.index(group)]) for group in ids]
    of = evaluate(found.image, found.caption, *groups, concepts, similarity=found.similarity)
    worst = of.worst_concept
    return of.measures | ({} if worst is None else {WORST: of.concepts[worst]["rsum"]})


def hardest_distances(model: JointEmbedding, train: Pairs) -> dict[str, Any]:
    """1 - cosine of each image to its hardest caption, and of each caption to its hardest image."""
    found = embed(model, train)
    image, caption = (nn.functional.normalize(x, dim=1) for x in (found.image, found.caption))
    hardest = ops.hardest_negatives(image, caption, train.image_group, train.caption_group)
    distance = 1 - torch.cat([hardest.caption_score, hardest.image_score]).double()
    count = np.histogram(distance.numpy(), BINS)[0]
    return {"skewness": float(skew(distance.numpy())), "count": count.tolist()}


# --- all of them


@dataclass(frozen=True)
class Trial:
    data: str
    name: str
    variant: Variant
    at: tuple[int, int]
    """split, seed"""
    out: Path
    training: Mapping[str, Any]

    @property
    def parts(self) -> Parts:
        split, seed = self.at
        return Parts(self.out / "trials" / file_name(f"{self.short} {self.name} {split} {seed}"))

    @property
    def of(self) -> dict[str, Any]:
        """What its files must be of."""
        return {
            "data": self.short, "variant": asdict(self.variant), "split": self.at[0],
            "seed": self.at[1], "training": self.training,
        }  # fmt: skip

    @property
    def short(self) -> str:
        return Path(self.data).stem


def trials(args: argparse.Namespace) -> Iterator[Trial]:
    """With one seed on each split, then with another, and what is beside the comparisons at the end."""
    features = [data for data in args.data if data != EMOJI]
    images = [data for data in args.data if data == EMOJI]
    every = [(features, OF_FEATURES), (images, OF_IMAGES)]
    beside = [(features, BESIDE_FEATURES), (images, BESIDE_IMAGES)]
    for seed, rounds in [*((seed, every) for seed in range(args.seeds)), (0, beside)]:
        for split in range(args.splits):
            at = split, (split + seed) % args.seeds
            for of, variants in rounds:
                for data in of:
                    for name, variant in variants.items():
                        if variant.settings.get("negatives", 0) > args.batch_size:
                            continue  # a part of a batch is smaller than it
                        yield Trial(data, name, variant, at, args.out, training(args, variant))


class Search(NamedTuple):
    """Where the search of a trial's learning rate stands."""

    found: dict[float, Part]
    """of the rates tried"""
    coming: float | None
    """the rate to try next"""
    through: bool


def search(args: argparse.Namespace, trial: Trial) -> Search:
    """Of another seed it waits for the split's own, whose rate it takes."""
    found = {}
    split, seed = trial.at
    if (taken := known_rates(args.rates).get((trial.short, trial.name, split))) is not None:
        part = trial.parts.read(f"lr {taken:g}", trial.of | {"lr": taken})
        return Search({}, taken, False) if part is None else Search({taken: part}, None, True)
    for lr in sorted({lr * 2.0**k for lr in args.lr for k in range(-FARTHEST, FARTHEST + 1)}):
        part = trial.parts.read(f"lr {lr:g}", trial.of | {"lr": lr})
        if part is not None:
            found[lr] = part
    if seed == split % args.seeds:
        coming = next_rate(args.lr, {lr: chosen_by(part) for lr, part in found.items()})
        return Search(found, coming, coming is None)
    own = search(args, replace(trial, at=(split, split % args.seeds)))
    if not own.through:
        return Search(found, None, False)
    taken = best_of(own.found)
    if taken not in found:
        return Search({}, taken, False)
    return Search({taken: found[taken]}, None, True)


@cache
def known_rates(table: Path | None) -> dict[tuple[str, str, int], float]:
    """By data, variant and split, of the trials in a table of an earlier search."""
    if table is None:
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        return {
            (row["data"], row["variant"], int(row["split"])): float(row["lr"])
            for row in csv.DictReader(file)
        }


def next_rate(begin: Sequence[float], score: Mapping[float, float]) -> float | None:
    """The first of ``begin`` that has no score; then one beside the best, half or twice as high."""
    for lr in begin:
        if lr not in score:
            return lr
    best = max(score, key=lambda lr: score[lr])
    ends = min(begin) / 2**FARTHEST, max(begin) * 2**FARTHEST
    beside = (lr for lr in (best / 2, best * 2) if lr not in score and ends[0] <= lr <= ends[1])
    return next(beside, None)


def chosen_by(part: Part) -> float:
    """rsum of the best epoch on validation pairs."""
    return max(part.get("curve", [-1.0]))


def best_of(found: Mapping[float, Part]) -> float:
    return max(found, key=lambda lr: chosen_by(found[lr]))


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each trial that is through, with what the learning rate came to that is best on the
    validation part; without, where all have collapsed."""
    rows = []
    for trial in trials(args):
        found, _, through = search(args, trial)
        if not through:
            continue
        best = found[best_of(found)]
        row = {
            "data": trial.short, "variant": trial.name, "at": trial.at, "of": trial.of,
            "sizes": best["sizes"], "lrs": list(found),
            "collapsed": sum("collapsed" in part for part in found.values()),
        }  # fmt: skip
        rows.append((best if "curve" in best else {}) | row)
    return rows


def work(args: argparse.Namespace) -> None:
    opened = cache(open_pairs)

    @cache
    def encoder(data: str, at: tuple[int, int]) -> nn.Module:
        return classifier(split_of(opened(data), at[0])["train"], args, at[1])

    for trial in trials(args):
        while (lr := search(args, trial).coming) is not None:
            with claimed(trial.parts.folder) as mine:
                if not mine:  # another's
                    break
                sets = split_of(opened(trial.data), trial.at[0])
                own = partial(encoder, trial.data, trial.at)
                make = partial(train, trial.variant, sets, args, trial.at[1], lr, own)
                part = trial.parts.keep(f"lr {lr:g}", trial.of | {"lr": lr}, make)
            shown = f"rsum {part['best']['rsum']:.1f}" if "best" in part else "collapsed"
            where = f"split {trial.at[0]}, seed {trial.at[1]}, lr {lr:g}"
            print(f"{trial.name}, {where}: {shown}  {part['processor_seconds']:.0f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help='an .npz of features and captions, "emoji"')
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--splits", type=int, choices=range(1, SPLITS + 1), default=SPLITS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60, help="on features")
    parser.add_argument("--image-epochs", type=int, default=24, help="where images are encoded")
    parser.add_argument(
        "--lr", type=float, nargs="+", default=[1e-3, 2e-3], help="where its search begins"
    )
    parser.add_argument("--rates", type=Path, help="take the learning rates of this trials.csv")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--text-width", type=int, default=128)
    parser.add_argument("--word-dim", type=int, default=128)
    parser.add_argument("--width", type=int, default=16, help="of the image encoder")
    parser.add_argument("--page", type=Path, help="write this Markdown page, train nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.page is None:
        work(args)
    else:
        of_all = len(list(trials(args)))
        write_page(rows(args), args.page, of_all)


if __name__ == "__main__":
    main()
