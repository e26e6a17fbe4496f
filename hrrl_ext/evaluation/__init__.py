"""How good a model is: on average and by concept, perturbed, corrupted, attacked, and how calibrated.

:func:`evaluate` measures all of it; each measure is a function of its own.
"""

from .accuracy import Accuracy, accuracy, wilson_interval
from .calibration import (
    Bins,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    rms_calibration_error,
)
from .config import PRESETS, EvaluationConfig
from .evaluate import evaluate
from .page import write_html
from .perturbation_curve import PerturbationCurve, perturbation_curve
from .predictions import Predictions, predict
from .report import Report

__all__ = [
    "PRESETS",
    "Accuracy",
    "Bins",
    "EvaluationConfig",
    "PerturbationCurve",
    "Predictions",
    "Report",
    "accuracy",
    "equal_mass_bins",
    "equal_width_bins",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "perturbation_curve",
    "predict",
    "rms_calibration_error",
    "wilson_interval",
    "write_html",
]
