"""The page of examples/contrastive_evidence.py: its tables, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_page import processor

from hrrl_ext._tables import markdown, place, with_tables
from hrrl_ext.plots.figures import panels_of, save, shown
from hrrl_ext.storage import write_text

Row = dict[str, Any]
Names = tuple[str, str]
"""A start, "" of a pretraining, and a name."""

UNTRAINED, PLAIN = "untrained", "plain"
PRETRAINED: dict[str, dict[str, Any]] = {
    UNTRAINED: {},
    "MoCo": {"views": "moco"},
    "URRL": {"views": "urrl"},
    "AugMix": {"views": "augmix"},
    "AugMix (AllOp)": {"views": "augmix:all"},
    "AugMix (MoCo)": {"views": "augmix:moco"},
    "MoCo, plain batch norm": {"views": "moco", "norm_groups": 1},
    "InstDis": {"views": "moco", "method": "instdis", "temperature": 0.07},
    "InstDis, URRL": {"views": "urrl", "method": "instdis", "temperature": 0.07},
    "PIRL": {"views": "moco", "method": "pirl", "temperature": 0.07},
    "PIRL, URRL": {"views": "urrl", "method": "pirl", "temperature": 0.07},
}
"""Settings of URRLTrainer. The first six are the paper's Table 1, and the network they begin with."""
STARTS = ("MoCo", "URRL")
"""Of fine-tuning."""
LEVELS = {
    "L2-SP": {
        f"L2-SP {alpha:g}, {beta:g}": f"l2sp:alpha={alpha:g},beta={beta:g}"
        for alpha in (1e-5, 1e-4, 1e-3, 1e-2, 0.1)
        for beta in (0.001, 0.01)
    },
    "similarity": {f"similarity {w:g}": f"similarity:w_sim={w:g}" for w in (1, 3, 10)},
}
"""Appendix A's α and β; w_sim."""

MEASURES = {
    "knn": "k-NN",
    "accuracy": "accuracy",
    "corruption_error": "mean corruption error",
    "rms": "RMS calibration",
    "corrupted_rms": "RMS, corrupted",
    **{f"l2:{radius}": f"robust, l2 {radius}" for radius in (0.0625, 0.25, 0.5)},
}
OF_VIEWS, OF_TUNING = list(MEASURES)[:5], list(MEASURES)[1:]
PAIRS = [
    *((name, UNTRAINED) for name in ("MoCo", "URRL")),
    *((f"AugMix{of}", "MoCo") for of in ("", " (AllOp)", " (MoCo)")),
    *(("AugMix (AllOp)", "AugMix"), ("AugMix (MoCo)", "AugMix (AllOp)")),
    *(("URRL", "MoCo"), ("MoCo, plain batch norm", "MoCo")),
    *((f"{method}, URRL", method) for method in ("InstDis", "PIRL")),
]
NOTHING = "–"


def value(row: Row, measure: str) -> float | None:
    """In %; None where the row has none."""
    neighbours = {"knn": row["knn"]["accuracy"]} if "knn" in row else {}
    found = (row | neighbours | row.get("robust", {})).get(measure)
    return None if found is None else 100 * found


def by_seed(rows: Sequence[Row], names: Names, measure: str) -> dict[int, float]:
    of = [row for row in rows if (row["start"], row["name"]) == names]
    found = {row["seed"]: value(row, measure) for row in of}
    return {seed: x for seed, x in found.items() if x is not None}


def levels(rows: Sequence[Row], named: Sequence[Names], measures: Sequence[str]) -> str:
    """Mean ± standard deviation over seeds."""
    body = []
    for names in named:
        columns = [list(by_seed(rows, names, m).values()) for m in measures]
        if any(columns):
            seeds = str(max(map(len, columns)))
            body.append([label(names), seeds, *map(mean_and_deviation, columns)])
    return markdown([["", "seeds", *(MEASURES[m] for m in measures)], *body])


def mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def differences(
    rows: Sequence[Row], pairs: Sequence[tuple[Names, Names]], measures: Sequence[str]
) -> str:
    """Of the same seed: the mean ± its standard error, and each seed's."""
    body = []
    for one, other in pairs:
        cells = []
        for measure in measures:
            a, b = (by_seed(rows, names, measure) for names in (one, other))
            cells.append(mean_and_each([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]))
        if set(cells) != {NOTHING}:
            body.append([f"{label(one)} − {label(other)}", *cells])
    return markdown([["", *(MEASURES[m] for m in measures)], *body])


def mean_and_each(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.1f}" if values else NOTHING
    error = statistics.stdev(values) / len(values) ** 0.5
    each = ", ".join(f"{x:+.1f}" for x in values)
    return f"{statistics.fmean(values):+.1f} ± {error:.1f} ({each})"


