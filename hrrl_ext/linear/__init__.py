"""Maximally robust linear classifiers: robustness is computed exactly (Faghri's thesis, chapter 5).

The classifier itself is :class:`MaxMarginClassifier`. How descent, regularisation and adversarial
training come to it is shown by :func:`descend`, :func:`shrink`, :func:`primal_dual` and
:func:`train_adversarially`, many runs at once.
"""

from .adversarial import train_adversarially
from .certify import Certificate, certify
from .convolution import (
    ConvolutionRisk,
    LinearConvolution,
    circular_convolution,
    convolution_risk,
    fourier_quasi_norm,
    initial_filters,
    linearised,
)
from .descent_optimizer import SteepestDescent
from .duality import NotSeparableError
from .max_margin import MaxMarginClassifier, PathPoint
from .proximal import Regularised, fit_proximal, primal_dual, shrink
from .risk import LinearRisk, attacked, linear_risk, radius, radius_by_attack
from .steepest import Descent, LinearFit, descend, fit_steepest
from .trades import Trades

__all__ = [
    "Certificate",
    "ConvolutionRisk",
    "Descent",
    "LinearConvolution",
    "LinearFit",
    "LinearRisk",
    "MaxMarginClassifier",
    "NotSeparableError",
    "PathPoint",
    "Regularised",
    "SteepestDescent",
    "Trades",
    "attacked",
    "certify",
    "circular_convolution",
    "convolution_risk",
    "descend",
    "fit_proximal",
    "fit_steepest",
    "fourier_quasi_norm",
    "initial_filters",
    "linear_risk",
    "linearised",
    "primal_dual",
    "radius",
    "radius_by_attack",
    "shrink",
    "train_adversarially",
]
