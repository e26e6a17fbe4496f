"""Adversarial attacks on images in [0, 1], and the accuracy that is left under them.

FGSM, PGD, APGD and Square find images within a radius of x that a model gets wrong; `evaluate_attack`
joins them into the worst case per point, and `max_epsilon` finds the radius that costs nothing.
"""

from ...norms import L1, L2, Linf, Norm
from .apgd import apgd
from .fourier import FourierLinf
from .gradient import fgsm, pgd
from .radius import EPS_GRID, EpsilonCurve, max_epsilon
from .result import AttackResult, MethodAccuracy
from .square import square
from .starts import random_start
from .threats import NORMS, Threat, find_norm, parse_threat
from .worst_case import evaluate_attack

__all__ = [
    "EPS_GRID",
    "L1",
    "L2",
    "NORMS",
    "AttackResult",
    "EpsilonCurve",
    "FourierLinf",
    "Linf",
    "MethodAccuracy",
    "Norm",
    "Threat",
    "apgd",
    "evaluate_attack",
    "fgsm",
    "find_norm",
    "max_epsilon",
    "parse_threat",
    "pgd",
    "random_start",
    "square",
]
