"""Transfer to another task: frozen features f(x) and a linear SVM on them (Tables 2 to 4).

`LinearProbe` and `ProbeResult` need scikit-learn and are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .features import (
    Features,
    extract_features,
    find_classifier,
    load_features,
    save_features,
)

if TYPE_CHECKING:
    from .probe import LinearProbe, ProbeResult

__all__ = [
    "Features",
    "LinearProbe",
    "ProbeResult",
    "extract_features",
    "find_classifier",
    "load_features",
    "save_features",
]


def __getattr__(name: str) -> Any:
    # The function probe.probe is not offered here: the module of that name would replace it.
    if name in ("LinearProbe", "ProbeResult"):
        from . import probe

        return getattr(probe, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
