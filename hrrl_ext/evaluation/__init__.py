"""How good a model is: on average and on its worst concept, perturbed, attacked, corrupted, and as sure as it is right."""

from .accuracy import Accuracy, accuracy

__all__ = ["Accuracy", "accuracy"]
