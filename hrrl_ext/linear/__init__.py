"""Maximally robust linear classifiers, where robustness is computed exactly (Faghri's thesis, chapter 5)."""

from .adversarial import train_adversarially
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
from .proximal import Regularised, fit_proximal, primal_dual, shrink
from .risk import LinearRisk, attacked, linear_risk, radius, radius_by_attack
from .steepest import Descent, LinearFit, descend, fit_steepest
from .trades import Trades

__all__ = [
    "ConvolutionRisk",
    "Descent",
    "LinearConvolution",
    "LinearFit",
    "LinearRisk",
    "Regularised",
    "SteepestDescent",
    "Trades",
    "attacked",
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
