"""Hard negatives in joint embeddings: the comparisons of the thesis's chapter 3, in small, and more.

    python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse
    python examples/retrieval_evidence.py FEATURES.npz emoji --out runs/vse --page PAGE.md
    python examples/retrieval_evidence.py emoji --out runs/look --splits 1 --image-epochs 2    # a look

FEATURES.npz holds features [N, F] of N images and captions [N, C], texts; "emoji" is the embedded set.
A trial is a variant, a split and a seed. Each learning rate of it is a file in --out: the same command
goes on after any end, and several may run on one --out; --page writes what is there, and trains nothing.
The main comparison has all splits x seeds, the others seed s on split s.

A split tests on a fifth of the groups, each split on another, holds a seventh of them for validation, and
trains on the rest; the vocabulary is of that rest. The learning rate and the epoch are chosen by rsum on
the validation part, for each trial on its own; nothing is chosen on test images. Only λ of q is chosen by
the worst concept of the validation part, at that epoch. Of one split and seed all variants have the same
pairs, first weights (where shapes agree) and order.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retrieval_page import write_page
from retrieval_rows import BINS, LAMBDAS, OF_Q, WORST
from scipy.stats import skew
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer, ops
from hrrl_ext.data import ImageSet
from hrrl_ext.models import build_model
from hrrl_ext.retrieval import JointEmbedding, Pairs, RetrievalTrainer, embed, evaluate, load_pairs
from hrrl_ext.transfer.study.config import file_name
from hrrl_ext.transfer.study.parts import Part, Parts
from hrrl_ext.transfer.study.queue import claimed

Sets = dict[str, Pairs]
Encoder = Callable[[], nn.Module]
SPLITS = 5
"""Each tests on another fifth."""
EMOJI = "emoji"
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
MAIN = {"VSE++": Variant(), "SH": Variant(settings=SH), "VSE0": Variant("VSE0")}
FURTHER = {
    "VSE++, no mask": Variant(masked=False),
    "SH, no mask": Variant(settings=SH, masked=False),
    "Order++": Variant("Order++"),
    "Order0": Variant("Order0"),
    "VSE++, free lengths": Variant(settings={"normalise_image": False}),
    "VSE++, begun by SH": Variant(settings={"warmup_loss": "sum_hinge", "warmup_for": 5}),
    "InfoNCE": Variant(settings={"loss": "info_nce"}),
    "SigLIP": Variant(settings={"loss": "sigmoid"}),
}
NEGATIVES = {
    **{f"VSE++, {n} negatives": Variant(settings={"negatives": n}) for n in (2, 4, 8, 16, 32, 64)},
    **{f"VSE++, {n} negatives": Variant(settings={"batch_size": n}) for n in (256, 512)},
}
BY_QUEUE = {
    f"VSE++, {n} negatives by queue": Variant(settings={"queue": n - 128})
    for n in (256, 512, 1024, 2048)
}
"""The batch, and those before it as they were embedded then."""
OF_IMAGES = {
    f"{loss}, {encoder}": Variant(settings=settings, encoder=encoder)
    for encoder in ("frozen", "fine-tuned", "fresh")
    for loss, settings in (("VSE++", {}), ("SH", SH))
}
BY_CONCEPT = {"concepts": "classes", "validation_concepts": "classes", "s": 100}
WITH_Q = {
    f"VSE++, {encoder}{OF_Q}{lam:g}": Variant(settings=BY_CONCEPT | {"lam": lam}, encoder=encoder)
    for encoder in ("frozen", "fresh")
    for lam in LAMBDAS
}


# --- data


def open_pairs(where: str) -> Pairs:
    if where == EMOJI:
        return load_pairs(EMOJI, split="all")
    with np.load(where, allow_pickle=False) as archive:
        features, captions = archive["features"].astype(np.float32), archive["captions"]
    return load_pairs((features, [[str(text) for text in texts] for texts in captions]))


def split_of(pairs: Pairs, number: int) -> Sets:
    groups = pairs.image_group.unique()
    order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    fifths = list(order.tensor_split(SPLITS))
    test = fifths.pop(number)
    rest = torch.cat(fifths)
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(1 + number))]
    held = len(order) // 7
    parts = {"train": rest[held:], "validation": rest[:held], "test": test}
    return {name: of_groups(pairs, part, name) for name, part in parts.items()}


def of_groups(pairs: Pairs, groups: Tensor, name: str) -> Pairs:
    rows = torch.isin(pairs.image_group, groups).nonzero().flatten()
    place = torch.full((len(pairs.images),), -1)
    place[rows] = torch.arange(len(rows))
    owner = place[pairs.owner]
    captions = [text for text, of in zip(pairs.captions, owner.tolist(), strict=True) if of >= 0]
    return Pairs(
        taken(pairs.images, rows), captions, owner[owner >= 0], group=pairs.image_group[rows],
        name=name,
    )  # fmt: skip


def taken(images: ImageSet | Tensor, rows: Tensor) -> ImageSet | Tensor:
    return images.subset(rows) if isinstance(images, ImageSet) else images[rows]


def without_mask(pairs: Pairs) -> Pairs:
    """Every pair with an image, and a group, of its own."""
    return Pairs(taken(pairs.images, pairs.owner), pairs.captions, range(len(pairs)))


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


def trial(
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


def trials(
    args: argparse.Namespace,
) -> Iterator[tuple[str, str, Variant, tuple[int, int], Parts, dict[str, Any]]]:
    """The main comparison with seed s on split s, then others so, then the main one in full."""
    diagonal = [(k, k) for k in range(min(args.splits, args.seeds))]
    every = [(split, seed) for split in range(args.splits) for seed in range(args.seeds)]
    features = [data for data in args.data if data != EMOJI]
    images = [data for data in args.data if data == EMOJI]
    rounds = [
        (features, MAIN, diagonal),
        (features, FURTHER, diagonal),
        (images, OF_IMAGES, diagonal),
        (features, NEGATIVES, diagonal),
        (images, WITH_Q, diagonal),
        (features, MAIN, [at for at in every if at not in diagonal]),
        (features, BY_QUEUE, diagonal),
    ]
    for of, variants, pairs in rounds:
        for at in pairs:
            for data in of:
                for name, variant in variants.items():
                    short = Path(data).stem
                    folder = args.out / "trials" / file_name(f"{short} {name} {at[0]} {at[1]}")
                    described = {
                        "data": short, "variant": asdict(variant), "split": at[0], "seed": at[1],
                        "training": training(args, variant),
                    }  # fmt: skip
                    yield data, name, variant, at, Parts(folder), described


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each trial that is through, with what the learning rate came to that is best on the
    validation part; without, where all have collapsed."""
    found = []
    for data, name, _, at, parts, of in trials(args):
        every = [parts.read(f"lr {lr:g}", of | {"lr": lr}) for lr in args.lr]
        if None in every:
            continue
        through = [part for part in every if part is not None]
        best = max((part for part in through if "curve" in part), key=chosen_by, default={})
        told = {"of": of, "sizes": through[0]["sizes"], "lrs": args.lr}
        collapsed = sum("collapsed" in part for part in through)
        row = {"data": Path(data).stem, "variant": name, "at": at, "collapsed": collapsed}
        found.append(best | row | told)
    return found


