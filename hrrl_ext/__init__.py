"""Hierarchically robust representation learning: deep features that hold up on other data.

Names are loaded when they are first used: ``import hrrl_ext`` imports torch and the operators, and
neither scikit-learn nor any package of the command line, of images or of plots.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import ops
from ._build import build_info

if TYPE_CHECKING:  # what __getattr__ below gives, for type checkers and editors
    from . import clustering as clustering
    from . import contrastive as contrastive
    from . import data as data
    from . import evaluation as evaluation
    from . import linear as linear
    from . import models as models
    from . import plots as plots
    from . import robust as robust
    from . import training as training
    from . import transfer as transfer
    from .clustering import DiscoveredConcepts as DiscoveredConcepts
    from .contrastive import URRLTrainer as URRLTrainer
    from .data import ConceptMap as ConceptMap
    from .data import load_images as load_images
    from .evaluation.evaluate import evaluate as evaluate
    from .models import resnet18 as resnet18
    from .perturbation import ExamplePerturbation as ExamplePerturbation
    from .robust import ConceptDistribution as ConceptDistribution
    from .robust import HRRLObjective as HRRLObjective
    from .robust import HRRLTrainer as HRRLTrainer
    from .robust import variance_gain as variance_gain
    from .training import load_model as load_model
    from .transfer import LinearProbe as LinearProbe
    from .transfer import extract_features as extract_features
    from .transfer import finetune as finetune
    from .transfer import tune as tune

__version__ = "0.1.0"

_LAZY = {
    "ConceptDistribution": "robust",
    "ExamplePerturbation": "perturbation",
    "HRRLObjective": "robust",
    "variance_gain": "robust",
    "HRRLTrainer": "robust",
    "URRLTrainer": "contrastive",
    "DiscoveredConcepts": "clustering",
    "ConceptMap": "data",
    "load_images": "data",
    "resnet18": "models",
    "LinearProbe": "transfer",
    "evaluate": "evaluation",
    "extract_features": "transfer",
    "finetune": "transfer",
    "load_model": "training",
    "tune": "transfer",
}
_MODULES = (
    *("clustering", "contrastive", "data", "evaluation", "linear", "models"),
    *("plots", "robust", "training", "transfer"),
)

__all__ = ["__version__", "build_info", "ops", *_LAZY, *_MODULES]


if not TYPE_CHECKING:  # to them it would say that every name exists

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(import_module(f".{_LAZY[name]}", __name__), name)
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
