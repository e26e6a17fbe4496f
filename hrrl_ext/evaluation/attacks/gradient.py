"""FGSM and PGD: steepest steps in a norm, each projected on its ball and on [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...norms import Norm
from .losses import Loss
from .victim import Look, attackable, borrowed


def fgsm(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: str | Norm = "linf",
    loss: Loss = "ce",
) -> Tensor:
    """x + eps argmax of ⟨∇ℓ(x), d⟩ over ‖d‖ ≤ 1, in [0, 1]; for linf x + eps sign(∇ℓ).

    Goodfellow, Shlens & Szegedy (2015). Arguments, result and errors are those of `pgd`. The step is
    always taken, whether it helps or not.
    """
    ball = attackable("fgsm", x, target, eps, norm)
    if eps == 0 or len(x) == 0:
        return x
    with borrowed("fgsm", model, x.device) as victim:
        look = victim.look(ball.x, target, loss)
    return ball.image(ball.move(torch.zeros_like(ball.base), look.grad, eps))


def pgd(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    eps: float,
    *,
    norm: str | Norm = "linf",
    steps: int = 20,
    step_size: float | None = None,
    loss: Loss = "ce",
    start: Tensor | None = None,
) -> Tensor:
    """z ← P(z + step_size argmax of ⟨∇ℓ(z), d⟩ over ‖d‖ ≤ 1), ``steps`` times (Madry et al. 2018).

    P projects on {z in [0, 1] : ‖z - x‖ ≤ eps}. Of the images visited, that one is returned for each
    example which fools the model, and among several (or if none does) the one of the highest loss.

    model      takes images in [0, 1] and returns logits [N, num_classes]; it is borrowed: eval mode
               within, everything of it as before afterwards, also by an exception
    x, target  [N, 3, H, W] floating point in [0, 1], [N] int64, on the model's device
    eps        radius, in the units of x; eps = 0 returns x itself
    norm       "linf", "l2", "l1", "fourier", "fourier-low", "fourier-high", or a `Norm`
    step_size  None: min(2.5 / steps, 1) eps
    loss       "ce", "dlr", or "margin" (the largest other logit minus the target's)
    start      where to begin, such as `random_start`'s, projected on the ball; None: x

    Returns [N, 3, H, W] in the dtype of x, without gradient, in [0, 1] and in the ball. A zero
    gradient leaves an example where it is, as does one that is not finite; an image with logits that
    are not finite is never returned. Nothing random is drawn: deterministic wherever the model's own
    passes are, as on the CPU, and an example depends on no other unless the model makes it so.

    Raises ValueError for pixels outside [0, 1], NaN, targets that the model has no class for and
    outputs that are not finite logits of that shape; TypeError for integer images.
    """
    if steps < 1:
        raise ValueError(f"pgd: steps must be at least 1, got {steps}")
    ball = attackable("pgd", x, target, eps, norm)
    if eps == 0 or len(x) == 0:
        return x
    length = min(2.5 / steps, 1) * eps if step_size is None else step_size
    with borrowed("pgd", model, x.device) as victim:
        z, best = ball.begin(start), Best.of(ball.x)
        for _ in range(steps):
            look = victim.look(z, target, loss)
            best = best.or_better(z, look)
            z = ball.image(ball.move(ball.delta(z), look.grad, length))
        return best.or_better(z, victim.look(z, target, loss, gradient=False)).image


@dataclass(frozen=True)
class Best:
    """Of the images seen, per example: one that fools the model, then that of the highest loss."""

    image: Tensor
    loss: Tensor
    fooled: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Best:
        """None seen yet: x itself, of loss -inf."""
        loss = torch.full((len(x),), -torch.inf, device=x.device)
        return cls(x, loss, torch.zeros_like(loss, dtype=torch.bool))

    def __getitem__(self, rows: Tensor) -> Best:
        return Best(self.image[rows], self.loss[rows], self.fooled[rows])

    def or_better(self, z: Tensor, look: Look) -> Best:
        higher = (look.fooled == self.fooled) & (look.loss > self.loss)
        better = (look.fooled & ~self.fooled) | higher
        return Best(
            torch.where(better.view(-1, 1, 1, 1), z, self.image),
            torch.where(better, look.loss, self.loss),
            self.fooled | look.fooled,
        )
