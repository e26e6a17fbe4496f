"""What a search found, as pictures: a row for each query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..data.image_sets import ImageSet, as_float, as_picture
from .figures import panels_of, save, shown

if TYPE_CHECKING:
    from ..retrieval.gallery import Hit

_ACROSS = 5


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
