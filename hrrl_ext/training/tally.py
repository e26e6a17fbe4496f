"""The running sums of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import ConceptLoss
from ..processes import Processes


@dataclass
class Tally:
    """Of this process; :meth:`total` is that of all. Adding never waits for the device."""

    steps: int
    loss: Tensor
    """[] sum of the examples' losses, unweighted"""
    correct: Tensor
    """[] examples classified correctly, as they were trained on"""
    concept_loss: Tensor
    """[K] sum of ĝ over the steps; the same in every process"""
    concept_square: Tensor
    """[] sum of ‖ĝ‖² over the steps; the same in every process"""

    @classmethod
    def empty(cls, num_concepts: int, device: torch.device) -> Tally:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(0, zero, zero.clone(), zero.new_zeros(num_concepts), zero.clone())

    def add(self, logits: Tensor, target: Tensor, out: ConceptLoss) -> None:
        """What one step, or a part of it, saw."""
        self.loss += out.example_loss.double().sum()
        self.correct += (logits.argmax(1) == target).sum()

    def add_step(self, concept_loss: Tensor) -> None:
        """ĝ of a whole step."""
        self.concept_loss += concept_loss
        self.concept_square += concept_loss.double().square().sum()
        self.steps += 1

    def total(self, processes: Processes) -> tuple[float, float]:
        """Loss and correct over all processes; waits for them."""
        loss, correct = processes.sum(torch.stack([self.loss, self.correct])).tolist()
        return loss, correct

    def state_dict(self) -> dict[str, Tensor | int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        for name, value in state.items():
            here = getattr(self, name)
            setattr(self, name, value.to(here) if isinstance(value, Tensor) else value)
