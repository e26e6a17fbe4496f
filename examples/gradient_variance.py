"""How noisy the gradient is in the course of training: the thesis's Fig. 4.3, and 4.7 with copies.

    python examples/gradient_variance.py --mlp fashion-mnist-train.npz --resnet8 cifar10-train.npz \\
        --out docs/results/gradient-variance --page docs/results/gradient-variance.md

An MLP of 784-1024-1024-10 learns Fashion-MNIST, and a ResNet-8 without batch normalisation CIFAR-10, by
plain mini-batch SGD. On its trajectory the variance of SG-B, SG-2B, SVRG and GC with both kinds of
centre is measured at regular steps; clusters and snapshot are made anew every so often, by the
schedule of the thesis's Table A.2 in proportion. Once the images are all different, once 10 of them are
repeated to make up two thirds of the set.

A run that is over is in trials.csv of the folder --out: the same command goes on after an interruption,
and without --mlp and --resnet8 it only draws.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrrl_ext._tables import with_tables
from hrrl_ext.clustering import GradientClustering, VarianceRecorder
from hrrl_ext.clustering.examples import cross_entropy
from hrrl_ext.data import ImageSet, load_images
from hrrl_ext.models import Normalise
from hrrl_ext.plots import plot_variances

REPEATED = 10  # images
SHARES = (0.0, 2 / 3)  # of the set that are copies of these
CENTRES = ("svd", "mean")
ESTIMATORS = ("SG-B", "SG-2B", "SVRG", *(f"GC, {centre}" for centre in CENTRES))
Row = dict[str, Any]


class MLP(nn.Module):
    """784-1024-1024-10; of a grey image that is stored in three channels it takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise((0.286,), (0.353,))
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
            nn.Linear(1024, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.normalise(x[:, :1]))


class Block(nn.Module):
    """relu(F(x) + x), F two 3x3 convolutions with biases; a 1x1 projects x where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        same = stride == 1 and inputs == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def resnet8(width: int = 8) -> nn.Module:
    """One block a stage; He et al. have 16 channels in the first."""
    return nn.Sequential(
        Normalise((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
        Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Table A.2, the times in shares of the training."""

    network: Callable[[], nn.Module]
    lr: float
    momentum: float
    milestones: tuple[float, ...]
    """where lr falls to a tenth"""
    refreshes: int
    """T / U"""
    rounds: int
    """GC T"""


CASES = {
    "MLP": Case(MLP, 0.02, 0.5, (), refreshes=5, rounds=5),
    "ResNet-8": Case(resnet8, 0.01, 0.9, (0.5, 0.75), refreshes=4, rounds=3),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mlp", help="grey images of 28 x 28, whatever load_images opens")
    parser.add_argument("--resnet8", help="images in colour")
    parser.add_argument("--out", type=Path, required=True, help="folder for trials and picture")
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=4000, help="N, the copies included")
    parser.add_argument("--batch-size", type=int, default=32, help="B = K, and of training")
    parser.add_argument("--steps", type=int, default=3200, help="T")
    parser.add_argument("--measurements", type=int, default=20, help="T / Log T")
    parser.add_argument("--batches", type=int, default=20, help="estimates of each, Estim T")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    check_settings(args)
    trials = args.out / "trials.csv"
    rows = read(trials)
    done = {(row["case"], row["repeated"], row["seed"]) for row in rows}
    sources = {"MLP": args.mlp, "ResNet-8": args.resnet8}
    for seed, case, share in itertools.product(args.seeds, CASES, SHARES):
        if sources[case] is not None and (case, round(share, 2), seed) not in done:
            images = drawn(load_images(sources[case], split="train"), share, args.images, seed)
            rows += measured(args, case, images, round(share * args.images), seed)
            write(rows, trials)
            rows = read(trials)
    if not rows:
        parser.error(f"{trials} has no run yet: give --mlp or --resnet8")
    plot_variances(curves(rows), args.out)
    tables = {"ratios": ratios(rows), "course": course(rows)}
    print("\n" + "\n\n".join(tables.values()))
    if args.page is not None:
        args.page.write_text(with_tables(args.page, tables), encoding="utf-8")


