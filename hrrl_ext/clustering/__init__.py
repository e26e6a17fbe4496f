from .clusters import GradientClustering
from .discovered import DiscoveredConcepts

__all__ = ["DiscoveredConcepts", "GradientClustering"]
