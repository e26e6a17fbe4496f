"""Certified accuracy over the size of the attack."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._arrays import to_numpy
from .figures import of_run, panels_of, save, shown

if TYPE_CHECKING:
    from ..linear import Certificate


def plot_certified(
    certificates: Mapping[str, Certificate],
    path: str | os.PathLike[str],
    *,
    radius: float = math.nan,
) -> Path:
    """A curve per certificate, by name, exact at every eps, not on a grid; a dotted line at ``radius``.

    All of them must be of one norm.
    """
    if len(norms := {certificate.norm for certificate in certificates.values()}) != 1:
        raise ValueError(f"plot_certified: certificates must be of one norm, got {sorted(norms)}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, (axes,) = panels_of(1)
    for number, (name, certificate) in enumerate(certificates.items()):
        radii = np.sort(np.asarray(to_numpy(certificate.radius), dtype=np.float64))
        style = of_run(number) | {"label": shown(name)}
        if np.isnan(radii).any():  # nothing depends on x
            axes.axhline(100 * certificate.accuracy(0.0), **style)
            continue
        right = radii[radii > 0]
        # right at eps, if eps is below the radius: a step down at each
        share = 100 * np.arange(len(right), -1, -1) / len(radii)
        axes.step(np.concatenate([[0.0], right]), share, where="post", **style)
    if radius > 0:
        axes.axvline(radius, color="0.5", linestyle=":", linewidth=1.0)
    axes.set(
        xlabel=f"size of the {norms.pop()} attack", ylabel="certified accuracy, %", xlim=(0, None),
        ylim=(0, 103),
    )  # fmt: skip
    axes.legend(fontsize="small")
    return save(figure, path)
