"""Labels of any kind as ±1, and what to say where no hyperplane separates them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .duality import Problem
from .programs import least_slack

_COUNTED = 2_000_000  # entries of X up to which causes are looked for: seconds
_NONE = 0.5
"""Slack below is rounding: where no hyperplane separates, an example on the wrong side has 1 at least."""


def signs(y: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """±1 [n], +1 for classes[1]; of more than two classes each against the others in turn."""
    positive = classes[1:] if len(classes) == 2 else classes
    return [np.where(y == label, 1.0, -1.0) for label in positive]


def not_separable(problem: Problem, names: str, detail: str = "") -> str:
    """The message: who is not separated, a cause that can be named, the least slack, a way out."""
    slack = least_slack(problem) if problem.X.size <= _COUNTED else None
    if slack is not None and slack < _NONE:
        return (
            f"MaxMarginClassifier: the solver has found no hyperplane that separates {names}, though "
            "there is one; raise max_iter, or use an exact solver"
        )
    verb = "separates" if slack is not None else "was found that separates"
    said = [f"MaxMarginClassifier: no hyperplane {verb} {names}"]
    if slack is not None:
        if (pair := _contradiction(problem.X, problem.sign)) is not None:
            said.append(
                f"examples {pair[0]} and {pair[1]} are equal, but their labels are opposite"
            )
        said.append(f"the least slack Σ max(0, 1 - y (w·x + b)) of any is {slack:.4g}")
    if detail:
        said.append(detail)
    way = "give C, such as 1.0, for the classifier with slack"
    return "; ".join([*said, way if problem.intercept else f"{way}, or fit_intercept=True"])


def named(classes: np.ndarray, number: int) -> str:
    if len(classes) == 2:
        return f"the classes {_shown(classes[0])} and {_shown(classes[1])}"
    return f"class {_shown(classes[number])} from the others"


def _shown(label: Any) -> str:
    return repr(label.item() if isinstance(label, np.generic) else label)


def _contradiction(X: np.ndarray, sign: np.ndarray) -> tuple[int, int] | None:
    """The first two examples that are equal in X and not in sign."""
    _, row = np.unique(X, axis=0, return_inverse=True)
    row = row.ravel()
    mixed = np.flatnonzero(np.bincount(row, sign > 0) * np.bincount(row, sign < 0))
    if not len(mixed):
        return None
    of = np.flatnonzero(row == mixed[0])
    one, other = (int(of[sign[of] == s][0]) for s in (1, -1))
    return min(one, other), max(one, other)
