"""The page of examples/contrastive_evidence.py: its tables, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from result_page import with_tables

from hrrl_ext._tables import markdown
from hrrl_ext.storage import write_text
from hrrl_ext.transfer.study.analysis import difference

Row = Mapping[str, Any]
PRETRAINED: dict[str, dict[str, Any]] = {
    "MoCo": {"views": "moco"},
    "URRL": {"views": "urrl"},
    "AugMix": {"views": "augmix"},
    "AugMix (AllOp)": {"views": "augmix:all"},
    "AugMix (MoCo)": {"views": "augmix:moco"},
    "MoCo, plain batch norm": {"views": "moco", "norm_groups": 1},
    "InstDis": {"views": "moco", "method": "instdis"},
    "InstDis, URRL": {"views": "urrl", "method": "instdis"},
    "PIRL": {"views": "moco", "method": "pirl"},
    "PIRL, URRL": {"views": "urrl", "method": "pirl"},
}
"""The first five are the paper's Table 1; settings of URRLTrainer."""
STARTS = ("MoCo", "URRL")
"""Of fine-tuning."""
MEASURES = {
    "knn": "k-NN",
    "accuracy": "probe",
    "corruption_error": "mean corruption error",
    "rms": "RMS calibration",
    "corrupted_rms": "RMS, corrupted",
    "robust": "robust, l2 0.5",
}
PAIRS = [
    ("AugMix", "MoCo"),
    ("AugMix (AllOp)", "MoCo"),
    ("AugMix (AllOp)", "AugMix"),
    ("AugMix (MoCo)", "MoCo"),
    ("URRL", "MoCo"),
    ("MoCo, plain batch norm", "MoCo"),
    ("InstDis, URRL", "InstDis"),
    ("PIRL, URRL", "PIRL"),
]
NOTHING = "–"


def value(row: Row, measure: str) -> float | None:
    """In %."""
    found = (
        row["knn_accuracy"][-1] if measure == "knn" and "knn_accuracy" in row else row.get(measure)
    )
    return None if found is None else 100 * found


def by_seed(rows: Sequence[Row], start: str, name: str, measure: str) -> dict[int, float]:
    of = [row for row in rows if (row["start"], row["name"]) == (start, name)]
    found = {row["seed"]: value(row, measure) for row in of}
    return {seed: x for seed, x in found.items() if x is not None}


def spread(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    if len(values) == 1:
        return f"{values[0]:.1f} (1 seed)"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def levels(rows: Sequence[Row], named: Sequence[tuple[str, str]], measures: Sequence[str]) -> str:
    """Mean ± standard deviation over seeds."""
    header = ["", "seeds", *(MEASURES[m] for m in measures)]
    body = []
    for start, name in named:
        columns = [list(by_seed(rows, start, name, m).values()) for m in measures]
        if any(columns):
            label = f"{start}, {name}" if start else name
            body.append([label, str(max(map(len, columns))), *map(spread, columns)])
    return markdown([header, *body])


def differences(
    rows: Sequence[Row],
    pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]],
    measures: Sequence[str],
) -> str:
    """Of the same seed: mean, 95 % interval, seeds."""
    body = []
    for one, other in pairs:
        cells = []
        for measure in measures:
            a, b = (by_seed(rows, *which, measure) for which in (one, other))
            both = [(a[seed] - b[seed]) / 100 for seed in sorted(a.keys() & b.keys())]
            cells.append(str(difference(both)) if both else NOTHING)
        if set(cells) != {NOTHING}:
            label = [f"{start}, {name}" if start else name for start, name in (one, other)]
            body.append([" − ".join(label), *cells])
    return markdown([["", *(MEASURES[m] for m in measures)], *body])


def curves(rows: Sequence[Row]) -> str:
    """k-NN of MoCo by epoch, and before the first."""
    of = [row for row in rows if row["kind"] == "pretrained" and row["name"].startswith("MoCo")]
    if not of:
        return NOTHING
    epochs = len(of[0]["knn_accuracy"])
    at = sorted({1, *(max(1, epochs * k // 5) for k in range(1, 6))})
    body = []
    for row in of:
        first = f"{100 * row['untrained']['knn_accuracy']:.1f}"
        found = [f"{100 * row['knn_accuracy'][epoch - 1]:.1f}" for epoch in at]
        body.append([f"{row['name']}, seed {row['seed']}", first, *found, f"{row['loss'][-1]:.2f}"])
    return markdown([["k-NN after epoch", "0", *map(str, at), "last loss"], *body])


def write_page(rows: Sequence[Row], page: Path, of_all: int) -> None:
    """Tables between their marks; a page that is not there begins as their headings."""
    tuned = list(dict.fromkeys((r["start"], r["name"]) for r in rows if r["kind"] == "tuned"))
    main = [name for name in tuned if not name[1].startswith("L2-SP ")]
    grid = [name for name in tuned if name not in main]
    of_views, of_tuning = list(MEASURES)[:5], list(MEASURES)[1:]
    plain = [((s, n), (s, "plain")) for s, n in main if n != "plain"]
    between = [(("URRL", n), ("MoCo", n)) for n in dict.fromkeys(n for _, n in main)]
    hours = sum(row["processor_seconds"] for row in rows) / 3600
    tables = {
        "views": levels(rows, [("", name) for name in PRETRAINED], of_views),
        "views, paired": differences(rows, [(("", a), ("", b)) for a, b in PAIRS], of_views),
        "curves": curves(rows),
        "fine-tuned": levels(rows, main, of_tuning),
        "fine-tuned, paired": differences(rows, plain + between, of_tuning),
        "grid": levels(rows, grid, of_tuning),
        "cost": f"{len(rows)} of {of_all} trials, {hours:.1f} hours of a core.",
    }
    if not page.exists():
        parts = ["# Pretraining on robust views, in small\n"]
        for name in tables:
            marks = f"<!-- table: {name} -->\n<!-- end: {name} -->"
            parts.append(f"## {name[0].upper()}{name[1:]}\n\n{marks}\n")
        write_text(page, "\n".join(parts))
    write_text(page, with_tables(page, tables))
