"""Threats by name: a norm and a radius, as in "linf:8/255"."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from ...norms import L1, L2, Linf, Norm
from .fourier import FourierLinf

NORMS = ("linf", "l2", "l1", "fourier", "fourier-low", "fourier-high")

_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)"
_RADIUS = re.compile(rf"{_NUMBER}(?:/{_NUMBER})?")


@dataclass(frozen=True)
class Threat:
    """All images within ``eps`` of the original in ``norm``, pixels in [0, 1]."""

    spec: str
    norm: str
    eps: float


def parse_threat(spec: str) -> Threat:
    """ "linf:8/255", "l2:0.5", "l1:12", "fourier-low:45/255": a norm, a colon, a number or fraction.

    Raises ValueError for anything else; nothing is evaluated.
    """
    norm, colon, radius = str(spec).strip().partition(":")
    number = _RADIUS.fullmatch(radius.strip())
    if not colon or number is None:
        raise ValueError(
            f"an attack is written NORM:RADIUS, such as linf:8/255 or l2:0.5, got {spec!r}"
        )
    find_norm(norm)
    divisor = float(number[2]) if number[2] else 1.0
    eps = float(number[1]) / divisor if divisor else math.inf
    if not math.isfinite(eps):
        raise ValueError(f"the radius of an attack must be finite, got {spec!r}")
    return Threat(str(spec).strip(), norm, eps)


def find_norm(norm: str | Norm) -> Norm:
    """A norm by its name in `NORMS`; a Norm, such as FourierLinf(mask), passes through."""
    match norm:
        case Norm():
            return norm
        case "linf":
            return Linf()
        case "l2":
            return L2()
        case "l1":
            return L1()
        case "fourier":
            return FourierLinf()
        case "fourier-low":
            return FourierLinf("low")
        case "fourier-high":
            return FourierLinf("high")
    near = difflib.get_close_matches(str(norm).lower(), NORMS, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"norm must be one of {', '.join(NORMS)}, got {norm!r}; the nearest is {near!r}"
    )
