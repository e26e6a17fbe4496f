"""Maximally robust linear classifiers: robustness is computed exactly (Faghri's thesis, chapter 5)."""

from .certify import Certificate, certify
from .duality import NotSeparableError
from .max_margin import MaxMarginClassifier, PathPoint

__all__ = ["Certificate", "MaxMarginClassifier", "NotSeparableError", "PathPoint", "certify"]
