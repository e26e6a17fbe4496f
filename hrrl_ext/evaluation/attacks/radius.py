"""The largest radius that costs almost no accuracy (Faghri's thesis, Fig. 5.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...norms import Norm
from ...processes import ALONE, Processes
from .apgd import apgd
from .losses import Loss
from .victim import attackable, borrowed

EPS_GRID = tuple(0.5 * i / 255 for i in range(17))
"""That of the thesis: 0 to 8/255 in steps of 0.5/255."""


@dataclass(frozen=True)
class EpsilonCurve:
    """Accuracy over the radius of an attack."""

    norm: str
    max_epsilon: float
    """the largest radius of ``eps`` that costs at most ``cost``; 0 if none does"""
    cost: float
    clean_accuracy: float
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]
    """never rises: what is lost at a radius stays lost at larger ones"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "norm": self.norm,
            "max_epsilon": self.max_epsilon,
            "cost": self.cost,
            "clean_accuracy": self.clean_accuracy,
            "eps": list(self.eps),
            "accuracy": list(self.accuracy),
        }


def max_epsilon(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    norm: str | Norm = "linf",
    eps: Sequence[float] = EPS_GRID,
    cost: float = 0.01,
    steps: int = 20,
    batch_size: int = 256,
    progress: Callable[[str], None] | None = None,
    processes: Processes = ALONE,
) -> EpsilonCurve:
    """The largest radius at which accuracy is at most ``cost`` (absolute) below the clean one.

    The protocol of the thesis (Fig. 5.5): APGD on the cross entropy and on DLR (left out below 3
    classes), ``steps`` iterations each, no restart. Radii are taken in ascending order, each on the
    points that are left and from where the smaller radius ended; balls are nested, so a point that is
    lost stays lost and the curve never rises. Deterministic where the model is: nothing is drawn.

    processes take a batch of the points in turn, and each has the result.

    x, target and errors are those of `pgd`; ValueError also without points, radii or steps.
    """
    radii = tuple(sorted({float(e) for e in eps}))
    if not radii or len(x) == 0 or steps < 1 or batch_size < 1:
        raise ValueError(
            "max_epsilon: needs a radius, a point, a step and a batch_size of at least 1, "
            f"got {len(radii)} radii, {len(x)} points, steps={steps}, batch_size={batch_size}"
        )
    for radius in radii:
        ball = attackable("max_epsilon", x, target, radius, norm)
    with borrowed("max_epsilon", model, x.device) as victim:
        logits = victim.all_logits(x, target, batch_size, processes)
        standing = logits.argmax(1) == target
        losses: tuple[Loss, ...] = ("ce", "dlr") if logits.shape[1] >= 3 else ("ce",)
        clean, accuracy, z = standing.double().mean().item(), [], ball.x.clone()
        for radius in radii:
            for loss in losses:
                batches = standing.nonzero().flatten().split(batch_size)
                attacked = (
                    apgd(
                        model, ball.x[r], target[r], radius,
                        norm=ball.norm, steps=steps, loss=loss, start=z[r],
                    ).cpu()
                    for r in processes.turns(batches)
                )  # fmt: skip
                for r, moved in zip(batches, processes.in_order(attacked), strict=True):
                    z[r] = moved.to(z)
                fooled = (victim.fooled(z[r], target[r]).cpu() for r in processes.turns(batches))
                for r, lost in zip(batches, processes.in_order(fooled), strict=True):
                    standing[r] = ~lost.to(standing)
            accuracy.append(standing.double().mean().item())
            if progress is not None:
                progress(f"{ball.norm.name}  eps {radius:.5g}  accuracy {100 * accuracy[-1]:.1f} %")
    # Shares of the same count differ by multiples of 1/N; the slack is for their rounding.
    free = [e for e, a in zip(radii, accuracy, strict=True) if clean - a <= cost + 1e-9]
    return EpsilonCurve(ball.norm.name, max(free, default=0.0), cost, clean, radii, tuple(accuracy))
