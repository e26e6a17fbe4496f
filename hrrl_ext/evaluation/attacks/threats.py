"""Threats by name: a norm and a radius, as in "linf:8/255"."""

from __future__ import annotations

from dataclasses import dataclass

from ...norms import L1, L2, Linf, Norm
from ...spec import NUMBER, not_known, read_settings, split_spec
from .fourier import FourierLinf

NORMS = ("linf", "l2", "l1", "fourier", "fourier-low", "fourier-high")


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
    spec = str(spec).strip()
    norm, text = split_spec(spec)
    form = "NORM:RADIUS, such as linf:8/255 or l2:0.5"
    settings = read_settings(
        f"attack {spec!r}", text, {"radius": NUMBER}, first="radius", form=form
    )
    eps: float = settings["radius"]
    if eps < 0:
        raise ValueError(
            f"attack {spec!r}: radius must be at least 0, got {eps:g}; expected {form}"
        )
    find_norm(norm)
    return Threat(spec, norm, eps)


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
    raise ValueError(f"norm {not_known(norm, NORMS)}")
