"""The table of a search of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._tables import markdown
from .study.levels import score, worst_quarter
from .study.parts import Part

RULE = """
Accuracy on held-out images in %; score: mean of average and worst quarter of the concepts. Chosen is the
best score of a training that went to its end, of equal ones the first. Stopped is one that was behind the
best by more than three standard errors of its score. Cost: time of an epoch, in that of the first row.
"""

_COLUMNS: Mapping[str, tuple[str, float, int]] = {
    "score": ("score", 100, 1),
    "accuracy": ("average", 100, 1),
    "worst_quarter_accuracy": ("worst quarter", 100, 1),
    "worst_concept_accuracy": ("worst concept", 100, 1),
    "effective_concepts": ("effective concepts", 1, 1),
    "largest_weight": ("largest weight", 1, 1),
    "cost": ("cost", 1, 2),
}
"""of a row: heading, factor and digits"""


def level_row(level: str, epochs: int, part: Part, first: Part, what: str) -> dict[str, Any]:
    """Of a level as it was looked at last; ``first`` is that of the level whose cost is 1."""
    row: dict[str, Any] = {
        "level": level,
        "epochs": epochs,
        "what": what,
        **dict.fromkeys(_COLUMNS),
    }
    if "failed" in part:
        return row
    row |= {name: part[name] for name in _COLUMNS if name in part}
    row["score"] = score([part])
    row["worst_quarter_accuracy"] = worst_quarter(part["concept_accuracy"])
    if "failed" not in first:
        row["cost"] = part["seconds_per_epoch"] / first["seconds_per_epoch"]
    return row


def levels_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of Markdown, with the rule under it."""
    heading = ["level", "epochs", *(heading for heading, *_ in _COLUMNS.values()), ""]
    table = markdown([heading, *map(_cells, rows)])
    return f"{table}\n\n{' '.join(RULE.split())}\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    shown = [
        "" if row[name] is None else f"{factor * row[name]:.{digits}f}"
        for name, (_, factor, digits) in _COLUMNS.items()
    ]
    return [row["level"], str(row["epochs"]), *shown, row["what"]]