def processor_hours(args: argparse.Namespace) -> float:
    """Of all trainings that are through."""
    seconds = 0.0
    for *_, parts, of in trials(args):
        for lr in args.lr:
            part = parts.read(f"lr {lr:g}", of | {"lr": lr})
            seconds += 0.0 if part is None else part["processor_seconds"]
    return seconds / 3600


def chosen_by(part: Part) -> float:
    best: float = max(part["curve"])
    return best


def work(args: argparse.Namespace) -> None:
    opened = cache(open_pairs)

    @cache
    def encoder(data: str, at: tuple[int, int]) -> nn.Module:
        return classifier(split_of(opened(data), at[0])["train"], args, at[1])

    for data, name, variant, at, parts, described in trials(args):
        for lr in args.lr:
            of = described | {"lr": lr}
            if parts.read(f"lr {lr:g}", of) is not None:
                continue
            with claimed(parts.folder) as mine:
                if not mine:  # another's
                    break
                sets, own = split_of(opened(data), at[0]), partial(encoder, data, at)
                make = partial(trial, variant, sets, args, at[1], lr, own)
                part = parts.keep(f"lr {lr:g}", of, make)  # unless it is there by now
            shown = f"rsum {part['best']['rsum']:.1f}" if "best" in part else "collapsed"
            where = f"split {at[0]}, seed {at[1]}, lr {lr:g}"
            print(f"{name}, {where}: {shown}  {part['processor_seconds']:.0f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help='an .npz of features and captions, "emoji"')
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--splits", type=int, choices=range(1, SPLITS + 1), default=SPLITS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60, help="on features")
    parser.add_argument("--image-epochs", type=int, default=24, help="where images are encoded")
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
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
        write_page(rows(args), args.page, of_all, processor_hours(args))


if __name__ == "__main__":
    main()
