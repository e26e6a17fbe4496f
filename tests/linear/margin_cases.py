"""Problems whose margins are known."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

NORMS = ["l1", "l2", "linf", "fourier-l1"]
EXACT = {"l1": "lp", "l2": "nnls", "linf": "lp", "fourier-l1": "socp"}


def synthetic(n: int, seed: int, d: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """The thesis's data: x ~ N(0, I), y = sign(w*·x)."""
    random = np.random.default_rng(seed)
    X, w = random.standard_normal((n, d)), random.standard_normal(d)
    return X, np.sign(X @ w)


def digits_3_7() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    rows = (y == 3) | (y == 7)
    return X[rows] / 16, y[rows]


def overlapping(n: int = 60, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    X = random.standard_normal((n, d))
    y = np.where(X[:, 0] + random.standard_normal(n) > 0, 1, 0)
    return X, y


# ε* of the thesis's data without an intercept, d = 100, seeds 0, 1, 2, by solvers of other packages
ANCHORS = {
    "l1": {
        100: (".0995", ".1282", ".0933"), 50: (".192", ".1996", ".1938"), 25: (".3185", ".3431", ".282"),
        12: (".643", ".663", ".536"), 6: (".853", ".876", "1.061"), 3: ("1.372", "1.201", "1.442"),
    },
    "l2": {
        100: (".725", ".889", ".644"), 50: ("1.221", "1.241", "1.185"), 25: ("1.898", "1.855", "1.698"),
        12: ("2.888", "3.220", "2.785"), 6: ("4.042", "4.216", "4.346"), 3: ("5.896", "5.280", "5.872"),
    },
    "linf": {
        100: ("4.98", "5.42", "4.17"), 50: ("8.76", "8.85", "7.99"), 25: ("14.79", "13.63", "12.67"),
        12: ("20.9", "25.3", "21.8"), 6: ("32.9", "33.9", "33.3"), 3: ("47.9", "41.6", "47.3"),
    },
    "fourier-l1": {
        100: (".0892", ".102", ".0775"), 50: (".155", ".163", ".162"), 25: (".290", ".251", ".233"),
        12: (".502", ".528", ".393"), 6: (".708", ".763", ".726"), 3: ("1.135", "1.016", "1.089"),
    },
}  # fmt: skip


def printed(text: str) -> tuple[float, float]:
    """A printed number, and half a unit of its last place."""
    return float(text), 0.5 * 10.0 ** -len(text.partition(".")[2])
