"""The second route to ranks: all scores in float64, and a full sort of the wrong answers of each query."""

from __future__ import annotations

import numpy as np

TIE = 1e-12
"""Scores of these tests are of order 1: in float64 their rounding is below 1e-14, and no two that are
drawn at random are as near as this."""


def all_scores(image: np.ndarray, caption: np.ndarray, similarity: str) -> np.ndarray:
    f, g = image.astype(np.float64), caption.astype(np.float64)
    if similarity == "order":
        return -np.sqrt((np.maximum(0, g[None] - f[:, None]) ** 2).sum(2))
    if similarity == "cosine":
        f, g = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (f, g))
    return f @ g.T


def sorted_ranks(scores: np.ndarray, right: np.ndarray, ties: float = 0.5) -> np.ndarray:
    """Of each row of scores [Q, G], given which answers are right [Q, G]."""
    ranks = np.full(len(scores), np.nan)
    for q, (s, r) in enumerate(zip(scores, right, strict=True)):
        if r.any():
            best, wrong = s[r].max(), np.sort(s[~r])
            above = len(wrong) - np.searchsorted(wrong, best + TIE, side="right")
            equal = len(wrong) - above - np.searchsorted(wrong, best - TIE, side="left")
            ranks[q] = 1 + above + ties * equal
    return ranks
