"""Accuracy on average and per concept: every example once, absent concepts left out, model untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hrrl_ext.data import ArrayImages, Batches
from hrrl_ext.evaluation import Accuracy, accuracy, wilson_interval

NAN = math.nan


class ReadsTheAnswer(nn.Module):
    """Predicts the class written in the first pixel; dropout would spoil it outside eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        written = (self.dropout(x)[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(written, 5).float()


def batches(predicted: list[int], target: list[int], concept: list[int], size: int = 4) -> Batches:
    images = torch.zeros(len(target), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(predicted)
    return Batches(ArrayImages(images, target), torch.tensor(concept), size, shuffle=False)


@pytest.mark.parametrize("size", [1, 2, 4, 7, 100])
def test_by_hand(size: int) -> None:
    model = ReadsTheAnswer().train()
    measured = accuracy(
        model, batches([0, 1, 2, 3, 4, 0, 0], [0, 1, 2, 0, 0, 0, 1], [0, 0, 0, 2, 2, 2, 0], size), 4
    )
    assert measured.average == 4 / 7
    assert measured.concept_count.tolist() == [4, 0, 3, 0]
    assert measured.concept_correct.tolist() == [3, 0, 1, 0]
    assert measured.concept[0] == 3 / 4
    assert measured.concept[2] == pytest.approx(1 / 3)
    assert math.isnan(measured.concept[1])
    assert measured.worst_concept == pytest.approx(1 / 3)  # not 0 % of a concept that is not there
    assert model.training
    assert model.dropout.training


def test_restores_modes_on_errors() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(7, 2)).train()
    model[0].eval()
    with pytest.raises(RuntimeError):
        accuracy(model, batches([0], [0], [0]), 1)
    assert [m.training for m in model] == [False, True, True]


def test_from_examples_is_the_same_as_from_batches() -> None:
    concept = torch.tensor([0, 0, 2, 2, 2])
    correct = torch.tensor([True, False, True, True, False])
    measured = Accuracy.of(correct, concept, 4)
    assert measured.concept_correct.tolist() == [1, 0, 2, 0]
    assert measured.concept_count.tolist() == [2, 0, 3, 0]


def test_averages_by_hand() -> None:
    """Concepts of 1/2 and 2/3, and one that is absent whatever its weight."""
    measured = Accuracy(torch.tensor([1, 0, 2]), torch.tensor([2, 0, 3]))
    assert measured.average == 3 / 5
    assert measured.concept_mean == pytest.approx(7 / 12, rel=1e-15)
    assert measured.weighted([30, 1000, 10]) == pytest.approx((30 / 2 + 10 * 2 / 3) / 40, rel=1e-15)
    assert measured.weighted(measured.concept_count) == measured.average
    assert math.isnan(measured.weighted([0, 5, 0]))


def test_the_average_is_exact() -> None:
    """Rounding of the accuracies does not reach it: 49 concepts of 1/3 are 1/3."""
    measured = Accuracy(torch.full((49,), 1), torch.full((49,), 3))
    assert measured.average == 49 / 147


def test_the_hardest_first_and_the_absent_last() -> None:
    measured = Accuracy(torch.tensor([3, 0, 1, 0, 1]), torch.tensor([4, 0, 3, 5, 3]))
    assert measured.hardest_first() == [3, 2, 4, 0, 1]  # equal ones in their order


def test_nothing_at_all() -> None:
    measured = Accuracy(torch.zeros(2).long(), torch.zeros(2).long())
    assert math.isnan(measured.average)
    assert math.isnan(measured.worst_concept)


# Wilson's interval


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 1), (1, 1), (1, 2), (5, 10), (81, 263), (9999, 10**4)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_score_test_is_exactly_undecided_at_the_ends(
    correct: int, count: int, confidence: float
) -> None:
    """By its definition, (p̂ - p)² = z² p (1 - p)/n, a quadratic in p."""
    z = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)).item()
    share, z2_n = correct / count, z**2 / count
    ends = np.sort(np.roots([1 + z2_n, -2 * share - z2_n, share**2]).real)
    assert wilson_interval(correct, count, confidence) == pytest.approx(tuple(ends), abs=1e-9)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(correct: int, count: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), Table I, method 3."""
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_intervals_at_the_edges() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for confidence in np.linspace(0.001, 0.999, 500):  # whatever rounding does there
        assert wilson_interval(0, 7, confidence)[0] == 0.0
        assert wilson_interval(7, 7, confidence)[1] == 1.0
    for count in (1, 3, 10**6, 10**12):
        assert wilson_interval(0, count)[0] == 0.0 < wilson_interval(0, count)[1]
        low, high = wilson_interval(count, count)
        assert low < 1.0 == high
        assert wilson_interval(0, count)[1] == pytest.approx(1 - low, rel=1e-6)
    with pytest.raises(ValueError, match=r"correct must lie in 0\.\.3, got 4"):
        wilson_interval(4, 3)
    with pytest.raises(ValueError, match="confidence must lie in"):
        wilson_interval(1, 3, 95)
