"""Signs that an evaluation fools itself. docs/attacks.md has a paragraph on each name.

Each check returns its warning, "name: what was seen", in a list, or an empty list.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...norms import Ball
from ..predictions import are_probabilities, difference
from .apgd import apgd
from .result import MethodAccuracy
from .starts import random_start
from .victim import Victim

NAMES = (
    "random-outputs",
    "probabilities",
    "dlr-left-out",
    "zero-gradients",
    "single-step-stronger",
    "black-box-stronger",
    "more-steps-help",
    "huge-eps",
)

_ZERO_SHARE = 0.1  # of the points, with a gradient of zero
_BROKEN_SHARE = 0.02  # of the right points, broken by a method that should be the weaker one
_SAMPLE = 64  # points for the two checks that attack once more
_SAMPLE_SHARE = 0.05  # of the sample
_HUGE = 0.5  # in linf any image can become grey, and so any other within as much again


def random_outputs(victim: Victim, x: Tensor, target: Tensor, logits: Tensor) -> list[str]:
    apart = difference(victim.logits(x, target), logits)
    if apart == 0:
        return []
    return [
        f"random-outputs: two passes of the same images differ by {apart:.2g} in a logit; "
        "attack the expectation over the randomness instead"
    ]


def probabilities(logits: Tensor) -> list[str]:
    if not are_probabilities(logits):
        return []
    return [
        "probabilities: the outputs lie in [0, 1] and sum to 1; attack the logits, "
        "whose gradients do not vanish as those of a softmax do"
    ]


def after_attack(
    victim: Victim,
    ball: Ball,
    target: Tensor,
    clean: Tensor,
    survived: Tensor,
    method_accuracy: Mapping[str, MethodAccuracy],
    steps: int,
) -> list[str]:
    """The checks that follow an attack whose APGD had so many steps."""
    right, left = (mask.nonzero().flatten()[:_SAMPLE] for mask in (clean, survived))
    if len(right) == 0:
        return []
    return [
        *_zero_gradients(victim, ball.x[right], target[right]),
        *_stronger("single-step-stronger", "fgsm", method_accuracy, int(clean.sum())),
        *_stronger("black-box-stronger", "square", method_accuracy, int(clean.sum())),
        *_more_steps_help(victim, ball[left], target[left], left, 2 * steps),
        *_huge_eps(victim, ball.x[right], target[right]),
    ]


def dlr_left_out(classes: int) -> list[str]:
    if classes >= 4:
        return []
    return [
        f"dlr-left-out: the model has {classes} classes; "
        + ("DLR needs 3, targeted DLR 4" if classes < 3 else "targeted DLR needs 4")
    ]


def _zero_gradients(victim: Victim, x: Tensor, target: Tensor) -> list[str]:
    zero = (victim.look(x, target, "ce").grad == 0).flatten(1).all(1)
    if zero.double().mean() <= _ZERO_SHARE:
        return []
    return [
        f"zero-gradients: the cross entropy has no gradient at {int(zero.sum())} of {len(x)} right "
        "points; what follows gradients is blind there"
    ]


def _stronger(
    name: str, method: str, method_accuracy: Mapping[str, MethodAccuracy], right: int
) -> list[str]:
    """A weak method that breaks what the strong ones before it left."""
    if method not in method_accuracy:
        return []
    accuracy, points = method_accuracy[method]
    broken = round((1 - accuracy) * points)
    if broken < max(2, _BROKEN_SHARE * right):
        return []
    return [
        f"{name}: {method} breaks {broken} of the {points} points that the attacks by gradient left; "
        "their gradients mislead"
    ]


def _more_steps_help(
    victim: Victim, ball: Ball, target: Tensor, index: Tensor, steps: int
) -> list[str]:
    if len(index) == 0:
        return []
    start = random_start(ball.x, ball.eps, norm=ball.norm, seed=1, index=index)
    z = apgd(victim.model, ball.x, target, ball.eps, norm=ball.norm, steps=steps, start=start)
    broken = int(victim.fooled(z, target).sum())
    if broken < max(2, _SAMPLE_SHARE * len(index)):
        return []
    return [
        f"more-steps-help: APGD with {steps} steps, twice as many, breaks {broken} of {len(index)} "
        "points that survived; the attack has not converged"
    ]


def _huge_eps(victim: Victim, x: Tensor, target: Tensor) -> list[str]:
    z = apgd(victim.model, x, target, _HUGE, steps=20, loss="margin")
    standing = int((~victim.fooled(z, target)).sum())
    if standing < max(2, _SAMPLE_SHARE * len(x)):
        return []
    return [
        f"huge-eps: {standing} of {len(x)} right points survive linf:{_HUGE:g}, which can turn any "
        "image grey; the attack, not the model, fails"
    ]
