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
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

from hrrl_ext.clustering import GradientClustering, MeanGradient, gradient_variance
from hrrl_ext.clustering.examples import cross_entropy

SHARES = (0.0, 0.1, 0.5, 0.9)
REPEATED = 5
ESTIMATORS = ("SG-B", "SG-2B", "SVRG", "GC")


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


def measured(args: argparse.Namespace, share: float, seed: int) -> list[dict[str, object]]:
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
    clustering, rows = GradientClustering(student, args.batch_size, seed=seed), []
    for step in range(args.steps + 1):
        if step % args.every == 0:
            clustering.fit(data, rounds=args.rounds)
            if step % (10 * args.every) == 0:
                snapshot = MeanGradient(student, data).snapshot()
            found = gradient_variance(
                student, data, ESTIMATORS, assignment=clustering.assignment, snapshot=snapshot,
                batch_size=args.batch_size, seed=step,
            )  # fmt: skip
            together = pure(clustering.assignment, copies)
            rows += [
                {
                    "share": share, "seed": seed, "step": step, "estimator": name,
                    "average_variance": v.average_variance, "standard_error": v.standard_error,
                    "normalised_variance": v.normalised_variance, "found": together,
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


def pure(assignment: Tensor, copies: int) -> float:
    """The share of copies that are in their point's own cluster: its commonest one, if no other's."""
    if copies == 0:
        return float("nan")
    own = assignment[-copies:]
    point = torch.arange(copies) % REPEATED
    home = [int(own[point == p].mode().values) for p in range(REPEATED)]
    right = [
        int((own[point == p] == home[p]).sum()) if home.count(home[p]) == 1 else 0
        for p in range(REPEATED)
    ]
    return sum(right) / copies


def table(rows: list[dict[str, object]], steps: int) -> str:
    """Mean over the last 70 % of the steps, over SG-B's; mean ± standard deviation over the seeds."""
    lines = ["| repeated | " + " | ".join(ESTIMATORS[1:]) + " | copies in their own cluster |"]
    lines.append("| ---: |" + " ---: |" * 4)
    for share in SHARES:
        cells = []
        late = [r for r in rows if r["share"] == share and int(str(r["step"])) >= 0.3 * steps]
        seeds = sorted({int(str(r["seed"])) for r in late})

        def mean(seed: int, name: str, column: str, late: list[dict[str, object]] = late) -> float:
            return statistics.fmean(
                float(str(r[column])) for r in late if r["seed"] == seed and r["estimator"] == name
            )

        for name in ESTIMATORS[1:]:
            ratio = [
                mean(s, name, "average_variance") / mean(s, "SG-B", "average_variance")
                for s in seeds
            ]
            cells.append(spread(ratio, "{:.2f}"))
        own = [100 * mean(s, "GC", "found") for s in seeds]
        cells.append(spread(own, "{:.0f}") + " %" if share else "–")
        lines.append(f"| {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    text = form.format(statistics.fmean(values))
    return text + (" ± " + form.format(statistics.stdev(values)) if len(values) > 1 else "")


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(SHARES), figsize=(13, 3.2), sharey=True, layout="constrained"
    )
    for axis, share in zip(axes, SHARES, strict=True):
        here = [r for r in rows if r["share"] == share and r["seed"] == rows[0]["seed"]]
        for name in ESTIMATORS:
            line = [r for r in here if r["estimator"] == name]
            axis.plot([r["step"] for r in line], [r["average_variance"] for r in line], label=name)
        axis.set(title=f"{share:.0%} repeated", xlabel="step", yscale="log")
    axes[0].set_ylabel("average variance")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
