from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._modes import evaluating
from ..data import Batches


@dataclass(frozen=True)
class Accuracy:
    """Shares of examples classified correctly, in [0, 1]."""

    average: float
    """over all examples"""
    worst_concept: float
    """of the concept where it is lowest, among the concepts that have examples"""
    concept: Tensor
    """[K], NaN for a concept without an example"""
    concept_count: Tensor
    """[K] how many examples each concept had"""


def accuracy(model: nn.Module, batches: Batches, num_concepts: int) -> Accuracy:
    """Classifies every example of ``batches`` once, in eval mode; every module's mode is restored.

    On several processes each classifies its part, and all get the whole result.
    """
    correct = torch.zeros(num_concepts, dtype=torch.float64, device=batches.device)
    count = torch.zeros_like(correct)
    with evaluating(model):
        for x, target, concept in batches.epoch(0):
            hit = model(x).argmax(1) == target
            correct += torch.bincount(concept, weights=hit, minlength=num_concepts)
            count += torch.bincount(concept, minlength=num_concepts)
    correct = batches.processes.sum(correct).cpu()
    count = batches.processes.sum(count).cpu()
    concept_accuracy = correct / count  # 0/0 = NaN: not there, not 0 %
    present = concept_accuracy[count > 0]
    return Accuracy(
        average=(correct.sum() / count.sum()).item(),
        worst_concept=present.min().item() if len(present) else float("nan"),
        concept=concept_accuracy,
        concept_count=count.long(),
    )
