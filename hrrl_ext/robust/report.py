"""What a run of HRRL says of itself in words, and what it comes to in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._tables import one_line
from ..training.recipe import Row, scalars


def running(
    loss: float,
    train_accuracy: float,
    concept_loss: Mapping[str, Any],
    q: Mapping[str, Any],
    effective_concepts: float,
) -> str:
    """The epoch so far: ``concept_loss`` is each concept's mean ĝ of its steps, ``q`` is that of now."""
    worst = max(concept_loss, key=lambda k: concept_loss[k])
    largest = sorted(q, key=lambda k: -q[k])[:3]
    parts = [
        f"loss {loss:.3f}",
        f"train {100 * train_accuracy:.1f} %",
        f"worst concept {concept_loss[worst]:.2f} ({worst})",
        f"effective concepts {effective_concepts:.1f} of {len(q)}",
        "q " + ", ".join(f"{q[k]:.2f} ({k})" for k in largest),
    ]
    return one_line("  ".join(parts))


def summary(row: Row) -> str:
    """An epoch that is over, or an evaluation within one."""
    parts = []
    if "loss" in row:
        parts += [f"loss {row['loss']:.3f}", f"train {100 * row['train_accuracy']:.1f} %"]
    if "accuracy" in row:
        parts.append(f"accuracy {100 * row['accuracy']:.1f} %")
        worst = f"worst concept {100 * row['worst_concept_accuracy']:.1f} %"
        parts.append(f"{worst} ({worst_concept(row)})")
    if "q" in row:
        parts.append(f"effective concepts {row['effective_concepts']:.1f}")
        parts.append(f"largest weight {row['largest_weight']:.1f}")
    return one_line("  ".join(parts))


def worst_concept(row: Row) -> str:
    """Name of the concept with the lowest accuracy on the validation set."""
    accuracy = {k: v for k, v in row["concept_accuracy"].items() if v is not None}
    return min(accuracy, key=lambda k: accuracy[k])


def results(last: Row, best: Row | None) -> dict[str, Any]:
    """The last epoch and the best evaluation, as single numbers and by concept."""
    measured = {
        f"accuracy_{when}": row["concept_accuracy"]
        for when, row in (("last", last), ("best", best))
        if row is not None and "concept_accuracy" in row
    }
    columns = {"q": last["q"], "concept_loss": last["concept_loss"], **measured}
    by_concept = {
        # Accuracy may be of other groups than those with a q; the best epoch may have had others.
        name: {column: of.get(name) for column, of in columns.items()}
        for name in dict.fromkeys([*last["q"], *last.get("concept_accuracy", {})])
    }
    return {
        "last": _single(last),
        "best": None if best is None else _single(best),
        "concepts": by_concept,
    }


def _single(row: Row) -> dict[str, Any]:
    return scalars(row) | ({"worst_concept": worst_concept(row)} if "accuracy" in row else {})
