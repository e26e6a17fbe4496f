"""Hierarchically robust representation learning: deep features that hold up on other data.

Names are loaded when they are first used: ``import hrrl_ext`` imports torch and the operators, and
neither scikit-learn nor any package of the command line, of images or of plots.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from . import ops
from ._build import build_info

__version__ = "0.1.0"

_LAZY = {
    "ConceptDistribution": "robust",
    "ExamplePerturbation": "perturbation",
    "HRRLObjective": "robust",
    "variance_gain": "robust",
    "HRRLTrainer": "robust",
    "DiscoveredConcepts": "clustering",
    "ConceptMap": "data",
    "load_images": "data",
    "resnet18": "models",
    "LinearProbe": "transfer",
    "evaluate": "evaluation",
    "extract_features": "transfer",
    "finetune": "transfer",
    "load_model": "training",
}
_MODULES = ("clustering", "data", "evaluation", "models", "plots", "robust", "training", "transfer")

__all__ = ["__version__", "build_info", "ops", *_LAZY, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
