"""Losses of a margin m = y φ(x): exponential and logistic in the log domain, and the hinge.

Descent towards the largest margin drives every exp(-m) to 0, and a bad step drives it to infinity: in
float64 both are out of range beyond |m| = 745. So the two losses with a tail give log f, f = mean_i
ζ(m_i), and the share of each example in -∇ log f, which stay in range for any margin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import not_known


class MarginLoss(ABC):
    """f = mean_i ζ(m_i) over margins [..., n], ζ falling and convex."""

    name: str

    @abstractmethod
    def value(self, m: Tensor) -> Tensor:
        """f [...]."""

    @abstractmethod
    def shares(self, m: Tensor) -> Tensor:
        """-∂f/∂m_i ≥ 0 [..., n]."""

    def dual(self, u: Tensor) -> Tensor:
        """min_m f(m) + Σ_i u_i m_i [...] of shares u [..., n]: the lower bound that they prove."""
        raise NotImplementedError(f"the {self.name} loss has no lower bound here")


class TailLoss(MarginLoss):
    """One with ζ ~ exp(-m): its descent has an implicit bias towards the largest margin."""

    @abstractmethod
    def log_value(self, m: Tensor) -> Tensor:
        """log f [...]."""

    @abstractmethod
    def log_shares(self, m: Tensor) -> Tensor:
        """-∂ log f/∂m_i ≥ 0 [..., n]."""

    def value(self, m: Tensor) -> Tensor:
        return self.log_value(m).exp()

    def shares(self, m: Tensor) -> Tensor:
        return self.log_shares(m) * self.value(m).unsqueeze(-1)


class Exponential(TailLoss):
    """ζ(m) = exp(-m). -∇ log f weighs the examples by softmax(-m)."""

    name = "exponential"

    def log_value(self, m: Tensor) -> Tensor:
        return torch.logsumexp(-m, -1) - math.log(m.shape[-1])

    def log_shares(self, m: Tensor) -> Tensor:
        return torch.softmax(-m, -1)

    def dual(self, u: Tensor) -> Tensor:
        return (u - torch.xlogy(u, u.shape[-1] * u)).sum(-1)


class Logistic(TailLoss):
    """ζ(m) = log(1 + exp(-m)): for large m exp(-m), also where that is below the smallest float."""

    name = "logistic"

    def log_value(self, m: Tensor) -> Tensor:
        return torch.logsumexp(_log_softplus(-m), -1) - math.log(m.shape[-1])

    def log_shares(self, m: Tensor) -> Tensor:
        total = torch.logsumexp(_log_softplus(-m), -1, keepdim=True)
        return (F.logsigmoid(-m) - total).exp()

    def dual(self, u: Tensor) -> Tensor:
        """The mean binary entropy of n u_i, which are in [0, 1]."""
        share = (u.shape[-1] * u).clamp(0, 1)
        return -(torch.xlogy(share, share) + torch.special.xlog1py(1 - share, -share)).mean(-1)


class FreeExponential(TailLoss):
    """min_b mean_i exp(-m_i - y_i b): the exponential loss with a bias that no norm sees.

    The best b has a closed form, b = ½ (log S₊ - log S₋) with S± = Σ_{y_i = ±1} exp(-m_i), which leaves
    f = 2 √(S₊ S₋) / n. So descent on it stays descent in the norm of w alone, and is biased to the
    largest sum of the two classes' margins: the maximally robust classifier with an unpenalised bias.

    Args:
        y: [n] ±1, both of them there.
    """

    name = "exponential"

    def __init__(self, y: Tensor) -> None:
        self.classes = (y > 0, y < 0)

    def log_value(self, m: Tensor) -> Tensor:
        halves = [torch.logsumexp(-m[..., rows], -1) for rows in self.classes]
        return math.log(2 / m.shape[-1]) + (halves[0] + halves[1]) / 2

    def log_shares(self, m: Tensor) -> Tensor:
        shares = torch.empty_like(m)
        for rows in self.classes:
            shares[..., rows] = torch.softmax(-m[..., rows], -1) / 2
        return shares


class Hinge(MarginLoss):
    """ζ(m) = max(0, 1 - m). At the kink the slope is taken as 0."""

    name = "hinge"

    def value(self, m: Tensor) -> Tensor:
        return (1 - m).clamp(min=0).mean(-1)

    def shares(self, m: Tensor) -> Tensor:
        return (m < 1).to(m.dtype) / m.shape[-1]

    def dual(self, u: Tensor) -> Tensor:
        """For u_i in [0, 1/n]."""
        return u.sum(-1)


class LogOf(MarginLoss):
    """log f in the place of f: with the exponential loss, log mean_i exp(-m_i)."""

    def __init__(self, loss: TailLoss) -> None:
        self.name = f"log {loss.name}"
        self.loss = loss

    def value(self, m: Tensor) -> Tensor:
        return self.loss.log_value(m)

    def shares(self, m: Tensor) -> Tensor:
        return self.loss.log_shares(m)


TAIL_LOSSES: dict[str, TailLoss] = {loss.name: loss for loss in (Exponential(), Logistic())}


def tail_loss(name: str | TailLoss) -> TailLoss:
    """By name: exponential or logistic."""
    if isinstance(name, TailLoss):
        return name
    if name not in TAIL_LOSSES:
        raise ValueError(f"loss {not_known(name, TAIL_LOSSES)}")
    return TAIL_LOSSES[name]


def _log_softplus(x: Tensor) -> Tensor:
    """log log(1 + e^x); below -37 that is x to the last bit of float64."""
    tail = x < -37
    return torch.where(tail, x, F.softplus(x.masked_fill(tail, 0.0), threshold=40).log())