def check_settings(args: argparse.Namespace) -> None:
    """Before the first run: what does not divide, and runs of other settings, which share no table."""
    if args.steps % args.measurements or any(
        args.measurements % case.refreshes for case in CASES.values()
    ):
        refreshes = " and ".join(str(case.refreshes) for case in CASES.values())
        raise ValueError(
            f"--measurements must divide --steps, and be a multiple of {refreshes} (refreshes), "
            f"got {args.measurements} and {args.steps}"
        )
    names = ("images", "batch_size", "steps", "measurements", "batches")
    own = {name: getattr(args, name) for name in names}
    file = args.out / "settings.json"
    if file.exists() and (other := json.loads(file.read_text(encoding="utf-8"))) != own:
        raise ValueError(f"{args.out} has runs with {other}, asked for {own}; take another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(own) + "\n", encoding="utf-8")


# --- a run


def drawn(images: ImageSet, share: float, count: int, seed: int) -> ImageSet:
    """``count`` images, the last ``share`` of which are copies of the first few, in turn."""
    if count > len(images):
        raise ValueError(f"--images {count}: {images.name} has {len(images)} only")
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    copies = round(share * count)
    again = rows[torch.arange(copies) % REPEATED]
    return images.subset(torch.cat([rows[: count - copies], again]))


def measured(
    args: argparse.Namespace, name: str, images: ImageSet, copies: int, seed: int
) -> list[Row]:
    """One training run: a row per measurement and estimator."""
    case = CASES[name]
    torch.manual_seed(seed)
    model = case.network().to(args.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=case.lr, momentum=case.momentum, weight_decay=5e-4
    )
    milestones = [round(share * args.steps) for share in case.milestones]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    every, rows = args.steps // args.measurements, []
    with tempfile.TemporaryDirectory() as folder:

        def recorder(centre: Literal["svd", "mean"], estimators: Iterable[str]) -> VarianceRecorder:
            clustering = GradientClustering(model, args.batch_size, center=centre, seed=seed)
            return VarianceRecorder(
                model, images, Path(folder) / f"{centre}.jsonl", list(estimators),
                every=every, refresh_every=args.steps // case.refreshes, rounds=case.rounds,
                clustering=clustering, batch_size=args.batch_size, num_batches=args.batches,
                seed=seed,
            )  # fmt: skip

        # On one trajectory: neither leaves a trace in the training.
        recorders = {
            "svd": recorder("svd", ["SG-B", "SG-2B", "SVRG", "GC"]),
            "mean": recorder("mean", ["GC"]),
        }
        for step, batch in zip(range(args.steps), batches(args, seed), strict=False):
            if step % every == 0:
                known = {"case": name, "repeated": round(copies / len(images), 2), "seed": seed}
                known |= {"step": step, "loss": f"{mean_loss(model, images, args.device):.4g}"}
                rows += [known | row for row in record(recorders, step, copies)]
                print(" ".join(f"{k} {v}" for k, v in known.items()), flush=True)
            x, target = (t.to(args.device) for t in images.__getitems__(batch))
            optimizer.zero_grad()
            cross_entropy(model(x.float() / 255), target).mean().backward()
            optimizer.step()
            schedule.step()
    return rows


def batches(args: argparse.Namespace, seed: int) -> Iterable[Tensor]:
    """Rows of the set, epoch by epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(args.images, generator=generator)
        yield from order[: args.images - args.images % args.batch_size].split(args.batch_size)


@torch.no_grad()
def mean_loss(model: nn.Module, images: ImageSet, device: str) -> float:
    total = 0.0
    for rows in torch.arange(len(images)).split(500):
        x, target = (t.to(device) for t in images.__getitems__(rows))
        total += cross_entropy(model(x.float() / 255), target).sum().item()
    return total / len(images)


def record(recorders: dict[str, VarianceRecorder], step: int, copies: int) -> list[Row]:
    columns = ("average_variance", "standard_error", "normalised_variance")
    rows = []
    for centre, recorder in recorders.items():
        recorder(step)
        for row in (row for row in recorder.rows if row["step"] == step):
            own = {name: row[name] for name in ("estimator", "refreshed")}
            own |= {name: f"{row[name]:.5g}" for name in columns} | {
                "explained": "",
                "together": "",
            }
            clustering = recorder.clustering
            if row["estimator"] == "GC" and clustering is not None:
                own["estimator"] = f"GC, {centre}"
                own["explained"] = f"{clustering.history[-1]['explained']:.3f}"
                own["together"] = together(clustering.assignment, copies)
            rows.append(own)
    return rows


def together(assignment: Tensor, copies: int) -> str:
    """The share of copies that are in the commonest cluster of the copies of their image."""
    if copies == 0:
        return ""
    own, image = assignment[-copies:], torch.arange(copies) % REPEATED
    home = torch.stack([own[image == i].mode().values for i in range(REPEATED)])
    return f"{(own == home[image]).double().mean().item():.3f}"


def write(rows: list[Row], path: Path) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {k: v if k in ("case", "estimator") else json.loads(v or "null") for k, v in r.items()}
            for r in csv.DictReader(file)
        ]


# --- tables and picture


def by_run(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of all seeds, by case and share of copies."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        copies = f", {row['repeated']:.0%} copies" if row["repeated"] else ""
        found.setdefault(row["case"] + copies, []).append(row)
    return found


def ratios(rows: list[Row]) -> str:
    """A table for each case. The first three columns are means of the variance over SG-B's."""
    columns = (
        "over SG-B", "right after a refresh", "just before one", "below SG-B", "below SG-2B",
        "explained", "copies together",
    )  # fmt: skip
    parts = []
    for name, own in by_run(rows).items():
        lines = [f"| {name} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        lines += [f"| {e} | " + " | ".join(cells(own, e)) + " |" for e in ESTIMATORS[1:]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def cells(rows: list[Row], estimator: str) -> list[str]:
    """Mean ± standard deviation over the seeds, each of which is a mean over its measurements."""
    refreshed = {row["step"] for row in rows if row["step"] == row["refreshed"]}
    steps = {row["step"] for row in rows}
    before = {step for step, after in itertools.pairwise(sorted(steps)) if after in refreshed}

    def values(seed: int, name: str, column: str, at: Iterable[int] = steps) -> list[float]:
        chosen = [
            r for r in rows if (r["seed"], r["estimator"]) == (seed, name) and r["step"] in at
        ]
        return [row[column] for row in chosen if row[column] is not None]

    def over_plain(seed: int, at: Iterable[int]) -> list[float]:
        own, plain = (
            statistics.fmean(values(seed, name, "average_variance", at))
            for name in (estimator, "SG-B")
        )
        return [own / plain]

    def below(seed: int, other: str) -> list[float]:
        pairs = zip(*(values(seed, n, "average_variance") for n in (estimator, other)), strict=True)
        return [float(own < others) for own, others in pairs]

    def mean(of: Callable[..., list[float]], form: str, *more: Any) -> str:
        found = [of(seed, *more) for seed in sorted({row["seed"] for row in rows})]
        return spread([statistics.fmean(each) for each in found if each], form)

    return [
        *(mean(over_plain, "{:.2f}", at) for at in (steps, refreshed, before)),
        *(mean(below, "{:.0%}", other) for other in ("SG-B", "SG-2B")),
        *(mean(values, "{:.0%}", estimator, column) for column in ("explained", "together")),
    ]


def course(rows: list[Row]) -> str:
    """Of SG-B, at the first measurement of every quarter and the last one; mean over the seeds."""
    steps = sorted({row["step"] for row in rows})
    chosen = sorted({steps[len(steps) * i // 4] for i in range(4)} | {steps[-1]})
    lines = ["| | | " + " | ".join(f"step {step:,}" for step in chosen) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(chosen))
    for name, own in by_run(rows).items():
        for column, form in (
            ("loss", "{:.3f}"), ("average_variance", "{:.1e}"), ("normalised_variance", "{:.2f}")
        ):  # fmt: skip
            values = [
                [r[column] for r in own if (r["step"], r["estimator"]) == (step, "SG-B")]
                for step in chosen
            ]
            found = " | ".join(spread(v, form) for v in values)
            lines.append(f"| {name} | {column.replace('_', ' ')} | {found} |")
            name = ""
    return "\n".join(lines)


def curves(rows: list[Row]) -> dict[str, list[Row]]:
    """What plot_variances draws: the mean over the seeds, their standard deviation as the error."""
    found: dict[str, list[Row]] = {}
    for name, own in by_run(rows).items():
        groups: dict[tuple[str, int], list[Row]] = {}
        for row in own:
            groups.setdefault((row["estimator"], row["step"]), []).append(row)
        found[name] = []
        for (estimator, step), group in groups.items():
            average, normalised = (
                [row[column] for row in group]
                for column in ("average_variance", "normalised_variance")
            )
            point = {"estimator": estimator, "step": step}
            point["average_variance"] = statistics.fmean(average)
            point["normalised_variance"] = statistics.fmean(normalised)
            point["standard_error"] = statistics.stdev(average) if len(group) > 1 else 0.0
            found[name].append(point)
    return found


def spread(values: list[float], form: str) -> str:
    if not values:
        return ""
    text = form.format(statistics.fmean(values))
    return text + (" ± " + form.format(statistics.stdev(values)) if len(values) > 1 else "")


if __name__ == "__main__":
    main()
