"""TRADES for networks: predictions that stay when the image moves (Zhang et al., ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._modes import in_mode
from ..evaluation.attacks import find_norm
from ..layers import logits_of
from ..norms import Ball


@dataclass(frozen=True, kw_only=True)
class Trades:
    """The penalty beta max_{‖x' - x‖ ≤ eps} KL(p(x) ‖ p(x')), for ``penalty`` of HRRLTrainer.

    With tau = 0 the task loss is that of clean images, and the sum is TRADES. x' begins a thousandth of
    the radius away from x, along normal noise, where the KL has a gradient, and takes ``steps``
    steepest steps, each projected on the ball and on [0, 1]; the model is in eval mode meanwhile. The
    mean is over the images that a process has in one pass. A step of training costs ``steps`` passes
    forward and backward more, and two forward.

    Args:
        beta: the weight, 1/λ of the paper, which takes 1 to 6.
        eps: radius, pixels in [0, 1]; 0 leaves x where it is, and the penalty is 0.
        norm: "linf", "l2", "l1", "fourier", "fourier-low" or "fourier-high".
        step_size: None: 2.5 eps / steps, at most eps.

    Noise is of the global random state, which checkpoints hold.
    """

    beta: float = 6.0
    eps: float = 8 / 255
    norm: str = "linf"
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("beta", "eps"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise ValueError(f"Trades: {name} must be at least 0 and finite, got {value!r}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Trades: steps must be a whole number from 1, got {self.steps!r}")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ValueError(f"Trades: step_size must be positive, got {self.step_size!r}")
        find_norm(self.norm)

    def __call__(self, model: nn.Module) -> nn.Module:
        return _TradesPenalty(self)


class _TradesPenalty(nn.Module):
    def __init__(self, settings: Trades) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        moved = self._moved(model, x.detach())
        logits = logits_of(model(x))
        return logits, self.settings.beta * _divergence(logits, logits_of(model(moved)))

    def _moved(self, model: nn.Module, x: Tensor) -> Tensor:
        """The x' of the largest divergence that the steps came by last."""
        settings = self.settings
        if settings.eps == 0:
            return x
        ball = Ball.around(x, settings.eps, find_norm(settings.norm))
        length = settings.step_size or min(2.5 / settings.steps, 1) * settings.eps
        noise = torch.randn_like(ball.base)
        delta = ball.move(torch.zeros_like(ball.base), noise, 1e-3 * settings.eps)
        with in_mode(model, "eval"):
            with torch.no_grad():
                clean = logits_of(model(x))
            for _ in range(settings.steps):
                z = (ball.base + delta).requires_grad_()
                with torch.enable_grad():
                    divergence = _divergence(clean, logits_of(model(z.to(x.dtype))))
                (grad,) = torch.autograd.grad(divergence, z)
                delta = ball.move(delta, grad, length)
        return ball.image(delta)


def _divergence(logits: Tensor, moved: Tensor) -> Tensor:
    """mean KL(p ‖ p'), in float32 or wider."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    p, q = (F.log_softmax(z.to(wide), 1) for z in (logits, moved))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)
