"""The largest harmless radius of real images, and of linear heads on features: exact, in four norms.

    python examples/linear_real.py --fashion fashion-mnist-train.npz --cifar cifar10-train.npz \\
        --target CIFAR-10 cifar10-train.npz cifar10-test.npz --runs RUN ... \\
        --out docs/results/linear-networks --page docs/results/linear-networks.md

Of pairs of classes: eps* = 1/‖w‖ of the most robust linear classifier for each norm, its duality gap
and seconds, and what each of the four withstands of the attacks that it is not made for. All pairs of
scikit-learn's digits; of Fashion-MNIST and CIFAR-10, where their files are given, five pairs and a draw
per seed.

Of every run folder: its model's features of each target, a `LinearProbe` on them, and the exact radius
of every test example in the space of the normalised features. Runs whose folders have the same name but
for a _NUMBER at its end are seeds of one method; of a folder called "run" the name above it counts.

What is in the CSV files of --out is not measured again. Without files and runs it only draws the tables.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from kept_rows import KeptRows, Row
from linear_page import NORMS
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hrrl_ext._tables import markdown, with_tables
from hrrl_ext.data import ImageSet, few_per_class, load_images
from hrrl_ext.data.image_sets import as_float
from hrrl_ext.linear import MaxMarginClassifier, NotSeparableError, certify
from hrrl_ext.storage import read_json, write_text
from hrrl_ext.training.run_folder import load_model
from hrrl_ext.transfer import extract_features
from hrrl_ext.transfer.probe import LinearProbe

PAIRS = {
    "Fashion-MNIST": [(0, 6), (2, 4), (3, 4), (7, 9), (1, 8)],
    "CIFAR-10": [(0, 8), (3, 5), (1, 9), (4, 7), (2, 6)],
}
"""By class number: pairs that are alike, and one at least that is not."""
EXACT = {"l1": "lp", "l2": "nnls", "linf": "lp", "fourier-l1": "socp"}
ATTACKS = list(NORMS.values())
HEAD_C = 1.0  # of all heads: a search would compare the C that it found, which moves radii by half


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--out", type=Path, required=True, help="folder for the CSV files")
    found.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    found.add_argument("--fashion", type=Path, help="Fashion-MNIST, training images")
    found.add_argument("--cifar", type=Path, help="CIFAR-10, training images")
    found.add_argument("--per-class", type=int, default=200, help="images of a draw")
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the draws")
    found.add_argument("--digits", type=int, nargs="*", default=list(range(10)), help="classes")
    found.add_argument(
        "--runs", type=Path, nargs="+", default=[], help="folders of trained networks"
    )
    found.add_argument(
        "--target", nargs=3, action="append", default=[], metavar=("NAME", "TRAIN", "TEST"),
        help="images that the networks' features are of, resized to the network's",
    )  # fmt: skip
    found.add_argument(
        "--head-per-class", type=int, default=100, help="images that heads learn from"
    )
    found.add_argument(
        "--head-test", type=int, default=1000, help="images that are certified, at most"
    )
    return found


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    pairs = KeptRows(args.out / "pairs.csv", ("data", "pair", "seed", "n"))
    for name, pair, seed, X, y in problems(args):
        if not pairs.has(name, pair, seed, len(y)):
            measured = list(of_pair(X, y))
            pairs.add({"data": name, "pair": pair, "seed": seed, "n": len(y)} | m for m in measured)
            print(
                name,
                pair,
                seed,
                *(f"{m['norm']} {m['seconds']:.1f} s" for m in measured),
                flush=True,
            )
    heads = KeptRows(args.out / "heads.csv", ("method", "seed", "target", "n"))
    for run, target in itertools.product(args.runs, args.target):
        heads.add(of_head(run, target, args, heads))
    tables = {"pairs": pair_table(pairs.rows), "kept": kept_table(pairs.rows)}
    if heads.rows:
        tables["heads"] = head_table(heads.rows)
    print("\n\n".join(tables.values()))
    if args.page is not None:
        write_text(args.page, with_tables(args.page, tables))


# --- pairs of classes


def problems(args: argparse.Namespace) -> Iterator[tuple[str, str, int, np.ndarray, np.ndarray]]:
    """Name, pair, seed, rows in [0, 1] and labels."""
    X, y = load_digits(return_X_y=True)
    for pair in itertools.combinations(args.digits, 2):
        rows = np.isin(y, pair)
        yield "digits", f"{pair[0]}, {pair[1]}", 0, X[rows] / 16, y[rows]
    for name, file in (("Fashion-MNIST", args.fashion), ("CIFAR-10", args.cifar)):
        if file is None:
            continue
        images = load_images(file)
        for pair, seed in itertools.product(PAIRS[name], args.seeds):
            drawn = few_per_class(images, args.per_class, seed)
            drawn = drawn[torch.isin(images.target[drawn], torch.tensor(pair))]
            x, target = images.__getitems__(drawn.tolist())
            if (x == x[:, :1]).all():  # grey images are stored in three equal channels
                x = x[:, :1]
            named = ", ".join(images.classes[c] for c in pair)
            yield name, named, seed, as_float(x).double().flatten(1).numpy(), target.numpy()


def of_pair(X: np.ndarray, y: np.ndarray) -> Iterator[dict[str, object]]:
    """A row per norm: the most robust classifier in it, and what it withstands of every attack."""
    for norm, solver in EXACT.items():
        began = time.process_time()
        try:
            model = MaxMarginClassifier(norm, solver=solver).fit(X, y)  # type: ignore[arg-type]
        except NotSeparableError:
            nothing = {"gap": "", "seconds": time.process_time() - began} | dict.fromkeys(
                ATTACKS, ""
            )
            yield {"d": X.shape[1], "norm": norm, **nothing}
            continue
        seconds = time.process_time() - began
        radii = {of: certify(model, X, y, n).robust_radius for n, of in NORMS.items()}
        yield {"d": X.shape[1], "norm": norm, "gap": model.gap_, "seconds": seconds, **radii}


def pair_table(rows: list[Row]) -> str:
    """eps* in every norm: means and deviations over the draws; of the digits a summary of all pairs."""
    head = ["data", "pair", "n x d", *(f"{attack} eps*" for attack in ATTACKS), "largest gap", "s"]
    lines = [head]
    for (name, pair), own in _grouped(rows, "data", "pair"):
        if name == "digits":
            continue
        lines.append([name, pair, *_eps_cells(own, spread)])
    digits = [r for r in rows if r["data"] == "digits"]
    for label, of in (("least", min), ("median", statistics.median), ("most", max)):
        if digits:
            count = len({r["pair"] for r in digits})
            lines.append(
                [
                    "digits",
                    f"{label} of {count} pairs",
                    *_eps_cells(digits, rounded(of)),
                ]
            )
    return markdown(lines)


def rounded(of: Callable[[list[float]], float]) -> Callable[[list[float]], str]:
    return lambda values: f"{of(values):.4g}"


def _eps_cells(rows: list[Row], cell: Callable[[list[float]], str]) -> list[str]:
    shapes = sorted({int(r["n"]) for r in rows})
    size = f"{shapes[0]}" if len(shapes) == 1 else f"{shapes[0]} to {shapes[-1]}"
    cells = [f"{size} x {rows[0]['d']}"]
    for norm, attack in NORMS.items():
        found = [float(r[attack]) for r in rows if r["norm"] == norm and r[attack]]
        missing = sum(r["norm"] == norm and not r[attack] for r in rows)
        cells.append(
            (cell(found) if found else "") + (f" ({missing} not separable)" if missing else "")
        )
    gaps, seconds = ([float(r[k]) for r in rows if r[k]] for k in ("gap", "seconds"))
    return [*cells, f"{max(gaps, default=float('nan')):.0e}", f"{sum(seconds):.1f}"]


def kept_table(rows: list[Row]) -> str:
    """Of eps*, what each of the four classifiers keeps under each attack: mean ± standard deviation over
    pairs and draws."""
    lines = [["data", "attack", *(f"{norm} classifier" for norm in NORMS)]]
    for (name,), own in _grouped(rows, "data"):
        for best, attack in NORMS.items():
            cells = []
            for norm in NORMS:
                shares = [
                    float(r[attack]) / float(s[attack])
                    for r, s in zip(_of(own, norm), _of(own, best), strict=True)
                    if r[attack] and s[attack]
                ]
                spread = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
                cells.append(f"{statistics.mean(shares):.2f}{spread}" if shares else "")
            lines.append([name, attack, *cells])
    return markdown(lines)


def _of(rows: list[Row], norm: str) -> list[Row]:
    return [r for r in rows if r["norm"] == norm]


# --- heads on features


def method_of(run: Path) -> tuple[str, str]:
    """A method's name and the seed, from a folder's."""
    run = run.resolve()
    name = (run.parent if run.name == "run" else run).name
    method, _, seed = name.rpartition("_")
    return (method, seed) if method and seed.isdigit() else (name, "0")


def load_run(run: Path) -> nn.Module:
    """The best model of a run that looked for it, else the last."""
    return load_model(run, which="best" if (run / "best").exists() else "last")


def image_size(run: Path) -> int:
    """Side of the images that it was trained on."""
    return int(read_json(run / "config.json")["image_size"])


def of_head(
    run: Path, target: list[str], args: argparse.Namespace, kept: KeptRows
) -> Iterator[dict[str, object]]:
    """A row per norm: accuracy, and the exact radius in the space of features of norm 1."""
    method, seed = method_of(run)
    name, *files = target
    if kept.has(method, seed, name, args.head_per_class):
        return
    train, test = (
        load_images(file, split=split, image_size=image_size(run))
        for file, split in zip(files, ("train", "test"), strict=True)
    )
    model = load_run(run)
    rows = few_per_class(train, args.head_per_class, seed=0)
    learned = extract_features(model, part_of(train, rows))
    seen = extract_features(model, part_of(test, torch.arange(min(len(test), args.head_test))))
    head = LinearProbe(C=HEAD_C).fit(learned.features, learned.labels)
    for norm, attack in NORMS.items():
        radius = certify(head, seen.features, seen.labels, norm).radius.double()
        print(method, seed, name, attack, f"{radius.median():.4g}", flush=True)
        yield {
            "method": method, "seed": seed, "target": name, "n": args.head_per_class,
            "d": learned.features.shape[1], "attack": attack,
            "accuracy": (radius > 0).double().mean().item(), "median": radius.median().item(),
            "mean_certified": radius.clamp(min=0).mean().item(),
        }  # fmt: skip


def part_of(images: ImageSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    x, target = images.__getitems__(rows.tolist())
    return as_float(x), target


def head_table(rows: list[Row]) -> str:
    """Accuracy, and the mean certified radius (0 for what is wrong), means and deviations over seeds."""
    lines = [["target", "features of", "networks", "accuracy", *(f"{a} radius" for a in ATTACKS)]]
    by_target = sorted(_grouped(rows, "target", "method"), key=lambda group: group[0][0])
    for (target, method), own in by_target:
        count = len({r["seed"] for r in own})
        first = [100 * float(r["accuracy"]) for r in own if r["attack"] == ATTACKS[0]]
        radii = [[float(r["mean_certified"]) for r in own if r["attack"] == a] for a in ATTACKS]
        lines.append([target, method, str(count), spread(first), *map(spread, radii)])
    return markdown(lines)


def _grouped(rows: list[Row], *names: str) -> Iterable[tuple[tuple[str, ...], list[Row]]]:
    of: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        of.setdefault(tuple(row[n] for n in names), []).append(row)
    return of.items()


def spread(values: list[float]) -> str:
    """mean ± standard deviation, to two digits of the deviation."""
    mean, off = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    if not off:
        return f"{mean:.3g}"
    places = max(0, 1 - math.floor(math.log10(off)))
    return f"{mean:.{places}f} ± {off:.{places}f}"


if __name__ == "__main__":
    main()
