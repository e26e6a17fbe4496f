"""Metadata of WILDS that do not say by a column which file and which split a row is."""

from __future__ import annotations

from .tables import Table

# Hospitals of Camelyon17 that WILDS holds out, whatever its column split says.
_CENTER_SPLITS = {"1": "val", "2": "test"}
_SPLITS = {"0": "train", "1": "id_val"}  # of the other hospitals
_CAMELYON = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")


def is_camelyon(header: list[str]) -> bool:
    """Whether these are the columns of Camelyon17's metadata.csv."""
    return set(_CAMELYON) <= set(header)


def camelyon_files(table: Table) -> list[str]:
    columns = (table.column(name) for name in _CAMELYON[:4])
    return [
        f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
        for patient, node, x, y in zip(*columns, strict=True)
    ]


def camelyon_splits(table: Table) -> list[str]:
    """train, val and test by hospital, as in WILDS' benchmark; id_val of the training hospitals."""
    pairs = zip(table.column("center"), table.column("split"), strict=True)
    splits = []
    for row, (center, split) in enumerate(pairs):
        found = _CENTER_SPLITS.get(center) or _SPLITS.get(split)
        if found is None:
            raise ValueError(f"{table.where(row)}: split must be 0 or 1, got {split!r}")
        splits.append(found)
    return splits
