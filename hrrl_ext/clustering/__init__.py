from .clusters import GradientClustering
