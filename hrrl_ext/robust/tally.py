"""The running sums of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import Mixed
from ..ops import ConceptLoss
from ..processes import Processes


@dataclass
class Tally:
    """Of this process; :meth:`total` is that of all. Adding never waits for the device."""

    steps: int
    loss: Tensor
    """[] sum of the examples' losses, unweighted"""
    correct: Tensor
    """[] examples classified correctly, as they were trained on; a mixture by the shares of its labels"""
    concept_loss: Tensor
    """[K] sum of ĝ over the steps; the same in every process"""
    concept_square: Tensor
    """[] sum of ‖ĝ‖² over the steps; the same in every process"""
    penalty: Tensor
    """[] what was added to the loss, times the examples it was added for"""
    length: Tensor
    """[] sum of the examples' ‖x̃ - x‖, where each has its own"""

    @classmethod
    def empty(cls, num_concepts: int, device: torch.device) -> Tally:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        correct, square, penalty, length = (zero.clone() for _ in range(4))
        return cls(0, zero, correct, zero.new_zeros(num_concepts), square, penalty, length)

    def add(
        self,
        logits: Tensor,
        target: Tensor | Mixed,
        out: ConceptLoss,
        penalty: Tensor | None = None,
    ) -> None:
        """What one step, or a part of it, saw."""
        guess = logits.argmax(1)
        hits = target.matched(guess) if isinstance(target, Mixed) else guess == target
        self.loss += out.example_loss.double().sum()
        self.correct += hits.sum()
        if penalty is not None:
            self.penalty += penalty.detach().double() * len(logits)

    def add_step(self, concept_loss: Tensor) -> None:
        """ĝ of a whole step."""
        self.concept_loss += concept_loss
        self.concept_square += concept_loss.double().square().sum()
        self.steps += 1

    def total(self, processes: Processes) -> tuple[float, float, float, float]:
        """Loss, correct, penalty and length over all processes; waits for them."""
        sums = processes.sum(torch.stack([self.loss, self.correct, self.penalty, self.length]))
        loss, correct, penalty, length = sums.tolist()
        return loss, correct, penalty, length

    def state_dict(self) -> dict[str, Tensor | int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        for name, value in state.items():
            here = getattr(self, name)
            setattr(self, name, value.to(here) if isinstance(value, Tensor) else value)
