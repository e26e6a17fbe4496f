"""Accuracy under attack: the per-point worst case over several methods, each on what still stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ...norms import Ball
from ...processes import ALONE, Processes
from . import checks
from .apgd import apgd
from .gradient import fgsm, pgd
from .result import AttackResult, MethodAccuracy
from .square import square
from .starts import random_start
from .threats import Threat, parse_threat
from .victim import Victim, attackable, borrowed, check_loss

_ROUNDING = 1e-5  # relative, of a norm computed in float32

_PGD_STEPS = (10, 20)  # if quick, else
_APGD_STEPS = (20, 100)
_QUERIES = (200, 5000)

Method = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, target, their rows of the whole) → images that may fool the model"""


def evaluate_attack(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    spec: str,
    *,
    quick: bool = False,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    processes: Processes = ALONE,
) -> AttackResult:
    """How many points stay right whatever is tried within a radius; and signs that it flatters.

    spec        "linf:8/255", "l2:0.5", "l1:12", "fourier:8/255", "fourier-low:45/255",
                "fourier-high:8/255": norm and radius, in units of x
    x, target   [N, 3, H, W] floating point in [0, 1], [N] int64, on the model's device
    quick       fewer steps: an estimate from above, for a look during development
    seed        of the random starts and of Square; those of a point depend on its row alone
    progress    called with a line after each method
    processes   those that take a batch of what is left in turn, method by method; each has the result

    The methods, each on the points that those before it left, are PGD, which takes most of the weak
    ones; APGD on the cross entropy, from x; APGD on DLR, from a random start; APGD on the targeted
    DLR, for each of the 9 classes that follow in the logits (not if quick); FGSM; and, for linf and l2,
    Square. Steps: 20, 100, 100, 9 x 100, 1, 5000 queries; if quick 10, 20, 20, -, 1, 200. An image
    counts only if it is seen to lie in [0, 1] and in the ball, and fools the model in a pass of its own.

    The result does not depend on batch_size, but for the rounding of the model's own passes, and is
    the same in every run where these are deterministic, as on the CPU. eps = 0 runs no method and
    gives the clean accuracy.

    Raises as `pgd` does, and ValueError for a spec of another form and for no points.
    """
    threat = parse_threat(spec)
    if batch_size < 1:
        raise ValueError(f"evaluate_attack: batch_size must be at least 1, got {batch_size}")
    ball = attackable("evaluate_attack", x, target, threat.eps, threat.norm)
    if len(x) == 0:
        raise ValueError("evaluate_attack: there are no points; check the data set and its split")
    adversarial = x.detach().clone()
    attacked_by = torch.zeros_like(target)  # which process has what came of each point
    method_accuracy: dict[str, MethodAccuracy] = {}
    with borrowed("evaluate_attack", model, x.device) as victim:
        logits = victim.all_logits(x, target, batch_size, processes)
        check_loss("evaluate_attack", "margin", logits.shape[1])
        clean = logits.argmax(1) == target
        survived = clean.clone()
        first = slice(batch_size)
        warnings = [
            *checks.random_outputs(victim, x[first], target[first], logits[first]),
            *checks.probabilities(logits),
            *checks.dlr_left_out(logits.shape[1]),
        ]
        for name, method in _methods(threat, victim, logits, quick, seed):
            left = survived.nonzero().flatten()
            if threat.eps == 0 or len(left) == 0:
                break
            batches = left.split(batch_size)
            for r in processes.turns(batches):
                adversarial[r] = method(ball.x[r], target[r], r)
            broken = (
                (victim.fooled(z, target[r]) & _allowed(ball[r], z)).cpu()
                for r in processes.turns(batches)
                for z in [adversarial[r]]
            )
            survived[left] = ~torch.cat(list(processes.in_order(broken))).to(left.device)
            attacked_by[left] = torch.arange(len(left)).to(left) // batch_size % processes.size
            standing = int(survived.sum())
            method_accuracy[name] = MethodAccuracy(standing / len(left), len(left))
            if progress is not None:
                progress(
                    f"{threat.spec}  {name:8}  breaks {len(left) - standing} of {len(left)} left, "
                    f"accuracy {100 * standing / len(x):.1f} %"
                )
        if threat.eps > 0:
            warnings += checks.after_attack(
                victim, ball, target, clean, survived, method_accuracy, _APGD_STEPS[not quick]
            )
    if processes.size > 1:
        mine = adversarial[attacked_by == processes.rank].cpu()
        for rank, found in enumerate(processes.gather(mine)):
            adversarial[attacked_by == rank] = found.to(adversarial)
    return AttackResult(
        threat.spec,
        threat.norm,
        threat.eps,
        clean,
        survived,
        method_accuracy,
        adversarial,
        warnings,
    )


def _methods(
    threat: Threat, victim: Victim, logits: Tensor, quick: bool, seed: int
) -> Iterator[tuple[str, Method]]:
    """In the order of the run; ``logits`` are those of all points, without an attack."""
    model, norm, eps, classes = victim.model, threat.norm, threat.eps, logits.shape[1]
    pgd_steps, steps, queries = (n[not quick] for n in (_PGD_STEPS, _APGD_STEPS, _QUERIES))
    ranked = logits.argsort(dim=1, descending=True)

    def dlr(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        start = random_start(x, eps, norm=norm, seed=seed, index=index)
        return apgd(model, x, y, eps, norm=norm, steps=steps, loss="dlr", start=start)

    def targeted(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        z, left = x.clone(), torch.arange(len(x), device=x.device)
        for rank in range(1, min(classes, 10)):  # rank 0 is the target: these points are right
            z[left] = apgd(
                model, x[left], y[left], eps,
                norm=norm, steps=steps, loss="targeted dlr", towards=ranked[index[left], rank],
            )  # fmt: skip
            left = left[~victim.fooled(z[left], y[left])]
        return z

    yield "pgd", lambda x, y, _: pgd(model, x, y, eps, norm=norm, steps=pgd_steps)
    yield "apgd-ce", lambda x, y, _: apgd(model, x, y, eps, norm=norm, steps=steps)
    if classes >= 3:
        yield "apgd-dlr", dlr
    if classes >= 4 and not quick:
        yield "apgd-t", targeted
    yield "fgsm", lambda x, y, _: fgsm(model, x, y, eps, norm=norm)
    if norm in ("linf", "l2"):
        yield (
            "square",
            lambda x, y, index: square(
                model, x, y, eps, norm=norm, queries=queries, seed=seed, index=index
            ),
        )


def _allowed(ball: Ball, z: Tensor) -> Tensor:
    """[N] bool: in [0, 1] and in the ball."""
    within = ((z >= 0) & (z <= 1)).flatten(1).all(1)
    return within & (ball.norm.size(ball.delta(z)) <= ball.eps * (1 + _ROUNDING))