def label(names: Names) -> str:
    return ", ".join(name for name in names if name)


def of_families(rows: Sequence[Row]) -> list[Row]:
    """Networks that were tuned at the chosen level, under the name of its family."""
    return [row | {"name": row["family"]} for row in rows if row["start"] and row["main"]]


def courses(rows: Sequence[Row]) -> str:
    """By epoch, of the bank that training measures by: k-NN, and the loss at the end."""
    of = [row for row in rows if row["name"].startswith("MoCo") and not row["start"]]
    if not of:
        return NOTHING
    epochs = len(of[0]["course"]["knn_accuracy"])
    at = sorted({1, *(max(1, epochs * k // 5) for k in range(1, 6))})
    body = []
    for row in of:
        found = [f"{100 * row['course']['knn_accuracy'][epoch - 1]:.1f}" for epoch in at]
        end = [f"{row['course'][name][-1]:.2f}" for name in ("loss", "spread", "rank_me")]
        body.append([f"{row['name']}, seed {row['seed']}", *found, *end])
    header = ["k-NN after epoch", *map(str, at), "last loss", "spread", "RankMe"]
    return markdown([header, *body])


def draw_courses(rows: Sequence[Row], path: Path) -> None:
    """k-NN by epoch, each seed a line."""
    figure, (axes,) = panels_of(1, width=6.0)
    for number, name in enumerate(list(PRETRAINED)[1:7]):
        for row in (r for r in rows if r["name"] == name and not r["start"]):
            y = [100 * x for x in row["course"]["knn_accuracy"]]
            first = shown(name) if row["seed"] == 0 else None
            axes.plot(range(1, len(y) + 1), y, color=f"C{number}", label=first, linewidth=0.9)
    axes.set(xlabel="epoch", ylabel="k-NN accuracy, %")
    axes.legend(fontsize="small")
    save(figure, path)


def chosen(rows: Sequence[Row]) -> str:
    """Levels by seed."""
    of = [row for row in rows if row["start"] == STARTS[0] and row["main"]]
    told = [f"seed {row['seed']}: {row['name']}" for row in of if row["name"] != PLAIN]
    return "; ".join(told) + "." if told else NOTHING


def cost(rows: Sequence[Row], of_all: int, failed: Sequence[str]) -> str:
    text = f"{len(rows)} of {of_all} trials, on {processor()}: "
    text += f"{sum(row['hours'] for row in rows):.1f} hours of one thread"
    of_moco = [row for row in rows if row["name"] == "MoCo" and not row["start"]]
    epochs = [s for row in of_moco for s in row["course"]["seconds"]]
    if epochs:
        text += f"; an epoch of MoCo {statistics.median(epochs):.0f} s"
    lost = f" {len(failed)} more failed in training: {', '.join(failed)}." if failed else ""
    return f"{text}.{lost}"


def write_page(rows: Sequence[Row], page: Path, of_all: int, failed: Sequence[str]) -> None:
    """Tables between their marks; a page that is not there begins as their headings. ``failed`` are the
    trials that no row is of, as their training failed."""
    if not rows:
        raise ValueError(f"{page}: no trial is through yet, so there is nothing to write")
    tuned = of_families(rows)
    methods = [PLAIN, *LEVELS]
    main = [(start, method) for start in STARTS for method in methods]
    against = [((start, m), (start, PLAIN)) for start in STARTS for m in methods[1:]]
    against += [((start, "similarity"), (start, "L2-SP")) for start in STARTS]
    against += [((STARTS[1], method), (STARTS[0], method)) for method in methods]
    grid = [(STARTS[0], name) for of in LEVELS.values() for name in of]
    plain = (STARTS[0], PLAIN)
    tables = {
        "views": levels(rows, [("", name) for name in PRETRAINED], OF_VIEWS),
        "views, paired": differences(rows, [(("", a), ("", b)) for a, b in PAIRS], OF_VIEWS),
        "courses": courses(rows),
        "fine-tuned": levels(tuned, main, OF_TUNING),
        "fine-tuned, paired": differences(tuned, against, OF_TUNING),
        "chosen": chosen(rows),
        "grid": levels(rows, [plain, *grid], OF_TUNING),
        "grid, paired": differences(rows, [(name, plain) for name in grid], OF_TUNING),
        "cost": cost(rows, of_all, failed),
    }
    if not page.exists():
        parts = ["# Pretraining on robust views, in small\n"]
        for name in tables:
            parts.append(f"## {name[0].upper()}{name[1:]}\n\n{place(name)}\n")
        write_text(page, "\n".join(parts))
    write_text(page, with_tables(page, tables))
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    draw_courses(rows, out / "knn.png")
