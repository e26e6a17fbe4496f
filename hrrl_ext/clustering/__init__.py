"""Gradient clustering: strata of examples with like gradients, and the noise that they save.

=============================== ===============================================================
:class:`GradientClustering`     finds them, as a weighted k-means with centres of low rank
:class:`DiscoveredConcepts`     them as the concepts of HRRLTrainer
:class:`StratifiedSampler`      mini-batches round robin over the clusters, and their weights
:func:`gradient_variance`       the variance of SG-B, SG-2B, SVRG and GC at one model
:class:`MeanGradient`           the gradient that all of them estimate
:class:`VarianceRecorder`       the same every so many steps of training
:func:`variance_of`             the statistics, for an estimator of one's own
=============================== ===============================================================
"""

from .clusters import GradientClustering
from .discovered import DiscoveredConcepts
from .estimators import (
    SVRG,
    GradientEstimator,
    MeanGradient,
    Snapshot,
    StochasticGradient,
    StratifiedGradient,
)
from .recorder import VarianceRecorder
from .sampler import StratifiedSampler
from .variance import GradientVariance, VarianceTable, gradient_variance, variance_of

__all__ = [
    "SVRG",
    "DiscoveredConcepts",
    "GradientClustering",
    "GradientEstimator",
    "GradientVariance",
    "MeanGradient",
    "Snapshot",
    "StochasticGradient",
    "StratifiedGradient",
    "StratifiedSampler",
    "VarianceRecorder",
    "VarianceTable",
    "gradient_variance",
    "variance_of",
]
