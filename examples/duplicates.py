"""Random features with repeated points (thesis, Fig. 4.8): does gradient clustering find them?

    python examples/duplicates.py --out docs/results/duplicates

Points x ~ N(0, I) are labelled by a teacher of one hidden layer; the student trains the last layer
over 1,000 frozen random features. Five of the N points are repeated to make up a share of the data.
Plain mini-batch SGD trains, and at regular steps the variance of each estimator of the mean gradient
is measured at the weights of that step, the clusters being found anew just before.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrrl_ext.clustering import GradientClustering, MeanGradient, gradient_variance
from hrrl_ext.clustering.examples import cross_entropy

SHARES = (0.0, 0.1, 0.5, 0.9)
REPEATED = 5
PLAIN = ("SG-B", "SG-2B", "SVRG")
STRATA: dict[str, Any] = {"GC": True, "GC, frozen sizes": "frozen", "GC, k-means": False}
"""The A step of each: see GradientClustering's ``weighted``."""
ESTIMATORS = (*PLAIN, *STRATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for trials.csv and the picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=1000, help="N")
    parser.add_argument("--features", type=int, default=1000, help="of the student")
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--teacher", type=int, default=100, help="hidden units of the teacher")
    parser.add_argument("--batch-size", type=int, default=10, help="B, and the number of clusters")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--rounds", type=int, default=5, help="of clustering, before each of them")
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()
    rows = []
    for share in SHARES:
        for seed in args.seeds:
            rows += measured(args, share, seed)
            print(f"share {share:.0%}  seed {seed}  done", flush=True)
    print("\n" + table(rows, args.steps))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        with (args.out / "trials.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, args.out / "variance.png")


def measured(args: argparse.Namespace, share: float, seed: int) -> list[dict[str, Any]]:
    """One training run: a row per measurement and estimator."""
    torch.manual_seed(seed)
    x, target = points(args)
    copies = round(share * args.examples)
    if copies:
        again = torch.arange(copies) % REPEATED
        x[-copies:], target[-copies:] = x[again], target[again]
    features = nn.functional.normalize(torch.randn(args.features, args.inputs), dim=1)
    data = torch.relu(x @ features.T), target  # frozen: computed once
    student = nn.Linear(args.features, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=args.lr)
    strata = {
        name: GradientClustering(student, args.batch_size, weighted=weighted, seed=seed)
        for name, weighted in STRATA.items()
    }
    rows: list[dict[str, Any]] = []
    for step in range(args.steps + 1):
        if step % args.every == 0:
            if step % (10 * args.every) == 0:
                snapshot = MeanGradient(student, data).snapshot()
            same: dict[str, Any] = {"batch_size": args.batch_size, "seed": step}
            found = dict(gradient_variance(student, data, PLAIN, snapshot=snapshot, **same))
            for name, clustering in strata.items():
                clustering.fit(data, rounds=args.rounds)
                assignment = clustering.assignment
                found[name] = gradient_variance(
                    student, data, ["GC"], assignment=assignment, **same
                )["GC"]
            rows += [
                {
                    "share": share, "seed": seed, "step": step, "estimator": name,
                    "average_variance": v.average_variance, "standard_error": v.standard_error,
                    "normalised_variance": v.normalised_variance,
                    "together": together(strata[name].assignment, copies) if name in strata else "",
                }
                for name, v in found.items()
            ]  # fmt: skip
        batch = torch.randint(args.examples, (args.batch_size,))
        optimizer.zero_grad()
        cross_entropy(student(data[0][batch]), target[batch]).mean().backward()
        optimizer.step()
    return rows


def points(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    x = torch.randn(args.examples, args.inputs)
    hidden = torch.relu(x @ nn.functional.normalize(torch.randn(args.inputs, args.teacher), dim=0))
    score = hidden @ torch.randn(args.teacher) + torch.randn(())
    return x, (score > score.median()).long()  # two halves, whatever the teacher's offset


def together(assignment: Tensor, copies: int) -> float | str:
    """The share of copies that are in the commonest cluster of the copies of their point."""
    if copies == 0:
        return ""
    own, point = assignment[-copies:], torch.arange(copies) % REPEATED
    home = torch.stack([own[point == p].mode().values for p in range(REPEATED)])
    return (own == home[point]).double().mean().item()


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """Mean over the last 70 % of the steps, over SG-B's; mean ± standard deviation over the seeds."""
    names = ESTIMATORS[1:]
    lines = ["| repeated | " + " | ".join(names) + " | copies together (GC) |"]
    lines.append("| ---: |" + " ---: |" * (len(names) + 1))
    for share in SHARES:
        late = [r for r in rows if r["share"] == share and r["step"] >= 0.3 * steps]
        seeds = sorted({r["seed"] for r in late})

        def mean(seed: int, name: str, column: str, late: list[dict[str, Any]] = late) -> float:
            return statistics.fmean(
                r[column] for r in late if (r["seed"], r["estimator"]) == (seed, name)
            )

        def over_plain(seed: int, name: str) -> float:
            column = "average_variance"
            return mean(seed, name, column) / mean(seed, "SG-B", column)

        cells = [spread([over_plain(s, name) for s in seeds], "{:.2f}") for name in names]
        if share:
            cells.append(spread([100 * mean(s, "GC", "together") for s in seeds], "{:.1f}") + " %")
        else:
            cells.append("–")
        lines.append(f"| {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    text = form.format(statistics.fmean(values))
    return text + (" ± " + form.format(statistics.stdev(values)) if len(values) > 1 else "")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(SHARES), figsize=(13, 3.6), sharey=True, layout="constrained"
    )
    for axis, share in zip(axes, SHARES, strict=True):
        here = [r for r in rows if r["share"] == share and r["seed"] == rows[0]["seed"]]
        for name in ESTIMATORS:
            line = [r for r in here if r["estimator"] == name]
            height = [
                r["average_variance"] if r["average_variance"] > 1e-20 else math.nan for r in line
            ]  # 0 of SVRG at its snapshot
            axis.plot([r["step"] for r in line], height, label=name)
        axis.set(title=f"{share:.0%} repeated", xlabel="step", yscale="log")
    axes[0].set_ylabel("average variance")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
