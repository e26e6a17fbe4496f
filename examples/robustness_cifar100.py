"""Do features hold up? Perturbed, corrupted and attacked images, concepts, calibration: CIFAR-100.

    python examples/robustness_cifar100.py DATA --out runs/robustness --page docs/results/robustness.md

DATA is the folder of examples/transfer_cifar100.py, and training is as there: CIFAR-100 in ImageNet's
place, its 20 super-classes as concepts. The four models of the paper's tables, and EL and CL at a
second level. What is trained or measured already is not done again. Everything is in report.html.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrrl_ext import HRRLTrainer, load_model
from hrrl_ext._tables import with_tables
from hrrl_ext.data import load_images
from hrrl_ext.evaluation import Report, evaluate, write_html

MODELS: dict[str, dict[str, Any]] = {
    "ERM": {"tau": 0.0, "lam": None},
    "EL-0.03": {"tau": 0.03, "lam": None},
    "EL-0.1": {"tau": 0.1, "lam": None},
    "CL-10": {"tau": 0.0, "lam": 10.0},
    "CL-3": {"tau": 0.0, "lam": 3.0},
    "HRRL": {"tau": 0.03, "lam": 10.0},
}
ATTACKS = [
    *(f"linf:{eps}/255" for eps in (0.5, 1, 2, 4)),
    "l2:0.25",
    "l2:0.5",
    "fourier:2/255",
    "fourier:8/255",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=2, help="quarters of CIFAR-100 to train on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-18's own")
    parser.add_argument("--points", type=int, default=5000, help="test images")
    parser.add_argument("--attack-points", type=int, default=200, help="of these")
    parser.add_argument("--corruption-points", type=int, default=500, help="of these")
    parser.add_argument("--page", type=Path, help="Markdown page to bring up to date")
    args = parser.parse_args()
    reports = []
    for name, level in MODELS.items():
        train(name, level, args)
        reports.append(measured(name, args))
        print(f"{reports[-1]}\n", flush=True)
    write_html(reports, args.out / "report.html")
    if args.page is not None:
        write_page(reports, args.page)


def training_images(args: argparse.Namespace) -> Any:
    return load_images([args.data / f"cifar100-train-{i}of4.npz" for i in range(args.parts)])


def train(name: str, level: dict[str, Any], args: argparse.Namespace) -> None:
    """Into a folder of its own; a run that was cut off goes on."""
    out = args.out / name
    HRRLTrainer(
        data=training_images(args),
        validation=args.data / "cifar100-test.npz",
        out=out,
        resume=(out / "checkpoints").is_dir(),
        epochs=args.epochs,
        batch_size=64,
        lr=0.05,
        width=args.width,
        precision="bf16",
        channels_last=True,
        seed=args.seed,
        **level,
    ).fit()


def measured(name: str, args: argparse.Namespace) -> Report:
    out = args.out / "evaluation" / name
    return evaluate(
        load_model(args.out / name),
        args.data / "cifar100-test.npz",
        name=name,
        train=training_images(args),
        attacks=ATTACKS,
        max_epsilon=["linf", "l2", "fourier"],
        points=args.points,
        attack_points=args.attack_points,
        corruption_points=args.corruption_points,
        out=out,
        resume=out.is_dir(),
        progress=lambda line: print(f"{name}  {line}", flush=True),
    )


# --- the page


def write_page(reports: Sequence[Report], page: Path) -> None:
    tables = {"summary": summary(reports), "corruptions": corruptions(reports)}
    text = with_tables(page, tables)
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    numbers = [report.to_dict() for report in reports]
    for number in numbers:
        del number["about"]["command"]
        for attack in number["attacks"]:
            del attack["pictures"]
    (out / "reports.json").write_text(json.dumps(numbers), encoding="utf-8")
    plot(reports, out / "robustness.png")
    page.write_text(text, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def summary(reports: Sequence[Report]) -> str:
    columns = [{name: value for name, value, _ in report.rows()} for report in reports]
    rows = [[name, *(percent(column[name]) for column in columns)] for name in columns[0]]
    radii = [[f"largest harmless radius, {p['norm']}" for p in reports[0].max_epsilon]]
    for number, name in enumerate(radii[0]):
        rows.append([name, *(f"{r.max_epsilon[number]['eps']:.3g}" for r in reports)])
    return table(["%", *(report.name for report in reports)], rows)


def corruptions(reports: Sequence[Report]) -> str:
    errors = [{k["kind"]: k["mean_error"] for k in (r.corruptions or {})["kinds"]} for r in reports]
    rows = [[kind, *(percent(error[kind]) for error in errors)] for kind in errors[0]]
    return table(["mean error, %", *(report.name for report in reports)], rows)


def plot(reports: Sequence[Report], path: Path) -> None:
    """Figure 4, Figure 5, accuracy under attack, and accuracy by severity."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(20, 4.2), sharey=True)
    for report in reports:
        curve = report.perturbation_curve["points"]
        axes[0].plot(*zip(*((p["step"], 100 * p["accuracy"]) for p in curve), strict=True))
        hardest = [100 * c["accuracy"] for c in report.accuracy["concepts"]]
        axes[1].plot(range(1, len(hardest) + 1), hardest)
        linf = [a for a in report.attacks if a["norm"] == "linf"]
        radii = [(0.0, 100 * linf[0]["clean"]["accuracy"])]
        radii += [(255 * a["eps"], 100 * a["accuracy"]) for a in linf]
        axes[2].plot(*zip(*radii, strict=True), marker="o")
        kinds = (report.corruptions or {})["kinds"]
        severities = [
            100 * sum(k["severities"][s]["accuracy"] for k in kinds) / len(kinds) for s in range(5)
        ]
        axes[3].plot(range(1, 6), severities, marker="o", label=report.name)
    titles = (
        "step along the input gradient, ‖x̃ - x‖",
        "concepts, hardest first",
        "radius of the linf attack, of 255",
        "severity, mean over 19 corruptions",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[3].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
