"""Moving one example at a time: against the objective counted afresh, and against all partitions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hrrl_ext.clustering.strata import Assignment, Distances, least_variance


def objective(distance: Distances, assignment: Assignment) -> float:
    """Eq. 4.2: Σ_k N_k Σ_{i in k} S_ik."""
    examples, clusters = distance.shape
    size = np.bincount(assignment, minlength=clusters)
    chosen = distance[np.arange(examples), assignment].astype(np.float64)
    return float((size[assignment] * chosen).sum())


def problem(
    examples: int, clusters: int, seed: int = 0
) -> tuple[Distances, Assignment, Assignment]:
    g = np.random.default_rng(seed)
    distance = g.lognormal(0, 2, (examples, clusters)).astype(np.float32)
    return distance, distance.argmin(1), g.permutation(examples)


@pytest.mark.parametrize("seed", range(20))
def test_no_single_move_is_better(seed: int) -> None:
    distance, start, order = problem(40, 5, seed)
    before = start.copy()
    found = least_variance(distance, start, order)
    assert np.array_equal(start, before)
    least = objective(distance, found)
    assert least <= objective(distance, start)
    for i, k in product(range(40), range(5)):
        other = found.copy()
        other[i] = k
        assert objective(distance, other) >= least * (1 - 1e-5)


def test_near_the_best_of_all() -> None:
    """Of all 3^8 assignments, in twenty problems: a few percent above the least on average."""
    ratios = []
    for seed in range(20):
        distance, start, order = problem(8, 3, seed)
        found = objective(distance, least_variance(distance, start, order))
        best = min(objective(distance, np.array(a)) for a in product(range(3), repeat=8))
        assert found >= best * (1 - 1e-6)
        ratios.append(found / best)
    assert np.mean(ratios) < 1.15


def test_where_the_frozen_step_fails() -> None:
    """Eq. 4.3 sends everyone to the small cluster and back; here the objective falls."""
    distance = np.tile(np.array([[1.0, 1.5]], dtype=np.float32), (10, 1))
    start = np.zeros(10, dtype=np.int64)
    frozen = start
    for _ in range(4):
        size = np.maximum(np.bincount(frozen, minlength=2), 1)
        frozen = (size * distance).argmin(1)
        assert len(np.unique(frozen)) == 1  # all together, at 100 or 150
    found = least_variance(distance, start, np.arange(10))
    assert np.bincount(found).tolist() == [6, 4]  # 6 * 6 + 1.5 * 4 * 4 = 60 is the least there is


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 1), (1, 4)])
def test_edges(shape: tuple[int, int]) -> None:
    distance, start, order = problem(*shape)
    found = least_variance(distance, start, order)
    assert found.shape == (shape[0],)
    assert np.array_equal(found, distance.argmin(1))


def test_nothing_to_gain_nothing_moves() -> None:
    distance = np.zeros((6, 3), dtype=np.float32)
    start = np.array([0, 0, 0, 1, 1, 1])
    assert np.array_equal(least_variance(distance, start, np.arange(6)), start)
