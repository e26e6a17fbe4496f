"""HRRL: the two players of the game that it solves, the objective that joins them, and its training.

================================== ==============================================================
:class:`ClassificationLoss`        ℓ: cross-entropy, focal loss, logit adjustment
:class:`ExamplePerturbation`       example level: x̃ = x + τ ∇ℓ/‖∇ℓ‖_F
:class:`StoredPerturbation`        the same with the ∇ℓ of the last epoch, in StoredDirections
:class:`Theorem2Perturbation`      the same with a length per example, m ∇ℓ/(3 L_x)
:class:`ConceptDistribution`       concept level: q, raised by projected gradient ascent
:class:`HRRLObjective`             both, for a training loop of one's own
:class:`ChiSquare`                 concept level, another distance: λ in nats, a ball, a cap
:class:`GroupDRO`, :class:`CVaR`   other adversaries over the concepts, to compare with
:func:`jensen_shannon`             the loss of AugMix: views of an image should be classified alike
:class:`HRRL`                      Algorithm 1 as a recipe of :class:`hrrl_ext.training.Loop`
:class:`HRRLTrainer`               all of it in one call
================================== ==============================================================
"""

from ..concept_weights import ConceptDistribution, ConceptWeights, slow_phase_divisor, variance_gain
from ..losses import ClassificationLoss
from ..perturbation import ExamplePerturbation
from .baselines import CVaR, GroupDRO
from .chi_square import ChiSquare
from .config import HRRLConfig
from .consistency import jensen_shannon
from .objective import HRRLObjective
from .recipe import HRRL
from .stored import StoredDirections, StoredPerturbation
from .theorem2 import Theorem2Perturbation
from .trainer import HRRLTrainer

__all__ = [
    "HRRL",
    "CVaR",
    "ChiSquare",
    "ClassificationLoss",
    "ConceptDistribution",
    "ConceptWeights",
    "ExamplePerturbation",
    "GroupDRO",
    "HRRLConfig",
    "HRRLObjective",
    "HRRLTrainer",
    "StoredDirections",
    "StoredPerturbation",
    "Theorem2Perturbation",
    "jensen_shannon",
    "slow_phase_divisor",
    "variance_gain",
]
