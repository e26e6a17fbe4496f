"""Chapter 5's figures of networks, in small: Fig. 5.4c and d, 5.5, and the perturbations of B.3 to B.8.

    python examples/robust_networks.py --runs RUN ... --images cifar100-test.npz \\
        --out docs/results/linear-networks --page docs/results/linear-networks.md

Small convolutional networks learn scikit-learn's digits: by adversarial training (PGD in an l2 ball) of
several radii, by TRADES of several coefficients and in three norms, and by the levels of HRRL, each with
every seed. Test images are attacked by `max_epsilon` with growing radii, in l2 (Fig. 5.4), linf and
Fourier-linf (Fig. 5.5). Networks of other runs, on --images resized to theirs, are attacked in the low
and the high band of frequencies too (B.3 to B.8).

Trained networks are in --work, and what was measured is in curves.csv of --out: the same command goes on
after an interruption. With --seeds and nothing after it, and without --runs, it only draws.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import robust_networks_page
from kept_rows import KeptRows
from linear_real import image_size, load_run, method_of
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext._tables import with_tables
from hrrl_ext.data import load_images
from hrrl_ext.data.image_sets import as_float
from hrrl_ext.evaluation.attacks import apgd, max_epsilon
from hrrl_ext.linear import Trades
from hrrl_ext.storage import write_text
from hrrl_ext.training.run_folder import load_model

TRAINED = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Radii of PGD in training, l2."""
TESTED = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
TRADES_RADIUS = {"l2": 1.0, "linf": 0.06, "fourier": 0.06}
STEPS = 5  # of an attack in training
SMALLEST, LARGEST, RATIO = 0.001, 0.36, 2**0.5
"""Radii of linf, Fourier-linf and its bands: 0 and a geometric grid."""
BANDS = ("linf", "fourier", "fourier-low", "fourier-high")


def ways() -> dict[str, dict[str, Any]]:
    """Name: settings of HRRLTrainer."""
    plain: dict[str, Any] = {"tau": 0.0, "lam": None}
    of: dict[str, dict[str, Any]] = {
        f"PGD {eps:g}": plain | {"tau": eps, "example_steps": STEPS if eps else 1}
        for eps in TRAINED
    }
    for beta in BETAS:
        of[f"TRADES l2 {beta:g}"] = plain | {"penalty": _trades("l2", beta)}
    for norm in ("linf", "fourier"):
        of[f"TRADES {norm} 3"] = plain | {"penalty": _trades(norm, 3.0)}
    return of | {
        "EL": plain | {"tau": 0.25},
        "CL": plain | {"lam": 10.0},
        "HRRL": {"tau": 0.25, "lam": 10.0},
    }


def _trades(norm: str, beta: float) -> Trades:
    return Trades(beta=beta, eps=TRADES_RADIUS[norm], norm=norm, steps=STEPS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/robust-networks"))
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV and pictures")
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--norm-seeds", type=int, nargs="*", help="those of Fig. 5.5, which takes longest; or all"
    )
    parser.add_argument("--ways", nargs="+", default=list(ways()), choices=list(ways()))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=[], help="folders of trained networks"
    )
    parser.add_argument("--images", type=Path, help="test images of --runs")
    parser.add_argument("--count", type=int, default=150, help="images, but in l2")
    parser.add_argument("--attack-steps", type=int, default=10, help="of APGD, per radius and loss")
    args = parser.parse_args(argv)
    if args.runs and args.images is None:
        parser.error("--runs needs --images, the test images of these networks")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = KeptRows(args.out / "curves.csv", ("method", "seed", "data", "norm"))
    digits = images_of("digits", None, None)
    for seed in args.seeds:
        for way in args.ways:
            model = trained(way, seed, args)
            known = (way, str(seed), "digits")
            measure(kept, model, known, digits, ["l2"], args.attack_steps)
            first = digits[0][: args.count], digits[1][: args.count]
            if args.norm_seeds is None or seed in args.norm_seeds:
                measure(kept, model, known, first, ["linf", "fourier"], args.attack_steps)
    for run in args.runs:
        model, part = load_run(run), images_of(str(args.images), image_size(run), args.count)
        known = (*method_of(run), args.images.stem)
        measure(kept, model, known, part, BANDS, args.attack_steps)
    if args.runs and (moved := perturbations(model, part, kept, known)):
        robust_networks_page.draw_perturbations(moved, args.out)
    robust_networks_page.draw(kept.rows, args.out)
    tables = robust_networks_page.tables(kept.rows)
    print("\n\n".join(tables.values()))
    if args.page is not None:
        write_text(args.page, with_tables(args.page, tables))


def trained(way: str, seed: int, args: argparse.Namespace) -> nn.Module:
    """The network, from its folder if it is there."""
    folder = args.work / f"{way.replace(' ', '-')}_{seed}"
    if (folder / "results.json").exists():
        return load_model(folder)
    trainer = HRRLTrainer(
        "convnet", data="digits", concepts="classes", seed=seed, epochs=args.epochs, width=args.width,
        batch_size=64, lr=0.05, crop_padding=0, flip=False, device="cpu", progress="off",
        out=folder, resume=(folder / "config.json").exists(), **ways()[way],
    )  # fmt: skip
    trainer.fit()
    return trainer.model.eval()


def images_of(source: str, size: int | None, count: int | None) -> tuple[Tensor, Tensor]:
    images = load_images(source, split="test", image_size=size)
    x, target = images.__getitems__(list(range(len(images)))[:count])
    return as_float(x), target


def radii(norm: str) -> list[float]:
    if norm == "l2":
        return list(TESTED)
    steps = math.ceil(math.log(LARGEST / SMALLEST, RATIO))
    return [0.0, *(SMALLEST * RATIO**k for k in range(steps + 1))]


def measure(
    kept: KeptRows, model: nn.Module, known: tuple[str, str, str], part: tuple[Tensor, Tensor],
    norms: Iterable[str], steps: int,
) -> None:  # fmt: skip
    """Rows of each norm's curve: the radius, and the accuracy that is left."""
    for norm in norms:
        if kept.has(*known, norm):
            continue
        began = time.process_time()
        curve = max_epsilon(model, *part, norm=norm, eps=radii(norm), steps=steps)
        of = dict(zip(kept.key, (*known, norm), strict=True)) | {"free": curve.max_epsilon}
        kept.add(
            of | {"eps": eps, "accuracy": accuracy}
            for eps, accuracy in zip(curve.eps, curve.accuracy, strict=True)
        )
        print(*known, norm, f"{time.process_time() - began:.1f} s", flush=True)


def perturbations(
    model: nn.Module, part: tuple[Tensor, Tensor], kept: KeptRows, known: tuple[str, str, str]
) -> dict[str, tuple[float, Tensor]]:
    """By norm the radius that leaves half of the accuracy, and δ [N, 3, H, W] of that size."""
    x, target = part
    moved = {}
    for norm in BANDS:
        own = [r for r in kept.rows if tuple(r[k] for k in kept.key) == (*known, norm)]
        eps = robust_networks_page.half(own)
        if math.isfinite(eps):
            moved[norm] = (eps, apgd(model, x, target, eps, norm=norm, steps=20) - x)
    return moved


if __name__ == "__main__":
    main()
