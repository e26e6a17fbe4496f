"""Accuracy on average and by concept, and how far a count of examples pins it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from .._modes import evaluating
from ..data import Batches
from ..layers import logits_of


@dataclass(frozen=True)
class Accuracy:
    """Examples, and those classified correctly, by concept; accuracies are shares in [0, 1].

    A concept without an example has no accuracy (NaN) and counts in no average or minimum.
    """

    concept_correct: Tensor
    """[K] int64"""
    concept_count: Tensor
    """[K] int64, how many examples each concept had"""

    @classmethod
    def of(cls, correct: Tensor, concept: Tensor, num_concepts: int) -> Accuracy:
        """From what each example came to: correct [N] bool, concept [N] in 0..K-1."""
        return cls(
            torch.bincount(concept[correct], minlength=num_concepts),
            torch.bincount(concept, minlength=num_concepts),
        )

    @property
    def average(self) -> float:
        """Over all examples."""
        return self.weighted(self.concept_count)

    @property
    def concept_mean(self) -> float:
        """Over concepts, each as much as the other."""
        return self.weighted(torch.ones_like(self.concept_count))

    @property
    def concept(self) -> Tensor:
        """[K] float64, NaN for a concept without an example."""
        return self.concept_correct.double() / self.concept_count  # 0/0: not there, not 0 %

    @property
    def worst_concept(self) -> float:
        """Of the concept where it is lowest."""
        present = self.concept[self.concept_count > 0]
        return present.min().item() if len(present) else float("nan")

    def weighted(self, weight: Tensor | Sequence[float]) -> float:
        """Σ w_k accuracy_k / Σ w_k over the concepts with examples, e.g. w = N_k of the training data.

        So a test set of another mix of concepts speaks of that of the training (the average of
        group-robustness benchmarks such as Waterbirds). NaN where the weights are all 0.
        """
        weight = torch.as_tensor(weight, dtype=torch.float64)
        present = self.concept_count > 0
        # Not through the accuracies: with w_k = N_k each count cancels, and the average is exact.
        share = (weight / self.concept_count)[present]
        return ((share * self.concept_correct[present]).sum() / weight[present].sum()).item()

    def hardest_first(self) -> list[int]:
        """Concept numbers from the lowest accuracy on, as in Figure 5 of the paper; absent ones last."""
        return self.concept.argsort(stable=True).tolist()  # which sorts NaN behind all numbers


def accuracy(model: nn.Module, batches: Batches, num_concepts: int) -> Accuracy:
    """Classifies every example of ``batches`` once, in eval mode; every module's mode is restored.

    On several processes each classifies its part, and all get the whole result.
    """
    correct = torch.zeros(num_concepts, dtype=torch.float64, device=batches.device)
    count = torch.zeros_like(correct)
    with evaluating(model):
        for x, target, concept in batches.epoch(0):
            hit = logits_of(model(x)).argmax(1) == target
            correct += torch.bincount(concept, weights=hit, minlength=num_concepts)
            count += torch.bincount(concept, minlength=num_concepts)
    return Accuracy(
        batches.processes.sum(correct).cpu().long(), batches.processes.sum(count).cpu().long()
    )


def wilson_interval(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the probability p behind ``correct`` out of ``count`` (Wilson, JASA 1927).

        (p̂ + z²/2n ± z √(p̂(1 - p̂)/n + z²/4n²)) / (1 + z²/n)

    p̂ = correct / n, z = Φ⁻¹((1 + confidence)/2): all p that a score test does not reject. Within
    [0, 1], and of a positive width also at 0 and n, where the textbook's p̂ ± z √(p̂(1 - p̂)/n) has
    none. (0, 1) without an example.
    """
    if not 0 <= correct <= count:
        raise ValueError(f"wilson_interval: correct must lie in 0..{count}, got {correct}")
    if not 0 < confidence < 1:
        raise ValueError(f"wilson_interval: confidence must lie in (0, 1), got {confidence}")
    if count == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = correct + z2 / 2
    half = math.sqrt(z2 * (correct * (count - correct) / count + z2 / 4))
    high = (centre + half) / (count + z2) if correct < count else 1.0  # to the bit
    return (centre - half) / (count + z2), high
