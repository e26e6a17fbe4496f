"""Transfer to another task: frozen features f(x) and a linear SVM on them (Tables 2 to 4).

The probe needs scikit-learn; it, the table and fine-tuning are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .features import (
    Features,
    extract_features,
    find_classifier,
    load_classes,
    load_features,
    save_features,
    stream_features,
)

if TYPE_CHECKING:
    from ..evaluation.neighbours import KNeighbours
    from .finetuning import L2SP, error_curve, finetune
    from .probe import LinearProbe, ProbeResult
    from .sgd_probe import SGDProbe
    from .similarity import Similarity, similarity_loss
    from .table import Target, TransferTable, transfer_table
    from .tuning import Tuning, tune

__all__ = [
    "L2SP",
    "Features",
    "KNeighbours",
    "LinearProbe",
    "ProbeResult",
    "SGDProbe",
    "Similarity",
    "Target",
    "TransferTable",
    "Tuning",
    "error_curve",
    "extract_features",
    "find_classifier",
    "finetune",
    "load_classes",
    "load_features",
    "save_features",
    "similarity_loss",
    "stream_features",
    "transfer_table",
    "tune",
]

# The function probe.probe is not offered here: the module of that name would replace it.
_LAZY = {
    "KNeighbours": "probe",
    "L2SP": "finetuning",
    "LinearProbe": "probe",
    "ProbeResult": "probe",
    "SGDProbe": "sgd_probe",
    "Similarity": "similarity",
    "Target": "table",
    "TransferTable": "table",
    "error_curve": "finetuning",
    "finetune": "finetuning",
    "similarity_loss": "similarity",
    "transfer_table": "table",
    "Tuning": "tuning",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
