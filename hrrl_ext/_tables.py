"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """One line per row: the first column to the left, the others to the right."""
    width = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(width[0]),
                *(v.rjust(w) for v, w in zip(row[1:], width[1:], strict=True)),
            ]
        )
        for row in rows
    )
