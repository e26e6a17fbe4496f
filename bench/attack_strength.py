"""Accuracy under our attacks and under torchattacks' of the same name, on the same models and points.

    pip install --no-deps torchattacks && pip install requests tqdm
    python bench/attack_strength.py --train cifar10-train.npz --test cifar10-test.npz > strength.md

Two small networks are trained, one plainly and one on PGD's images. An attack is stronger where the
accuracy under it is lower. Both libraries get the same radius, steps, step size, queries and first size
of the squares; both start at random, so every attack is run with three seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from table import markdown
from torch import Tensor, nn

from hrrl_ext.data import ImageSet, load_images
from hrrl_ext.data.image_sets import as_float
from hrrl_ext.evaluation.attacks import apgd, pgd, random_start, square
from hrrl_ext.models import resnet18

SEEDS = (0, 1, 2)
RADII = {"plain": {"linf": 1 / 255, "l2": 0.1}, "adversarial": {"linf": 4 / 255, "l2": 0.4}}
TRAIN_EPS = 8 / 255
Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]


def attacks(steps: int, queries: int) -> dict[tuple[str, str], tuple[Attack, Attack]]:
    """(name, norm) → ours, theirs; each takes model, x, target, eps and a seed."""
    import torchattacks as ta

    def ours(attack: Callable[..., Tensor], **options: Any) -> Attack:
        def run(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
            start = random_start(x, eps, norm=options["norm"], seed=seed)
            return attack(model, x, y, eps, steps=steps, start=start, **options)

        return run

    def our_square(norm: str) -> Attack:
        return lambda m, x, y, e, s: square(m, x, y, e, norm=norm, queries=queries, seed=s)

    def theirs(make: Callable[..., Any]) -> Attack:
        def run(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
            torch.manual_seed(seed)
            return make(model, eps, seed)(x, y)

        return run

    pairs: dict[tuple[str, str], tuple[Attack, Attack]] = {
        ("PGD", "linf"): (
            ours(pgd, norm="linf"),
            theirs(lambda m, e, _: ta.PGD(m, eps=e, alpha=2.5 * e / steps, steps=steps)),
        ),
        ("PGD", "l2"): (
            ours(pgd, norm="l2"),
            theirs(lambda m, e, _: ta.PGDL2(m, eps=e, alpha=2.5 * e / steps, steps=steps)),
        ),
    }
    for norm, name in (("linf", "Linf"), ("l2", "L2")):
        for loss in ("ce", "dlr"):
            pairs[f"APGD-{loss.upper()}", norm] = (
                ours(apgd, norm=norm, loss=loss),
                theirs(
                    lambda m, e, s, name=name, loss=loss: ta.APGD(
                        m, norm=name, eps=e, steps=steps, n_restarts=1, seed=s, loss=loss
                    )
                ),
            )
        pairs["Square", norm] = (
            our_square(norm),
            theirs(
                lambda m, e, s, name=name: ta.Square(m, norm=name, eps=e, n_queries=queries, seed=s)
            ),
        )
    return pairs


def trained(data: ImageSet, epochs: int, width: int, adversarial: bool) -> nn.Module:
    torch.manual_seed(0)
    model = resnet18(data.num_classes, stem="small", width=width)
    batches = len(data) // 64
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(data))[: batches * 64].split(64):
            x, target = data.__getitems__(rows)
            x = as_float(x)
            if adversarial:
                x = pgd(model, x, target, TRAIN_EPS, steps=2, step_size=TRAIN_EPS)
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def right(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) == target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default="digits", help="images to train on")
    parser.add_argument("--test", default="digits", help="images to attack")
    parser.add_argument("--train_images", type=int, default=4000)
    parser.add_argument("--points", type=int, default=100, help="right without an attack")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    train, test = load_images(args.train), load_images(args.test)
    train = train.subset(torch.arange(min(args.train_images, len(train))))
    x, target = test.__getitems__(torch.arange(min(1000, len(test))))
    x = as_float(x).contiguous()  # torchattacks' l2 refuses other layouts
    rows = []
    for kind, radii in RADII.items():
        model = trained(train, args.epochs, args.width, kind == "adversarial")
        chosen = right(model, x, target).nonzero().flatten()[: args.points]
        points, labels = x[chosen], target[chosen]
        print(f"{kind}: {len(points)} points", file=sys.stderr, flush=True)
        for (name, norm), pair in attacks(args.steps, args.queries).items():
            standing = [
                [right(model, run(model, points, labels, radii[norm], s), labels) for s in SEEDS]
                for run in pair
            ]
            us, them = ([100 * one.double().mean().item() for one in side] for side in standing)
            ours, theirs = standing[0][0], standing[1][0]
            difference = statistics.fmean(us) - statistics.fmean(them)
            row = [kind, name, norm, f"{radii[norm]:.4f}", spread(us), spread(them)]
            row += [
                f"{difference:+.1f}",
                f"{int((theirs & ~ours).sum())} / {int((ours & ~theirs).sum())}",
            ]
            rows.append(row)
            print(*row, sep="  ", file=sys.stderr, flush=True)
    columns = ["network", "attack", "norm", "eps", "ours", "torchattacks", "ours - theirs"]
    print(header(args))
    print(markdown([*columns, "broken by one alone, ours / theirs"], rows))


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def header(args: argparse.Namespace) -> str:
    import torchattacks

    options = " ".join(f"--{name} {value}" for name, value in vars(args).items())
    return f"""# Strength of the attacks

Accuracy in % on {args.points} points that are right without an attack, mean ± standard deviation
over seeds {", ".join(map(str, SEEDS))}: lower is stronger. One point is {100 / args.points:g} %. Same
radius, {args.steps} steps, step size 2.5 eps / steps (PGD), {args.queries} queries (Square), random
starts on both sides. torchattacks {torchattacks.__version__}, torch {torch.__version__}. Networks:
ResNet-18 of width {args.width}, {args.epochs} epochs on {args.train_images} images, plainly or on
PGD's images (2 steps, linf 8/255). The last column is of the first seed.

`python bench/attack_strength.py {options}`
"""


if __name__ == "__main__":
    main()
