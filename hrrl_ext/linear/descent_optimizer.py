"""Steepest descent in a norm for networks: an optimiser of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from ..norms import VectorNorm, vector_norm


class SteepestDescent(Optimizer):
    """θ ← θ - lr ‖g‖* v̂, with v̂ the argmax of ⟨g, v⟩ over ‖v‖ ≤ 1 (Faghri's thesis, Eq. 5.7).

    θ is the vector of all parameters, of all groups, that have a gradient g. On linear models its
    direction tends to the largest margin of that norm; what it is biased to on a network can be tried:

        l2           gradient descent, as SGD takes it
        linf         ‖g‖₁ sign(g)
        l1           the one parameter of largest |g|; of equal ones the first
        l1.5, ...    between them
        fourier-l1   one frequency of θ as it is laid out; fourier-linf all frequencies alike

    Args:
        params: parameters, or groups of them, each with an lr of its own if it likes.
        lr: γ; a group's scales its part of the step.
        norm: see :func:`hrrl_ext.norms.vector_norm`.
        normalised: steps v̂ of norm 1, so that ``lr`` is their length; sign descent is then lr sign(g).

    It has no state, and nothing waits for the device. Computed in float32 or wider. With HRRLTrainer:
    ``optimizer="hrrl_ext.linear.SteepestDescent", optimizer_options={"norm": "linf"}, weight_decay=0``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        norm: str | VectorNorm = "l2",
        normalised: bool = False,
    ) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"SteepestDescent: lr must be at least 0 and finite, got {lr!r}")
        self.norm = vector_norm(norm)
        self.normalised = normalised
        super().__init__(params, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; ``closure`` computes the loss anew, with gradients, and is what is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (p, p.grad, group["lr"])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not moving:
            return loss
        if any(grad.is_sparse for _, grad, _ in moving):
            raise ValueError("SteepestDescent: sparse gradients have no norm here; use dense ones")
        wide = [grad.to(torch.promote_types(grad.dtype, torch.float32)) for _, grad, _ in moving]
        g = torch.cat([grad.flatten() for grad in wide])
        direction = self.norm.steepest(g)
        if not self.normalised:
            direction = direction * self.norm.dual.size(g)
        parts = direction.split([p.numel() for p, _, _ in moving])
        for (p, _, lr), part in zip(moving, parts, strict=True):
            p.sub_((lr * part).view(p.shape).to(p.dtype))
        return loss

    def __repr__(self) -> str:
        how: dict[str, Any] = {"norm": self.norm.name, "normalised": self.normalised}
        return f"{super().__repr__()} {how}"
