"""Families of views: what becomes of an image after its crop. A family makes programs of operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from ... import ops
from ..._arrays import is_numbers
from ..._streams import Draws
from ...spec import not_known
from ..augmix import AugMix, AugMixOperations, ImageProgram

_SMALL = 128  # pixels of a side: the paper has its severity of 3 below, of 1 above


class ViewFamily(Protocol):
    def program(self, draws: Draws, shared: Draws, height: int, width: int) -> ImageProgram:
        """What is done with each image of this size, by its draws for this view, and by those that its
        views share."""


@dataclass(frozen=True)
class MoCoViews:
    """T_rep: brightness, contrast, colour and hue in an order by chance, grey, blur, solarise; each image
    by chance whether at all.

    Args:
        jitter: how far the factors of brightness, contrast and colour are from 1 at most, and the hue
            from 0, in turns of the colour circle.
        jitter_p, grey_p, blur_p, solarize_p: probabilities. MoCo v2 does not solarise; for images of 32
            pixels it is common to leave out the blur.
        sigma: of the blur, in pixels, the least and the most, which is 64 at most.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter_p", "grey_p", "blur_p", "solarize_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"MoCoViews: {name} must be a probability, got {getattr(self, name)}"
                )
        if not is_numbers(self.jitter, 4) or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(
                "MoCoViews: jitter must be four strengths of at least 0, that of the hue at most 0.5; "
                f"got {self.jitter}"
            )
        if not (is_numbers(self.sigma, 2) and 0 < self.sigma[0] <= self.sigma[1] <= 64):
            raise ValueError(
                "MoCoViews: sigma must be the least and the most, above 0 and at most 64 pixels, got "
                f"{self.sigma}"
            )

    def program(self, draws: Draws, shared: Draws, height: int, width: int) -> ImageProgram:
        count = len(draws)
        jittered = draws.named("jitter")
        factor = 1 + jittered.uniform(-1, 1, (4,)) * torch.tensor(self.jitter).double()
        factor = factor.clamp(min=0)
        factor[:, 3] -= 1
        order = jittered.uniform(shape=(4,)).argsort(1)
        operation = torch.full((count, 7), -1)
        parameter = torch.zeros(count, 7, 6, dtype=torch.float64)
        chosen = jittered.chance(self.jitter_p)[:, None]
        operation[:, :4] = torch.where(chosen, torch.tensor(_JITTER)[order], -1)
        parameter[:, :4, 0] = factor.gather(1, order)
        blurred = draws.named("blur")
        parameter[:, 5, 0] = blurred.uniform(*self.sigma)
        parameter[:, 6, 0] = 128
        for place, does, chance in (
            (4, "color", draws.named("grey").chance(self.grey_p)),  # a factor of 0
            (5, "blur", blurred.chance(self.blur_p)),
            (6, "solarize", draws.named("solarize").chance(self.solarize_p)),
        ):
            operation[:, place] = torch.where(chance, ops.IMAGE_OPERATIONS.index(does), -1)
        one = torch.ones(count, 1)
        return ImageProgram(operation[:, None], parameter[:, None], one, one[:, 0])


_JITTER = [ops.IMAGE_OPERATIONS.index(n) for n in ("brightness", "contrast", "color", "hue")]


@dataclass(frozen=True)
class AugMixViews:
    """T_rob: AugMix of what the crop shows; clean and mixed copies share it.

    Args:
        operations: as :class:`hrrl_ext.data.AugMix` has them.
        severity: None is the paper's: 3 for images of fewer than 128 pixels a side, 1 for others.
    """

    operations: AugMixOperations = "paper"
    severity: float | None = None

    def __post_init__(self) -> None:
        self._augmix(1)  # refuses what it cannot have

    def _augmix(self, side: int) -> AugMix:
        severity = self.severity
        if severity is None:
            severity = 3.0 if side < _SMALL else 1.0
        return AugMix(severity, operations=self.operations)

    def program(self, draws: Draws, shared: Draws, height: int, width: int) -> ImageProgram:
        augmix = self._augmix(max(height, width))
        return augmix.program(augmix.chains(draws.named("augmix")), height, width)


@dataclass(frozen=True)
class URRLViews:
    """T_urrl: T_rob with probability p, else T_rep; drawn for each view of each image, or for each image.

    At p = 0 it is T_rep alone and at p = 1 T_rob, to the bit.
    """

    p: float = 0.5
    share_family: bool = False
    rep: MoCoViews = field(default_factory=MoCoViews)
    rob: AugMixViews = field(default_factory=lambda: AugMixViews("all"))

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"URRLViews: p must be a probability, got {self.p}")

    def program(self, draws: Draws, shared: Draws, height: int, width: int) -> ImageProgram:
        robust = (shared if self.share_family else draws).named("family").chance(self.p)
        rep, rob = (f.program(draws, shared, height, width) for f in (self.rep, self.rob))
        both = zip(_as_wide(rep, rob), _as_wide(rob, rep), strict=True)
        return ImageProgram(
            *(torch.where(robust.view(-1, *[1] * (r.ndim - 1)), b, r) for r, b in both)
        )


def _as_wide(program: ImageProgram, other: ImageProgram) -> ImageProgram:
    """With as many chains and steps as the other at least: chains that weigh 0, and do nothing."""
    chains, steps = (max(0, other.operation.shape[d] - program.operation.shape[d]) for d in (1, 2))
    return ImageProgram(
        F.pad(program.operation, (0, steps, 0, chains), value=-1),
        F.pad(program.parameter, (0, 0, 0, steps, 0, chains)),
        F.pad(program.weight, (0, chains)),
        program.mix,
    )


def view_family(
    name: str,
    p: float | None = None,
    *,
    share_family: bool = False,
    blur_p: float = MoCoViews.blur_p,
    severity: float | None = None,
) -> ViewFamily:
    """Of a name in FAMILIES: p and share_family are of "urrl", blur_p of MoCo's part and severity of
    AugMix's, where it has one."""
    rep, rob = MoCoViews(blur_p=blur_p), AugMixViews("all", severity)
    families: dict[str, ViewFamily] = {
        "moco": rep,
        "augmix": AugMixViews("paper", severity),
        "augmix:all": rob,
        "augmix:moco": AugMixViews("moco", severity),
        "urrl": URRLViews(0.5 if p is None else p, share_family, rep, rob),
    }
    if name not in families:
        raise ValueError(f"view_family: {not_known(name, families)}")
    if p is not None and name != "urrl":
        raise ValueError(
            f"view_family: p is the share of robust views of 'urrl'; {name!r} has one kind alone, leave "
            f"p out (got p={p})"
        )
    return families[name]


FAMILIES: dict[str, ViewFamily] = {
    name: view_family(name) for name in ("moco", "augmix", "augmix:all", "augmix:moco", "urrl")
}
"""The families of the paper's table, by name."""
