"""The loss of AugMix: a network should say the same of an image and of its mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..layers import logits_of


def jensen_shannon(*logits: Tensor) -> Tensor:
    """1/V Σ_v KL(p_v ‖ 1/V Σ_u p_u), a mean over the examples [].

    logits [B, C] of V views, with p_v = softmax. 0 where they agree, at most log V.
    Computed from logarithms in float32 at least.
    """
    log_p = torch.stack([view if view.dtype == torch.float64 else view.float() for view in logits])
    log_p = log_p.log_softmax(-1)  # [V, B, C]
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(-1).mean()


class JensenShannon(nn.Module):
    """weight · JSD of a model on images and on their mixtures, all in one forward pass, as a penalty.

    Batch normalisation sees all of them as one batch, as in AugMix's own code.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, model: nn.Module, x: Tensor, *mixtures: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W] and mixtures like it → the logits of x, and what to add to the loss []."""
        logits = logits_of(model(torch.cat([x, *mixtures]))).split(len(x))
        return logits[0], self.weight * jensen_shannon(*logits)
