"""The two players of the game that HRRL solves, and the objective that joins them.

================================== ==============================================================
:class:`ExamplePerturbation`       example level: x̃ = x + τ ∇ℓ/‖∇ℓ‖_F
:class:`ConceptDistribution`       concept level: q, raised by projected gradient ascent
:class:`HRRLObjective`             both, for a training loop of one's own
:class:`GroupDRO`, :class:`CVaR`   other adversaries over the concepts, to compare with
================================== ==============================================================
"""

from .baselines import CVaR, GroupDRO
from .concepts import ConceptDistribution, ConceptWeights, slow_phase_divisor, variance_gain
from .objective import HRRLObjective
from .perturbation import ExamplePerturbation

__all__ = [
    "CVaR",
    "ConceptDistribution",
    "ConceptWeights",
    "ExamplePerturbation",
    "GroupDRO",
    "HRRLObjective",
    "slow_phase_divisor",
    "variance_gain",
]
