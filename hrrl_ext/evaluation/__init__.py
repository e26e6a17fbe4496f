"""How good a model is: on average, and on its worst concept."""

from .accuracy import Accuracy, accuracy

__all__ = ["Accuracy", "accuracy"]
