"""What is done to the scale of features before a linear classifier sees them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from sklearn.preprocessing import Normalizer, StandardScaler

Normalise: TypeAlias = Literal["l2", "standard"] | None


def scaler(normalise: Normalise, where: str) -> Any:
    """The step of a scikit-learn pipeline for a name: rows of norm 1; columns of mean 0 and variance 1
    over the examples fitted on; nothing."""
    match normalise:
        case "l2":
            return Normalizer()
        case "standard":
            return StandardScaler()
        case None:
            return "passthrough"
    raise ValueError(f"{where}: normalise must be 'standard', 'l2' or None, got {normalise!r}")
