"""Gradient clustering: which examples teach a model the same, and concepts made of that."""

from .clusters import GradientClustering
from .discovered import DiscoveredConcepts

__all__ = ["DiscoveredConcepts", "GradientClustering"]
