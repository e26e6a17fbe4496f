"""Accuracy on average and per concept: every example once, absent concepts left out, model untouched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hrrl_ext.data import ArrayImages, Batches
from hrrl_ext.evaluation import accuracy


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
