"""What a search or a check of images found, as pictures: a row for each query, class, kind of fault."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.check_report import CheckReport, Finding, Part
from ..data.image_sets import ImageSet, as_float, as_picture
from ..data.looking import BIT, STOPS
from ..data.unreadable import name_of
from .figures import panels_of, save, shown

if TYPE_CHECKING:
    from ..retrieval.gallery import Hit

_ACROSS = 5
_CLASSES = 20  # of a part
_CROSS = 64  # pixels


def plot_found(
    images: ImageSet, found: Sequence[tuple[str, Sequence[Hit]]], path: str | os.PathLike[str]
) -> Path:
    """The images of what queries found, each above its first caption, or its name."""
    sheet = []
    for query, hits in found:
        rows = [hit.image for hit in hits if hit.image is not None]
        under = [next(iter(hit.captions), hit.name) for hit in hits if hit.image is not None]
        sheet.append((query, list(zip(images.__getitems__(rows)[0], under, strict=True))))
    return plot_contact_sheet(sheet, path)


def plot_contact_sheet(
    found: Sequence[tuple[str, Sequence[tuple[Tensor, str]]]], path: str | os.PathLike[str]
) -> Path:
    """``found`` are queries, each with images [3, H, W] and the text under each, the best first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    most = max((len(hits) for _, hits in found), default=0)
    if not most:
        raise ValueError("plot_contact_sheet: nothing was found, so there is nothing to draw")
    lines = -(-most // _ACROSS)  # of panels, for each query
    across = min(most, _ACROSS)
    figure, panels = panels_of(len(found) * lines * across, 2.6, sharey=False, across=across)
    for at, axes in enumerate(panels):
        query, place = divmod(at, lines * across)
        text, hits = found[query]
        axes.axis("off")
        if place < len(hits):
            image, under = hits[place]
            axes.imshow(
                as_picture(as_float(image)).permute(1, 2, 0).numpy(), interpolation="nearest"
            )
            below = {"transform": axes.transAxes, "ha": "center", "va": "top"}
            axes.text(0.5, -0.03, shown(under), fontsize=8, **below)
        if place == 0:
            axes.text(0, 1.05, shown(text), transform=axes.transAxes, weight="bold")
    return save(figure, path)


def plot_check(report: CheckReport, path: str | os.PathLike[str]) -> Path:
    """What :func:`hrrl_ext.data.check` has read: a row of images for each class of each part, and one for
    each kind of what was found, with its reason; of images that cannot be read a cross.

    Of more than 20 classes of a part, some are shown.
    """
    sheet: list[tuple[str, list[tuple[Tensor, str]]]] = []
    for kind in report.counts:
        if kind in BIT:  # and not of classes
            found = [_of_finding(*one) for one in islice(report.rows(kind), _ACROSS)]
            sheet.append((f"{kind}: {report.counts[kind]}", found))
    for number, part in enumerate(report.parts):
        target, readable = part.images.target, torch.from_numpy(report.readable(number))
        there = target[readable].unique().tolist()
        for c in there[:: -(-len(there) // _CLASSES) or 1]:
            rows = ((target == c) & readable).nonzero().flatten()[:_ACROSS].tolist()
            images = [(_picture(part, row), _last(name_of(part.images, row))) for row in rows]
            times = int((target == c).sum())
            sheet.append((f"{part.images.classes[c]}: {times} in {part.name}", images))
    return plot_contact_sheet(sheet, path)


def _of_finding(part: Part, row: int, found: Finding) -> tuple[Tensor, str]:
    cannot = found.kind in STOPS
    name = _last(found.image)
    under = f"{name}: {found.why}" if found.why else name
    return _cross() if cannot else _picture(part, row), under


def _picture(part: Part, row: int) -> Tensor:
    return part.images.__getitems__([row])[0][0]


def _cross() -> Tensor:
    line = torch.eye(_CROSS, dtype=torch.bool)
    return torch.where(line | line.flip(1), 0.4, 0.9).expand(3, -1, -1)


def _last(name: str) -> str:
    return os.path.basename(name)
